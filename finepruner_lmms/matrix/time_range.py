"""Between what and what a predicted time lies: cells answered together at no loss, or the model of time at its worst.

Both ends stand beside the prediction in `plan`. For the lower one fan-out saves all that operations and bytes allow:
images encoded once, the layers before a first drop run once, weights read once per decode step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from finepruner_lmms.engine.cost import cache_bytes, prefill_flops
from finepruner_lmms.engine.roofline import Figure, Sizes, image_seconds
from finepruner_lmms.matrix.cell_time import CELL, Asked, Launched, cell_parts
from finepruner_lmms.matrix.workloads import workload

_POINTS = "of the times measured on one H100 at 8 questions or more at once, docs/appendix/time_model.md"
LEAST = Figure(0.88, "", "measured time by predicted, the smallest", f"prefill with graphs, vanilla; {_POINTS}")
MOST = Figure(1.67, "", "measured time by predicted, the largest", f"pdrop 64 from pixels in a busy minute; {_POINTS}")


def time_range(sizes: Sizes, cells: Iterable[Asked], how: Launched, together: bool) -> tuple[float, float]:
    """The ends of the range in parts of the predicted time of all cells, each predicted alone.

    `together`: whether cells of a task may be answered at once.
    """
    groups: dict[str, list[Asked]] = {}
    for asked in cells:
        groups.setdefault(asked.task, []).append(asked)
    times: dict[Asked, float] = {}  # thousands of rows have few schedules
    alone = 0.0
    for asked in (one for group in groups.values() for one in group):
        if asked not in times:
            times[asked] = cell_parts(sizes, asked, how).total
        alone += times[asked]
    least = sum(together_seconds(sizes, group, how) for group in groups.values()) if together else alone
    return LEAST.value * min(1.0, least / alone), MOST.value


def together_seconds(sizes: Sizes, cells: Sequence[Asked], how: Launched) -> float:
    """The least that one process can take for cells of one task, answered at once for each batch of questions."""
    work, share, machine = workload(cells[0].task), cells[0].questions, how.machine
    batch = min(how.batch_size, share)
    batches, text = share / batch, round(work.text.value)
    images = share * work.images.value / work.questions.value
    chunk = max(1, min(int(how.execution.images_at_once.value), how.batch_size))
    vision = images / chunk * image_seconds(sizes, machine, how.execution, chunk)
    rows = _counted([text + tokens for tokens in one.visual] for one in cells)
    whole = text + sizes.visual
    prefill = 0.0
    for layer in range(sizes.layers):
        # rows that have dropped nothing yet are one
        operations = sum(times * prefill_flops(sizes.decoder, [row[layer]]) for row, times in rows.items()
                         if min(row[: layer + 1]) < whole)  # fmt: skip
        if any(min(row[: layer + 1]) == whole for row in rows):
            operations += prefill_flops(sizes.decoder, [whole])
        arithmetic = batch * operations / machine.flops_per_second
        prefill += max(arithmetic, sizes.layer_bytes / machine.bytes_per_second) + how.execution.layer.value
    steps = sum(times * sizes.step_flops(sum(row) / len(row)) for row, times in rows.items())
    caches = sum(times * cache_bytes(sizes.decoder, row, sizes.element_bytes) for row, times in rows.items())
    read = (sizes.decoder_bytes + batch * caches) / machine.bytes_per_second
    step = max(batch * steps / machine.flops_per_second, read) + sizes.layers * how.execution.layer.value
    model = vision + batches * (prefill + (work.steps.value - 1) * step)
    host = share * how.execution.host_question.value
    return len(cells) * CELL.value + (max(model, host) if how.execution.overlapped else model + host)


def _counted(rows: Iterable[Sequence[int]]) -> Mapping[tuple[int, ...], int]:
    """How many rows have these lengths."""
    found: dict[tuple[int, ...], int] = {}
    for row in map(tuple, rows):
        found[row] = found.get(row, 0) + 1
    return found
