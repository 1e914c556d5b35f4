"""Does the host wait."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms import testing
from finepruner_lmms.bench.asking import Asking, counted_waits, without_end
from finepruner_lmms.bench.clock import finish
from finepruner_lmms.bench.prompts import random_prompts
from finepruner_lmms.engine.parts import decoder_layers
from finepruner_lmms.testing.capture import capture_choice
from finepruner_lmms.testing.ways import every_way
from gpu_checks.cases import MIXES, at_some_budget, copied, moved, named, variants
from gpu_checks.run import Run, first_line, needs_gpu


def waits(run: Run) -> None:
    """No layer of prefill or of a decode step makes the host wait; how often it does in a whole call."""
    needs_gpu(run)
    model, failed, count = copied(testing.tiny_llava(), run.device), {}, 0
    inputs = moved(testing.prompts(*MIXES["any mix"]), run.device)
    options = {"max_new_tokens": 3, "do_sample": False, "questions": ["what"] * 4, "execution": "eager"}
    for name, parameters in run.within(variants(run)):
        pruner = at_some_budget(name, parameters, "50%", 6, testing.VISUAL)
        if pruner is None:
            continue
        fp.generate(model, pruner, inputs, **options)  # what libraries set up at first
        count += 1
        try:
            with no_wait_in_layers(model):
                fp.generate(model, pruner, inputs, **options)
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode("default")
            place = traceback.extract_tb(error.__traceback__)[-1]
            failed[named(name, parameters)] = f"{Path(place.filename).name}:{place.lineno} {first_line(error)}"
    run.say(what="layers of prefill and decode steps", checked=count, failed=failed)
    run.ask_all("no wait in prefill and decode layers", "every method", f"{count - len(failed)} of {count}", not failed)
    asking, prompts = Asking(run.model), random_prompts(run.model, 1 if run.quick else 4, 60)
    with without_end(run.model):
        cases = [("vanilla", None), ("fastv", 64), ("vispruner", 64)]
        for (name, budget), execution in run.within([(c, e) for c in cases for e in ("eager", "graphs")]):
            pruner, found = run.pruner(name, budget), {}
            for tokens in (1, 9):
                asking(pruner, prompts.from_pixels, tokens, execution)
                with counted_waits() as places:
                    ran = asking(pruner, prompts.from_pixels, tokens, execution).execution
                found[tokens] = places
            per_step = (len(found[9]) - len(found[1])) / 8
            facts = {"first": len(found[1]), "per_step": per_step, "places": sorted(set(found[9]))}
            run.say(method=name, execution=ran, **facts)
            run.conclude(f"waits, {name}, {ran}", "", f"{len(found[1])} + {per_step:g} a step", None)


@contextmanager
def no_wait_in_layers(model: Any) -> Iterator[None]:
    """Inside, from the first decoder layer of a forward to its last, what makes the host wait is an error."""
    layers = decoder_layers(model)

    def enter(*_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def leave(*_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    handles = [layers[0].register_forward_pre_hook(enter), layers[-1].register_forward_hook(leave)]
    try:
        yield
    finally:
        leave()
        for handle in handles:
            handle.remove()


def capture(run: Run) -> None:
    """Every way of choosing, as a CUDA graph: it waits for nothing, and a replay on other values chooses as a call."""
    needs_gpu(run)
    sizes = {"features": 64, "projected": 64, "joint": 32, "words": 8, "heads": 8, "width": 64}
    failed, count = {}, 0
    for way in run.within(every_way()):
        pruner = way.build("50%", first="75%")
        try:
            pruner.schedule(32, 64)
        except ValueError:  # out of reach
            continue
        count += 1
        try:
            if not capture_choice(pruner, 2, 64, device=str(run.device), **sizes):
                failed[way.label] = "chooses something else"
        except (RuntimeError, ValueError) as error:
            failed[way.label] = first_line(error)
            torch.cuda.set_sync_debug_mode("default")
            finish(run.device)
    run.say(checked=count, failed=failed)
    found = f"{count - len(failed)} of {count}"
    run.ask_all("a choice as a CUDA graph, without a wait", "every way of choosing", found, count > 0 and not failed)
