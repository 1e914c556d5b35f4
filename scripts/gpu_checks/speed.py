"""How fast is it, from images or from encoded ones to answers."""

from __future__ import annotations

from typing import Any

import finepruner_lmms as fp
from finepruner_lmms.bench.asking import Answer, Asking, without_end
from finepruner_lmms.bench.promise import promise
from finepruner_lmms.bench.prompts import Prompts, random_prompts
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.pruners import Pruner
from gpu_checks.clock import Subject, faster, interleaved, spread
from gpu_checks.run import Run


def prefill(run: Run) -> None:
    """The decoder's prefill of one prompt, from encoded images to the first token."""
    prompts = random_prompts(run.model, 1, 60)
    encoded, asking = prompts.encoded(fp.encode_images(run.model, prompts.pixels)), Asking(run.model)
    methods = [("vanilla", None), ("fastv", 192), ("fastv", 128), ("fastv", 64), ("pdrop", 64), ("sparsevlm", 64)]
    subjects = [(name, budget, execution) for name, budget in methods for execution in ("eager", "graphs")]
    with without_end(run.model):
        found = interleaved(run, subjects, lambda pruner, how: asking(pruner, encoded, 1, how), run.rounds)
    for (name, budget, execution), answers in found.items():
        gain = faster(found, ("vanilla", None, execution), (name, budget, execution), "first")
        ms = spread([1e3 * answer.first for answer in answers])
        run.say(
            method=name, budget=budget, execution=answers[0].execution, batch=1, ms=ms, speed_up=gain and round(gain, 2)
        )
    target = ("fastv", 64, "graphs")
    same = faster(found, ("vanilla", None, "graphs"), target, "first")
    run.ask_ratio("prefill, batch 1, FastV 64 / vanilla, both graphs", 1.9, same)
    run.ask_ratio(
        "prefill, batch 1, FastV 64 graphs / vanilla eager",
        2.9,
        faster(found, ("vanilla", None, "eager"), target, "first"),
    )


def decode(run: Run) -> None:
    """Milliseconds of a decode step, the mean of 16."""
    asking, tokens, rounds = Asking(run.model), 5 if run.quick else 17, 1 if run.quick else 3
    for batch, least in run.within(((1, 3.0), (2, 2.5)) if run.quick else ((1, 3.0), (16, 2.5))):
        prompts = random_prompts(run.model, batch, 60)
        methods = [("vanilla", None), ("fastv", 64)]
        subjects = [(name, budget, execution) for name, budget in methods for execution in ("eager", "graphs")]

        def ask(pruner: Pruner, how: str, prompts: Prompts = prompts) -> Answer:
            return asking(pruner, prompts.from_pixels, tokens, how)

        with without_end(run.model):
            found = interleaved(run, subjects, ask, rounds)
        for (name, budget, execution), answers in found.items():
            ms = spread([1e3 * answer.per_token for answer in answers])
            run.say(method=name, budget=budget, execution=execution, batch=batch, ms_a_token=ms)
        for name, budget in methods:
            gain = faster(found, (name, budget, "eager"), (name, budget, "graphs"), "per_token")
            run.ask_ratio(f"decode, batch {batch}, {name}, graphs / eager", least, gain)


def end_to_end(run: Run) -> None:
    """From pixels to eight tokens: questions a second."""
    asking, tokens = Asking(run.model), 3 if run.quick else 8
    for batch, least in run.within(((1, 2.2), (2, 2.5)) if run.quick else ((1, 2.2), (16, 2.5))):
        prompts = random_prompts(run.model, batch, 60)
        subjects: list[Subject] = [
            (name, budget, how) for name, budget in (("vanilla", None), ("fastv", 64)) for how in ("eager", "graphs")
        ]

        def ask(pruner: Pruner, how: str, prompts: Prompts = prompts) -> Answer:
            return asking(pruner, prompts.from_pixels, tokens, how)

        with without_end(run.model):
            found = interleaved(run, subjects, ask, min(run.rounds, 5))
        for (name, budget, execution), answers in found.items():
            run.say(
                method=name, budget=budget, execution=execution, batch=batch, tokens=tokens,
                per_second=spread([batch / answer.seconds for answer in answers]),
                first_token_ms=spread([1e3 * answer.first for answer in answers]),
            )  # fmt: skip
        gain = faster(found, ("vanilla", None, "eager"), ("fastv", 64, "graphs"), "seconds")
        run.ask_ratio(f"end to end, {tokens} tokens, batch {batch}, FastV 64 graphs / vanilla eager", least, gain)


def batch32(run: Run) -> None:
    """A large batch: how much of what the operations promise is realised, in the decoder alone and from pixels."""
    batch = 2 if run.quick else 32
    prompts, asking = random_prompts(run.model, batch, 60), Asking(run.model)
    encoded = prompts.encoded(fp.encode_images(run.model, prompts.pixels))
    config = run.model.config.text_config
    sizes = DecoderSizes.of(config)

    def operations(pruner: Pruner) -> int:
        schedule = pruner.schedule(config.num_hidden_layers, run.visual)
        scored = pruner.scored_layers(config.num_hidden_layers, run.visual)
        return prefill_flops(sizes, [round(prompts.text) + visual for visual in schedule], scored)

    for what, inputs, least in (("decoder", encoded, 0.93), ("from pixels", prompts.from_pixels, 0.80)):
        for execution in ("graphs", "eager"):
            subjects: list[Subject] = [
                ("vanilla", None, execution),
                ("fastv", 128, execution),
                ("fastv", 64, execution),
            ]

            def ask(pruner: Pruner, how: str, inputs: dict[str, Any] = inputs) -> Answer:
                return asking(pruner, inputs, 1, how)

            with without_end(run.model):
                found = interleaved(run, subjects, ask, min(run.rounds, 4))
            for (name, budget, _), answers in found.items():
                gain = faster(found, ("vanilla", None, execution), (name, budget, execution), "first")
                if gain is None:
                    continue
                all_of, some_of = operations(run.pruner("vanilla")), operations(run.pruner(name, budget))
                promised = all_of / some_of
                tower = promise(run.model, run.pruner("vanilla"), 1, prompts.text, 2).vision.flops
                with_tower = (all_of + tower) / (some_of + tower)
                ms = spread([1e3 * answer.first for answer in answers])
                run.say(
                    what=what, method=name, budget=budget, execution=answers[0].execution, batch=batch, ms=ms,
                    speed_up=round(gain, 3), promised=round(promised, 3), share=round(gain / promised, 3),
                    promised_with_tower=round(with_tower, 3),
                )  # fmt: skip
                if (name, budget, execution) == ("fastv", 64, "graphs"):
                    figure = f"batch {batch}, {what}, FastV 64, {execution}: realised / promised"
                    run.ask_ratio(figure, least, gain / promised)
                    if inputs is not encoded:  # what cannot be pruned is part of what is promised
                        run.conclude(f"{figure}, the tower counted", "", f"{gain / with_tower:.2f}", None)
