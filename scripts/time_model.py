"""Print the model of time behind `plan`: what it assumes, how far it is from measurements, and a sweep on eight H100s.

    python scripts/time_model.py [--write docs/appendix/time_model.md]

These are the tables of docs/appendix/time_model.md. Nothing is measured here: the measured column was, on one H100.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import finepruner_lmms as fp
from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.engine.cost import DecoderSizes
from finepruner_lmms.engine.roofline import (
    EAGER,
    GRAPHS,
    H100,
    Execution,
    Figure,
    Sizes,
    image_seconds,
    prefill_seconds,
    step_seconds,
)
from finepruner_lmms.matrix.cell_time import CELL, Asked, Launched, cell_parts
from finepruner_lmms.matrix.estimate import NODE, START
from finepruner_lmms.matrix.workloads import WORKLOADS

LLAVA_7B = Sizes(DecoderSizes(4096, 11008, 4096, 4096), 32, 32064, 576, 24, 1024, 4096)
TEXT = 60
"""Text tokens of the measured prompts."""
ROWS: dict[str, int | None] = {
    "vanilla": None, "fastv 192": 192, "fastv 128": 128, "fastv 64": 64, "pdrop 64": 64, "sparsevlm 64": 64,
}  # fmt: skip
BATCH, GPUS = 16, 8


@dataclass(frozen=True)
class Point:
    """A measured time and the model's, both in ms; `within` is how far apart they may be, as a share."""

    what: str
    measured: float
    predicted: Callable[[], float]
    within: float | None = None
    """None where the model is known to miss."""
    unit: str = "ms"


def schedule(row: str) -> tuple[int, ...]:
    """The visual tokens entering each layer."""
    return tuple(fp.build_pruner(row.split()[0], budget=ROWS[row]).schedule(LLAVA_7B.layers, LLAVA_7B.visual))


def lengths(row: str) -> list[int]:
    """All tokens entering each layer."""
    return [TEXT + visual for visual in schedule(row)]


def prefill(row: str, batch: int, execution: Execution = EAGER) -> float:
    """The decoder's, in ms."""
    return 1e3 * prefill_seconds(LLAVA_7B, H100, execution, lengths(row), batch)


def tower(images: int, execution: Execution = EAGER) -> float:
    """Of images encoded together, in ms."""
    return 1e3 * image_seconds(LLAVA_7B, H100, execution, images)


def step(row: str, batch: int, execution: Execution) -> float:
    """A decode step, in ms."""
    return 1e3 * step_seconds(LLAVA_7B, H100, execution, lengths(row), batch)


def questions(row: str, batch: int, new_images: bool = True) -> float:
    """Questions per second of the miniature TextVQA with 8 new tokens, eagerly, images one by one."""
    seconds = prefill(row, batch) + 7 * step(row, batch, EAGER) + (batch * tower(1) if new_images else 0.0)
    return batch / (seconds / 1e3 + batch * EAGER.host_question.value)


def points() -> Iterator[Point]:
    """What was measured on one H100 before graphs, and with the first prototype of them."""
    for images, measured in ((1, 11), (8, 17), (32, 37)):
        yield Point(f"tower, {_pictures(images)}", measured, lambda n=images: tower(n), 0.1)
    for row, measured, within in (
        ("vanilla", 20.5, 0.1), ("fastv 128", 11.0, 0.2), ("fastv 64", 10.3, 0.1), ("pdrop 64", 10.9, 0.2),
        ("sparsevlm 64", 11.6, 0.2),
    ):  # fmt: skip
        yield Point(f"prefill, batch 1, one graph: {row}", measured, lambda r=row: prefill(r, 1, GRAPHS), within)
    for row, measured, within in (
        ("vanilla", 609, 0.1), ("fastv 128", 186, 0.1), ("fastv 64", 126, 0.1), ("pdrop 64", 126, 0.1),
        ("sparsevlm 64", 133, 0.2),
    ):  # fmt: skip
        yield Point(f"prefill, batch 32: {row}", measured, lambda r=row: prefill(r, 32), within)
    for batch, row, measured, within in (
        (8, "vanilla", 173, 0.1), (8, "fastv 128", 74, 0.2), (8, "sparsevlm 64", 50, 0.1), (8, "pdrop 64", 82, None),
        (32, "vanilla", 645, 0.1), (32, "fastv 128", 221, 0.1), (32, "fastv 64", 163, 0.1), (32, "pdrop 64", 162, 0.1),
        (32, "sparsevlm 64", 169, 0.1),
    ):  # fmt: skip
        yield Point(
            f"from pixels, batch {batch}: {row}", measured, lambda r=row, b=batch: prefill(r, b) + tower(b), within
        )
    for row, measured in (("fastv 64", 36.2), ("sparsevlm 64", 62)):
        yield Point(f"prefill, batch 1, eager: {row}", measured, lambda r=row: prefill(r, 1))
    for row, batch, execution, measured, within in (
        ("vanilla", 1, EAGER, 27.5, 0.1), ("fastv 64", 16, EAGER, 27.5, 0.1), ("vanilla", 1, GRAPHS, 8.2, 0.2),
        ("vanilla", 16, GRAPHS, 11.0, 0.1), ("fastv 64", 16, GRAPHS, 9.7, 0.1),
    ):  # fmt: skip
        what = f"decode step, batch {batch}, {execution.name}: {row}"
        yield Point(what, measured, lambda r=row, b=batch, e=execution: step(r, b, e), within)
    for row, batch, new, measured, within in (
        ("vanilla", 1, True, 4.7, 0.2), ("fastv 64", 1, True, 4.7, 0.2), ("vanilla", 16, True, 18.6, 0.1),
        ("fastv 64", 16, True, 29.3, 0.1), ("vanilla", 16, False, 25.3, 0.1),
    ):  # fmt: skip
        what = f"questions, batch {batch}, images {'new' if new else 'known'}: {row}"
        yield Point(what, measured, lambda r=row, b=batch, n=new: questions(r, b, n), within, "per second")


def fast_points() -> Iterator[Point]:
    """What was measured of the package's own graphs, in another run."""
    for images, measured in ((1, 2.39), (8, 9.59), (32, 36.0)):
        yield Point(f"tower as a graph, {_pictures(images)}", measured, lambda n=images: tower(n, GRAPHS), 0.2)
    for row, measured in (("vanilla", 538), ("fastv 128", 164), ("fastv 64", 112)):
        yield Point(f"prefill, batch 32, graphs: {row}", measured, lambda r=row: prefill(r, 32, GRAPHS), 0.2)
    for row, batch, measured in (
        ("vanilla", 1, 12.7), ("fastv 64", 1, 14.4), ("vanilla", 16, 45.4), ("fastv 64", 16, 119),
    ):  # fmt: skip
        what = f"questions from pixels, 8 tokens, batch {batch}, graphs: {row}"
        yield Point(what, measured, lambda r=row, b=batch: replayed(r, b), 0.2, "per second")


def replayed(row: str, batch: int) -> float:
    """Questions per second from pixels to 8 tokens, without what lmms-eval adds."""
    return 1e3 * batch / (tower(batch, GRAPHS) + prefill(row, batch, GRAPHS) + 7 * step(row, batch, GRAPHS))


def _pictures(count: int) -> str:
    return f"{count} image{'s' * (count > 1)}"


def comparison() -> str:
    """Every measured point beside what the model says."""
    lines = ["| what | measured | model | off by |", "|:--|--:|--:|--:|"]
    for point in (*points(), *fast_points()):
        predicted = point.predicted()
        off = f"{100 * (predicted / point.measured - 1):+.0f} %"
        shown = f"**{off}**" if point.within is None else off
        lines.append(f"| {point.what} | {point.measured:g} {point.unit} | {predicted:.1f} | {shown} |")
    return "\n".join(lines) + "\n"


def sweep() -> str:
    """Seconds per benchmark and method."""
    shown = ["vanilla", "fastv 192", "fastv 128", "fastv 64", "sparsevlm 64"]
    lines = ["| benchmark | questions | vanilla, eager |" + "".join(f" {row} |" for row in shown)]
    lines.append("|:--|--:|--:|" + "--:|" * len(shown))
    totals = [0.0] * (1 + len(shown))
    for task, work in WORKLOADS.items():
        ways = [("vanilla", EAGER)] + [(row, GRAPHS) for row in shown]
        seconds = [
            cell_parts(LLAVA_7B, Asked(task, schedule(row)), Launched(GPUS, BATCH, H100, execution)).total
            for row, execution in ways
        ]
        totals = [total + one for total, one in zip(totals, seconds, strict=True)]
        cells = "".join(f" {one:.0f} |" for one in seconds)
        lines.append(f"| {BENCHMARKS[task].title} | {work.questions.value:,.0f} |{cells}")
    lines.append("| **all, minutes** | |" + "".join(f" **{total / 60:.1f}** |" for total in totals))
    return "\n".join(lines) + "\n"


def assumptions() -> str:
    """Every number that the model rests on."""
    lines = ["| number | of | from |", "|--:|:--|:--|"]
    figures: list[Figure] = [H100.flops, H100.bandwidth, H100.compute_share, H100.bandwidth_share]
    for way in (EAGER, GRAPHS):
        figures += [_named(way, one) for one in (way.layer, way.host_layer, way.host_tower_layer)]
        figures += [_named(way, one) for one in (way.images_at_once, way.host_question)]
    for figure in (*figures, CELL, START, NODE):
        lines.append(f"| {_value(figure)} | {figure.means} | {figure.source} |")
    return "\n".join(lines) + "\n"


def workloads() -> str:
    """How much each benchmark is taken to ask."""
    lines = ["| benchmark | questions | images | text tokens | steps of a batch of 16 |", "|:--|--:|--:|--:|--:|"]
    for task, work in WORKLOADS.items():
        parts = (work.questions, work.images, work.text, work.steps)
        lines.append(f"| {BENCHMARKS[task].title} |" + "".join(f" {part.value:,.0f} |" for part in parts))
    return "\n".join(lines) + "\n"


def _named(way: Execution, figure: Figure) -> Figure:
    return Figure(figure.value, figure.unit, f"{way.name}: {figure.means}", figure.source)


def _value(figure: Figure) -> str:
    if figure.unit == "s" and figure.value < 0.1:
        return f"{1e3 * figure.value:.3g} ms"
    if figure.value >= 1e11:
        return f"{figure.value / 1e12:g} T{figure.unit}"
    return f"{figure.value:g} {figure.unit}".strip()


def write(page: Path) -> None:
    """Put the tables in the place of those that a page holds."""
    text = page.read_text(encoding="utf-8")
    for table in (comparison(), sweep(), workloads(), assumptions()):
        start = text.index(table.splitlines()[0])
        text = text[:start] + table + text[text.index("\n\n", start) + 1 :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        for table in (comparison(), sweep(), workloads(), assumptions()):
            print(table)
