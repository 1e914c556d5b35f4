"""Everything that only a GPU can show, in a few minutes.

    python scripts/gpu_check.py --out gpu_check.json
    python scripts/gpu_check.py --sections device,prefill,decode
    python scripts/gpu_check.py --quick --device cpu          # the same code on small sizes, to try it

Needs the package, torch and transformers; `accelerate` and lmms-eval for the last section alone. Sections are
independent: one that fails is reported with its reason, and the others go on; each stops where its time is used up and
says what it left out. Models have random weights, so nothing is downloaded. What is found goes to `--out` (JSON,
written after each section) and to the standard output, with a table at the end: asked, found, and whether it passes.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms import testing
from finepruner_lmms.bench import record as bench_record
from finepruner_lmms.bench.asking import Answer, Asking, counted_waits, without_end
from finepruner_lmms.bench.clock import finish
from finepruner_lmms.bench.measure import Bench
from finepruner_lmms.bench.method import Method
from finepruner_lmms.bench.promise import promise
from finepruner_lmms.bench.prompts import Prompts, random_prompts
from finepruner_lmms.bench.roofline import measure_device
from finepruner_lmms.bench.shapes import random_llava
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.engine.fixed.programs import forget_programs
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.image_chunks import ChunkEncoder
from finepruner_lmms.engine.parts import decoder_layers
from finepruner_lmms.engine.vision_tower import encode_chunk
from finepruner_lmms.pruners import Pruner
from finepruner_lmms.pruners.registry import needs_budget
from finepruner_lmms.testing.capture import capture as capture_of
from finepruner_lmms.testing.capture import (
    capture_choice,
    choice_from,
    random_images,
    random_state,
    reduction_of,
)
from finepruner_lmms.testing.families import FAMILIES, family_prompts, tiny_model
from finepruner_lmms.testing.ways import every_way

STEPS = 32
MIXES: dict[str, tuple[tuple[int, int] | int, ...]] = {
    "one prompt": ((5, 7),),
    "prompts of one length": ((5, 7), (5, 7), (5, 7)),
    "any mix": ((5, 7), 11, (2, 4), (8, 1)),
}


class Skipped(Exception):
    """A section that cannot run here, and why."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table at the end; `passed` is None where nothing was asked or nothing could be found."""

    figure: str
    asked: str
    found: str
    passed: bool | None


# -- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """What the sections share: the device, the sizes, the large model, the time that is left, and what was found."""

    def __init__(self, device: torch.device, quick: bool, out: Path | None) -> None:
        self.device, self.quick, self.out = device, quick, out
        self.on_gpu = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.shape = "tiny" if quick else "llava-1.5-7b"
        self.rounds = 1 if quick else 7
        self.facts: list[dict[str, Any]] = []
        self.lines: list[Line] = []
        self.sections: list[dict[str, Any]] = []
        self._model: Any = None
        self._ends, self._section = 0.0, ""
        self._left_out = 0

    @property
    def model(self) -> Any:
        """A LLaVA of the published shape (in a quick run: tiny) with random weights, made when it is first needed."""
        if self._model is None:
            self._model = random_llava(self.shape, self.device, self.dtype)
        return self._model

    @property
    def visual(self) -> int:
        """Visual tokens of an image of the large model."""
        return Geometry.of(self.model.config).num_visual_tokens

    def pruner(self, name: str, of_576: int | None = None, **parameters: Any) -> Pruner:
        """A method at a budget, given for 576 visual tokens; on a small model, at half of the tokens."""
        if of_576 is None:
            return fp.build_pruner(name, **parameters)
        return fp.build_pruner(name, budget=of_576 if self.visual == 576 else self.visual // 2, **parameters)

    def begin(self, section: str, seconds: float) -> None:
        """A section starts."""
        self._section, self._ends, self._left_out = section, time.monotonic() + seconds, 0

    def within(self, items: Iterable[Any]) -> Iterator[Any]:
        """Items, as long as the section has time; what is left out is said."""
        waiting = list(items)
        for number, item in enumerate(waiting):
            if time.monotonic() > self._ends:
                self._left_out += len(waiting) - number
                self.say(left_out=len(waiting) - number, of=len(waiting), reason="the section's time is used up")
                return
            yield item

    def say(self, **facts: Any) -> None:
        """A fact, at once."""
        self.facts.append({"section": self._section, **facts})
        print(json.dumps(self.facts[-1], default=str), flush=True)

    def conclude(self, figure: str, asked: str, found: str, passed: bool | None) -> None:
        """A line of the table."""
        self.lines.append(Line(figure, asked, found, passed))

    def ask_all(self, figure: str, asked: str, found: str, passed: bool | None) -> None:
        """A line that asks for every case: it does not pass where time was too short for some."""
        if self._left_out:
            found, passed = f"{found}; {self._left_out} left out", passed and None
        self.conclude(figure, asked, found, passed)

    def ask_ratio(self, figure: str, least: float, found: float | None) -> None:
        """A line that asks for a ratio; what was measured on small sizes is shown and not judged."""
        text = "not measured" if found is None else f"{found:.2f}"
        judged = None if self.quick else found is not None and found >= least
        self.conclude(figure, f">= {least:g}", text, judged)

    def save(self) -> None:
        """Write what is known so far."""
        if self.out is not None:
            lines = [dataclasses.asdict(line) for line in self.lines]
            self.out.write_text(
                json.dumps({"sections": self.sections, "table": lines, "facts": self.facts}, indent=1, default=str)
            )

    def free(self) -> None:
        """Give memory back that nobody uses."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


SECTIONS: dict[str, tuple[Callable[[Run], None], float]] = {}
ORDER = (
    *(
        "device",
        "graphs_equality",
        "cpu_equality",
        "families",
        "prefill",
        "decode",
        "end_to_end",
        "batch32",
        "memory",
        "selection",
    ),
    *("capture", "waits", "vision", "drift", "bench", "sweep"),
)
"""What matters most comes first, in case time runs out."""


def section(seconds: float) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """A section by its function's name, and how long it may take."""

    def add(function: Callable[[Run], None]) -> Callable[[Run], None]:
        SECTIONS[function.__name__] = function, seconds
        return function

    return add


def needs_gpu(run: Run) -> None:
    """Raise `Skipped` without one."""
    if not run.on_gpu:
        raise Skipped("needs a CUDA device")


def variants(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Every method, and every way in which heads are chosen; in a quick run one of each kind."""
    if run.quick:
        names = ("vanilla", "fastv", "sparsevlm", "vispruner", "random")
        return [*((name, {}) for name in names), ("finepruner", {"head_strategy": "consensus"})]
    found: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in fp.METHODS]
    strategies = sorted({*fp.HEAD_STRATEGIES, "consensus"})
    found += [("finepruner", {"head_strategy": strategy}) for strategy in strategies]
    found += [("finepruner", {"guide": guide}) for guide in ("pdrop", "sparsevlm")]
    kept = []
    for name, parameters in found:
        if parameters.get("head_strategy") == "fixed":
            parameters = {**parameters, "fixed_heads": "0-1"}
        kept.append((name, parameters))
    return kept


def at_some_budget(name: str, parameters: dict[str, Any], share: str, layers: int, visual: int) -> Pruner | None:
    """The method, or None where the budget is out of its reach."""
    pruner = testing.build(name, budget=share, **parameters)
    try:
        pruner.schedule(layers, visual)
    except ValueError:
        return None
    return pruner


def named(name: str, parameters: dict[str, Any]) -> str:
    """For a line of output."""
    return " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])


def copied(model: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A copy of a small model on another device."""
    return copy.deepcopy(model).to(device, dtype)


def moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Inputs on another device."""
    return {name: value.to(device) for name, value in inputs.items()}


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, products of float32 are of float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# -- is it right ------------------------------------------------------------------------------------------------------


@section(15)
def device(run: Run) -> None:
    """The machine, and what it does at best."""
    found = measure_device(run.device, run.dtype)
    facts = dataclasses.asdict(found)
    if run.on_gpu:
        properties = torch.cuda.get_device_properties(run.device)
        facts |= {"memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        facts["cores"] = os.cpu_count()
    run.say(**facts)
    products = f"{found.flops / 1e12:.3g} TFLOP/s {found.dtype}, {found.flops_float32 / 1e12:.3g} float32"
    run.conclude(f"{found.name}", "", f"{products}; copies {found.bandwidth / 1e12:.3g} TB/s", None)


@section(30)
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


@section(30)
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


@section(50)
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


def kept_alike(ours: fp.Generation, theirs: fp.Generation) -> bool:
    """Whether both kept the same tokens, at every drop and in every row."""
    return all(
        torch.equal(a.cpu(), b.cpu())
        for layer, rows in ours.trace.kept.items()
        for a, b in zip(rows, theirs.trace.kept[layer], strict=True)
    )


def rounding_of(logits: torch.Tensor) -> float:
    """How far logits of this size may lie apart that differ in the order of their sums alone."""
    return testing.rounding(size=max(1.0, logits.abs().max().item()))["atol"]


def compare_tokens(plain: Any, sequences: torch.Tensor) -> tuple[bool, bool]:
    """Whether tokens are equal; if not, whether rows part where the two best logits differ by rounding alone."""
    ours, theirs = plain.sequences, sequences
    if ours.shape == theirs.shape and torch.equal(ours, theirs):
        return True, False
    length = min(ours.shape[1], theirs.shape[1])
    parted = False
    for row in range(len(ours)):
        differ = (ours[row, :length] != theirs[row, :length]).nonzero()
        if len(differ):
            best = plain.logits[int(differ[0])][row].topk(2).values
            if float(best[0] - best[1]) > 2 * rounding_of(plain.logits[int(differ[0])][row]):  # either may move
                return False, False
            parted = True
    return False, parted


@section(25)
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


def one_row(prompts: Prompts, row: int) -> dict[str, torch.Tensor]:
    """A row by itself; all are of one length."""
    return {name: value[row : row + 1] for name, value in prompts.from_pixels.items()}


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Shares of equal tokens and of equal first tokens, and after how many tokens rows part on average."""
    same = ours == theirs
    parts = same.int().cumprod(1).sum(1).double().mean().item()
    return {
        "equal_tokens": round(same.double().mean().item(), 3),
        "equal_first": round(same[:, 0].double().mean().item(), 3),
        "equal_until": round(parts, 1),
        "of": ours.shape[1],
        "distinct": len(set(ours.flatten().tolist())),
    }


# -- does the host wait -----------------------------------------------------------------------------------------------


@section(25)
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


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]


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


# -- how fast is it ---------------------------------------------------------------------------------------------------


def median_ms(call: Callable[[], Any], device: torch.device, times: int) -> float:
    """Milliseconds of a call, several of them in a row where the device works by itself."""
    call()
    taken = []
    for _ in range(times):
        finish(device)
        started = time.perf_counter()
        call()
        finish(device)
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


@section(30)
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


@section(40)
def selection(run: Run) -> None:
    """What choosing takes at batch 8 and LLaVA-1.5-7B's sizes, as a CUDA graph and as ordinary calls."""
    batch, times, visual = (2, 1, 64) if run.quick else (8, 10, 576)
    cases: list[tuple[str, dict[str, Any], int]] = [(n, p, 64) for n, p in variants(run) if n != "vanilla"]
    cases += [(name, {}, 192) for name in ("cdpruner", "divprune", "vispruner")]
    slow, missing, worst = {}, {}, 0.0
    for name, parameters, budget in run.within(cases):
        wanted = (budget, 192) if visual == 576 else ("50%", "75%")  # the second where a late drop cannot go as low
        found = (at_some_budget(name, parameters, str(share), 32, visual) for share in wanted)
        pruner = next(pruner for pruner in found if pruner is not None)
        label, limit = f"{named(name, parameters)} {budget}", 3.0 if (name, budget) == ("cdpruner", 192) else 1.0
        eager = graph = 0.0
        try:
            for choose in choices(run, pruner, batch, visual):
                eager += median_ms(choose, run.device, max(1, times // 3))
                graph += median_ms(capture_of(choose).replay if run.on_gpu else choose, run.device, times)
        except (RuntimeError, ValueError) as error:
            missing[label] = first_line(error)
            finish(run.device)
            continue
        run.say(method=label, batch=batch, eager_ms=round(eager, 3), graph_ms=round(graph, 3), limit_ms=limit)
        worst = max(worst, graph / limit)
        if graph > limit:
            slow[label] = round(graph, 2)
    run.say(slow=slow, not_captured=missing)
    text = ", ".join(f"{label}: {taken}" for label, taken in slow.items()) or f"all, the slowest at {worst:.0%} of it"
    text += f"; {len(missing)} not captured" if missing else ""
    judged = not slow and not missing if run.on_gpu and not run.quick else None
    run.ask_all(f"selection as a graph, batch {batch}", "<= 1 ms; cdpruner 192 <= 3 ms", text, judged)


def choices(run: Run, pruner: Pruner, batch: int, visual: int) -> Iterator[Callable[[], Any]]:
    """What a method computes to choose: of encoded images, and at each drop inside the language model."""
    before, inside = pruner.parts(visual)
    if before is not None:
        images = random_images(batch, 0, before.reads_question, str(run.device), visual=visual)
        half = ("features", "projected", "cls_projected")  # as a model gives them; attention and keys are float32
        images = images.replace(**{name: getattr(images, name).to(run.dtype) for name in half})
        visual = before.retained(visual)
        yield functools.partial(reduction_of, images, before)
    for stage in inside.stages(32, visual) if inside is not None else ():
        state = random_state(batch, 0, str(run.device), visual=visual)
        state |= {name: state[name].to(run.dtype) for name in ("hidden", "visual_embeds", "text_embeds")}
        yield functools.partial(choice_from, state, inside, stage.retained, stage.layer)
        visual = stage.retained + stage.merged


@section(15)
def vision(run: Run) -> None:
    """Tower and projector: a picture's time alone, in batches, and as one chunk that is captured."""
    for count in run.within((1, 2) if run.quick else (1, 8, 16, 32)):
        pixels = random_prompts(run.model, count, 60).pixels
        taken = median_ms(lambda pixels=pixels: fp.encode_images(run.model, pixels), run.device, run.rounds)
        run.say(pictures=count, execution="eager", ms=round(taken, 2), ms_a_picture=round(taken / count, 3))
        if run.on_gpu:
            graph = capture_of(lambda pixels=pixels: (encode_chunk(run.model, pixels).projected,))
            taken = median_ms(graph.replay, run.device, run.rounds)
            run.say(pictures=count, execution="graph", ms=round(taken, 2), ms_a_picture=round(taken / count, 3))
    encoder = ChunkEncoder(run.model)
    pictures = [encoder.prepare(pixel.cpu()) for pixel in random_prompts(run.model, encoder.size, 60).pixels]
    encoder.encode(pictures)
    taken = median_ms(lambda: encoder.encode(pictures), run.device, run.rounds)
    run.say(pictures=encoder.size, execution="chunk", ms=round(taken, 2), ms_a_picture=round(taken / encoder.size, 3))
    run.conclude("a picture in a chunk", "", f"{taken / encoder.size:.2f} ms (chunks of {encoder.size})", None)
    alone, together = encoder.encode(pictures[:1])[0], encoder.encode(pictures)[0]
    run.conclude(
        "a picture's features do not depend on its company", "equal",
        "equal" if torch.equal(alone.features, together.features) else "differ",
        bool(torch.equal(alone.features, together.features)),
    )  # fmt: skip


Subject = tuple[str, int | None, str]


def interleaved(
    run: Run, subjects: Sequence[Subject], ask: Callable[[Pruner, str], Answer], rounds: int
) -> dict[Subject, list[Answer]]:
    """Every subject once a round, after a round that does not count; those that fail say so and are left out."""
    found: dict[Subject, list[Answer]] = {}
    for subject in run.within(subjects):
        name, budget, execution = subject
        try:
            ran = [ask(run.pruner(name, budget), execution) for _ in range(2)][-1].execution
        except (RuntimeError, ValueError) as error:
            run.say(method=name, budget=budget, execution=execution, error=first_line(error))
            finish(run.device)
            continue
        if execution != ran:
            run.say(method=name, budget=budget, asked=execution, ran=ran, reason="left out")
            continue
        found[subject] = []
    for _ in run.within(range(rounds)):
        for (name, budget, execution), answers in found.items():
            answers.append(ask(run.pruner(name, budget), execution))
    return {subject: answers for subject, answers in found.items() if answers}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, rounded."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def faster(found: dict[Subject, list[Answer]], slow: Subject, fast: Subject, what: str) -> float | None:
    """How many times faster, by the medians of the rounds' ratios: what else the machine did hits both of a round."""
    if slow not in found or fast not in found:
        return None
    pairs = zip(found[slow], found[fast], strict=True)
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)


@section(35)
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


@section(45)
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


@section(40)
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


@section(40)
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


@section(30)
def memory(run: Run) -> None:
    """Peak memory of a pruned prefill above what is allocated before, next to vanilla's; recordings included."""
    needs_gpu(run)
    batch = 2 if run.quick else 8
    prompts, asking = random_prompts(run.model, batch, 60), Asking(run.model)
    names = ["vanilla", *(name for name in fp.METHODS if name != "vanilla")]
    for execution in ("eager", "graphs"):
        peaks: dict[str, float] = {}
        for name in run.within(names):
            more = {"relevance": "embedding"} if name == "cdpruner" else {}
            pruner = run.pruner(name, 64 if needs_budget(name) else None, **more)
            forget_programs(run.model)  # each pays for its own
            run.free()
            with without_end(run.model):
                try:
                    # the greatest use is at the first call, which also records
                    before = torch.cuda.memory_allocated(run.device)
                    torch.cuda.reset_peak_memory_stats(run.device)
                    asking(pruner, prompts.from_pixels, 1, execution)
                except (RuntimeError, ValueError) as error:
                    run.say(method=name, execution=execution, error=first_line(error))
                    continue
            peaks[name] = (torch.cuda.max_memory_allocated(run.device) - before) / 2**20
            run.say(method=name, execution=execution, batch=batch, peak_mib=round(peaks[name], 1))
        more_than = {name: round(peak) for name, peak in peaks.items() if peak > peaks.get("vanilla", float("inf"))}
        text = f"{more_than or 'none'} of {len(peaks) - 1} above vanilla's {peaks.get('vanilla', 0):.0f} MiB"
        run.ask_all(f"peak memory of a pruned prefill, {execution}", "never above vanilla", text, not more_than)


@section(45)
def bench(run: Run) -> None:
    """`finepruner bench` at these sizes, a short one; its table and picture: `finepruner bench --redraw`."""
    found_device = measure_device(run.device, run.dtype, 2)
    methods = [Method("vanilla", run.pruner("vanilla")), Method("fastv 64", run.pruner("fastv", 64))]
    rounds, tokens, executions = (1, 3, ("auto",)) if run.quick else (2, 8, ("eager", "graphs"))
    figures, prompts = [], None
    for batch in run.within((1,) if run.quick else (1, 32)):
        prompts = random_prompts(run.model, batch, 60)
        figures += Bench(Asking(run.model), tokens, rounds, random_weights=True).measure(methods, executions, prompts)
    assert prompts is not None
    result = bench_record.Record(
        run.shape, True, prompts.text, prompts.visual, tokens, rounds, found_device, tuple(figures)
    )
    for one in figures:
        run.say(
            method=one.method, execution=one.execution, batch=one.batch, first_ms=round(1e3 * one.first.median, 2),
            ms_a_token=round(1e3 * one.step.median, 2), per_second=round(one.per_second.median, 2),
            natural=round(one.natural.median, 2), waits=one.waits and [one.waits.first, one.waits.step],
        )  # fmt: skip
    if run.out is not None:
        bench_record.save(result, run.out.with_name("bench.json"))


@section(90)
def sweep(run: Run) -> None:
    """Two cells of the demo by `accelerate launch`, as a study runs them."""
    for library in ("lmms_eval", "accelerate", "datasets"):
        if importlib.util.find_spec(library) is None:
            raise Skipped(f"{library} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "sweep.yaml"
        config.write_text(
            "name: sweep\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope]\nlimit: 8\n"
            "methods: [vanilla, {method: fastv, budget: 64}]\nlaunch: {batch_size: 4}\n"
        )
        started = time.monotonic()
        command = [sys.executable, "-m", "finepruner_lmms.cli", "run", str(config), "--output", f"{folder}/out"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            printed, errors = process.communicate(timeout=80)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its worker
            printed, errors = process.communicate(timeout=20)
            errors = f"stopped after 80 s; {errors}"
    run.say(exit_status=process.returncode, seconds=round(time.monotonic() - started, 1), tail=printed[-600:])
    found = "done" if process.returncode == 0 else errors.strip()[-200:]
    run.conclude("a small sweep by accelerate launch", "runs", found, process.returncode == 0)


# -- the command ------------------------------------------------------------------------------------------------------


def check(run: Run, names: Sequence[str], minutes: float = 4.0) -> bool:
    """Run sections, each by itself; returns whether none failed and nothing fell short."""
    started = time.monotonic()
    for name in names:
        function, seconds = SECTIONS[name]
        began, state, reason = time.monotonic(), "done", ""
        left = 60 * minutes - (began - started)
        run.begin(name, min(left, 20 if run.quick else seconds))
        try:
            if left < 0:
                raise Skipped(f"the {minutes:g} minutes are used up")
            with torch.no_grad():
                function(run)
        except Skipped as error:
            state, reason = "skipped", str(error)
        except Exception as error:  # noqa: BLE001 - a section may fail in any way, and the others go on
            state, reason = "failed", first_line(error)
            traceback.print_exc()
        if run.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        run.free()
        taken = round(time.monotonic() - began, 1)
        run.sections.append({"section": name, "state": state, "reason": reason, "seconds": taken})
        run.say(state=state, reason=reason, seconds=taken)
        run.save()
    print(f"\n{summary(run)}\n{time.monotonic() - started:.0f} s in all", flush=True)
    return all(one["state"] != "failed" for one in run.sections) and all(line.passed is not False for line in run.lines)


def shortened(text: str, most: int = 110) -> str:
    """So that a table stays one; the facts say it all."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def summary(run: Run) -> str:
    """The table of what was asked, and what became of each section."""
    words = {True: "pass", False: "FAIL", None: "-"}
    rows = [("figure", "asked", "found", "")]
    rows += [(line.figure, line.asked, shortened(line.found), words[line.passed]) for line in run.lines]
    rows += [
        (f"section {one['section']}", "", shortened(f"{one['state']}: {one['reason']}"), "FAIL")
        for one in run.sections
        if one["state"] != "done"
    ]
    rows = [(*row[:3], "-") if row[2].startswith("skipped") else row for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where everything that was asked for was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for all that is found")
    parser.add_argument("--sections", default=",".join(ORDER), help="separated by commas: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=4.0, help="sections begin no later (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: to try the script itself")
    given = parser.parse_args(arguments)
    names = given.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--sections: unknown {unknown[0]!r}; known: {', '.join(SECTIONS)}")
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch sees no GPU; use --device cpu --quick")
    if device.type == "cpu" and not given.quick:
        parser.error("--device cpu: the full sizes take hours there; add --quick")
    return 0 if check(Run(device, given.quick, given.out), names, given.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
