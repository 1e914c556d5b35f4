"""Is it right: the same tokens on the device as on the CPU, and recorded as in ordinary calls."""

from __future__ import annotations

from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms import testing
from finepruner_lmms.bench.asking import Asking, without_end
from finepruner_lmms.bench.prompts import random_prompts
from finepruner_lmms.testing.families import FAMILIES, family_prompts, tiny_model
from gpu_checks.alike import agreement, compare_tokens, kept_alike, one_row, rounding_of
from gpu_checks.cases import MIXES, STEPS, at_some_budget, copied, exact_float32, moved, named, variants
from gpu_checks.run import Run


def cpu_equality(run: Run) -> None:
    """In float32 the device keeps the CPU's tokens, and answers with them; logits within the rounding of a sum."""
    here = testing.tiny_llava()
    there = copied(here, run.device)
    worst, wrong, count = 0.0, [], 0
    inputs = testing.prompts(*MIXES["any mix"])
    shares = ("50%",) if run.quick else ("50%", "25%")
    with exact_float32():
        for (name, parameters), share in run.within([(v, s) for v in variants(run) for s in shares]):
            pruner = at_some_budget(name, parameters, share, 6, testing.VISUAL)
            if pruner is None:
                continue
            options = {**testing.OPTIONS, "questions": ["what is it"] * 4, "execution": "eager"}
            ours = fp.generate(here, pruner, inputs, **options)
            theirs = fp.generate(there, pruner, moved(inputs, run.device), **options)
            kept = kept_alike(ours, theirs)
            tokens = torch.equal(ours.sequences, theirs.sequences.cpu())
            logits = torch.stack(ours.logits)
            error = (logits - torch.stack(theirs.logits).cpu()).abs().max().item() / rounding_of(logits)
            count += 1
            worst = max(worst, error)
            if not kept or not tokens or error > 1:
                wrong.append(named(name, parameters))
                run.say(method=named(name, parameters), share=share, kept=kept, tokens=tokens, error_of_bound=error)
    run.say(compared=count, wrong=wrong, largest_error_of_bound=worst, bound=testing.rounding()["atol"])
    found = f"{count - len(wrong)} of {count}, logits off by {worst:.0%} of their rounding at most"
    run.ask_all(f"float32: {run.device.type} = CPU", "every method, tokens kept and answered", found, not wrong)


def families(run: Run) -> None:
    """Of every model family, one model: in float32 the device keeps the CPU's tokens, and answers with them."""
    methods = ("fastv",) if run.quick else ("vanilla", "fastv", "sparsevlm", "divprune")
    wrong, count = [], 0
    with exact_float32():
        for which in run.within(which for which in FAMILIES if "-" not in which):
            here = tiny_model(which)
            there = copied(here, run.device)
            rows = [(4, "a", 3, "b", 5), (7,), (2, "b", 6)] + [(2, "v", 3)] * FAMILIES[which].films
            inputs = family_prompts(which, *rows)
            for name in methods:
                pruner = fp.build_pruner(name, budget=None if name == "vanilla" else "50%")
                options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
                ours = fp.generate(here, pruner, inputs, **options)
                theirs = fp.generate(there, pruner, moved(inputs, run.device), **options)
                kept = kept_alike(ours, theirs)
                logits = torch.stack(ours.logits)
                error = (logits - torch.stack(theirs.logits).cpu()).abs().max().item()
                count += 1
                if not kept or error > 1e-4:
                    wrong.append(f"{which} {name}")
                    run.say(family=which, method=name, kept=kept, error=error)
    run.say(compared=count, wrong=wrong)
    asked = "tokens kept, logits within 1e-4"
    run.ask_all(f"families, float32: {run.device.type} = CPU", asked, f"{count - len(wrong)} of {count}", not wrong)


def graphs_equality(run: Run) -> None:
    """In float32 recorded prefill and decode give `generate`'s tokens: every method, any mix, and rows that end."""
    model = copied(testing.tiny_llava(), run.device)
    wrong, ties, count, eager_instead = [], 0, 0, set()
    mixes = [(mix, rows, False) for mix, rows in MIXES.items()] + [("rows that end early", MIXES["any mix"], True)]
    steps = 8 if run.quick else STEPS
    with exact_float32():
        # strategies choose heads and do nothing else to a batch: one mix is enough for them
        cases = [(v, m) for m in mixes for v in variants(run) if not v[1] or m[0] == "any mix"]
        for (name, parameters), (mix, rows, ending) in run.within(cases):
            pruner = at_some_budget(name, parameters, "50%", 6, testing.VISUAL)
            if pruner is None:
                continue
            inputs = moved(testing.prompts(*rows), run.device)
            options: dict[str, Any] = {"max_new_tokens": steps, "do_sample": False, "questions": ["what"] * len(rows)}
            plain = fp.generate(model, pruner, inputs, execution="eager", output_logits=True, **options)
            if ending:  # the second row's third token ends an answer, in all rows
                options |= {"eos_token_id": int(plain.sequences[1, 2]), "pad_token_id": testing.PAD}
                plain = fp.generate(model, pruner, inputs, execution="eager", output_logits=True, **options)
            fixed = fp.generate(model, pruner, inputs, execution="graphs", **options)
            if fixed.execution != "graphs":
                eager_instead.add(named(name, parameters))
            count += 1
            same, tie = compare_tokens(plain, fixed.sequences)
            ties += tie
            if not same and not tie:
                wrong.append(f"{named(name, parameters)}: {mix}")
                run.say(method=named(name, parameters), mix=mix, tokens=False)
    run.say(compared=count, wrong=wrong, ties=ties, ran_eagerly=sorted(eager_instead))
    text = f"{count - len(wrong)} of {count}" + (f", of which {ties} part at a tie" if ties else "")
    text += f"; {len(eager_instead)} methods ran eagerly" if eager_instead else ""
    asked = f"every method × batch mix × {steps} steps"
    run.ask_all("float32: graphs = eager", asked, text, bool(count) and not wrong and not eager_instead)


def drift(run: Run) -> None:
    """In half precision, how far graphs and eager part, next to how far a method parts from itself by batch size."""
    asking, batch, steps = Asking(run.model), 2 if run.quick else 8, 4 if run.quick else STEPS
    prompts = random_prompts(run.model, batch, 60)
    with without_end(run.model):
        for name, budget in run.within([("vanilla", None), ("fastv", 64)]):
            pruner = run.pruner(name, budget)
            eager = asking(pruner, prompts.from_pixels, steps, "eager").sequences
            rows = range(min(batch, 4))
            alone = torch.cat([asking(pruner, one_row(prompts, row), steps, "eager").sequences for row in rows])
            run.say(what=f"{name}, eager, in a batch against alone", **agreement(eager[: len(rows)], alone))
            graphs = asking(pruner, prompts.from_pixels, steps, "graphs")
            facts = agreement(eager, graphs.sequences)
            run.say(what=f"{name}, graphs against eager", execution=graphs.execution, **facts)
