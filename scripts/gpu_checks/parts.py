"""The machine, and what its parts take: choosing, the vision tower, memory."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms.bench.asking import Asking, without_end
from finepruner_lmms.bench.clock import finish
from finepruner_lmms.bench.prompts import random_prompts
from finepruner_lmms.bench.roofline import measure_device
from finepruner_lmms.engine.fixed.programs import forget_programs
from finepruner_lmms.engine.image_chunks import ChunkEncoder
from finepruner_lmms.engine.vision_tower import encode_chunk
from finepruner_lmms.pruners import Pruner
from finepruner_lmms.pruners.registry import needs_budget
from finepruner_lmms.testing.capture import capture as capture_of
from finepruner_lmms.testing.capture import choice_from, random_images, random_state, reduction_of
from gpu_checks.cases import at_some_budget, named, variants
from gpu_checks.clock import median_ms
from gpu_checks.run import Run, first_line, needs_gpu


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
