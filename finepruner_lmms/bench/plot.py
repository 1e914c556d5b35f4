"""The figures as a picture: where the time of an answer goes, and how much of the promise is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finepruner_lmms.bench.gains import prefill_gain, total_gain
from finepruner_lmms.bench.measure import Figures
from finepruner_lmms.bench.record import Record
from finepruner_lmms.output import mathtext

_VISION, _PREFILL, _DECODE = "#56B4E9", "#0072B2", "#E69F00"
_FIRST, _WHOLE = "#0072B2", "#D55E00"


def draw(record: Record, target: Path) -> None:
    """Write the picture to `target`: a row per batch size; times on the left, speed-ups on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    batches = record.batches
    heights = [len(record.of_batch(batch)) for batch in batches]
    figure, grid = plt.subplots(
        len(batches),
        2,
        figsize=(12.5, 1.9 + sum(0.34 * height + 0.75 for height in heights)),
        height_ratios=[height + 1.5 for height in heights],
        squeeze=False,
        layout="constrained",
    )
    for (times, speeds), batch in zip(grid, batches, strict=True):
        rows = record.of_batch(batch)
        _times(times, record, rows, batch)
        _speeds(speeds, record, rows)
    handles, labels = grid[0][0].get_legend_handles_labels()
    more = grid[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    figure.legend(*more, loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(
        mathtext(
            f"{record.model} on {record.device.name}, {record.device.dtype}: {record.text:.0f} text + {record.visual} "
            f"visual tokens, {record.tokens} new tokens"
        ),
        x=0.01,
        ha="left",
        fontsize=11,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    plt.close(figure)


def _label(one: Figures, rows: list[Figures]) -> str:
    several = len({other.execution for other in rows}) > 1
    return mathtext(f"{one.method}, {one.execution}" if several else one.method)


def _times(axes: Any, record: Record, rows: list[Figures], batch: int) -> None:
    """Bars: tower, then what else there is until the first token, then decoding; a mark for the roofline."""
    places = range(len(rows))
    vision = [1e3 * min(one.vision.median, one.first.median) for one in rows]
    prefill = [1e3 * one.first.median - part for one, part in zip(rows, vision, strict=True)]
    decode = [1e3 * (one.total.median - one.first.median) for one in rows]
    both = [a + b for a, b in zip(vision, prefill, strict=True)]
    axes.barh(places, vision, color=_VISION, label="vision tower")
    axes.barh(places, prefill, left=vision, color=_PREFILL, label="selection, prefill")
    total = [1e3 * one.total.median for one in rows]
    errors = [
        [max(0.0, 1e3 * (one.total.median - one.total.p5)) for one in rows],
        [max(0.0, 1e3 * (one.total.p95 - one.total.median)) for one in rows],
    ]
    axes.barh(
        places, decode, left=both, color=_DECODE, label="decoding", xerr=errors, ecolor="0.35", capsize=2.5,
        error_kw={"linewidth": 1},
    )  # fmt: skip
    best = [1e3 * one.promise.seconds(record.device, record.tokens) for one in rows]
    axes.plot(best, places, "|", color="black", markersize=13, markeredgewidth=2, label="roofline")
    most = max(high + value for high, value in zip(errors[1], total, strict=True))
    for place, one, value, high in zip(places, rows, total, errors[1], strict=True):
        text = f"{one.per_second.median:.3g} questions/s"
        axes.text(value + high + 0.01 * most, place, text, va="center", fontsize=8, color="0.25")
    axes.set_xlim(0, 1.27 * most)
    axes.set_yticks(places, [_label(one, rows) for one in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_title(f"batch {batch}: ms for the whole batch, from pixels", loc="left", fontsize=10)
    _clean(axes)


def _speeds(axes: Any, record: Record, rows: list[Figures]) -> None:
    """Hollow: promised; filled: realised; the line between them is what is lost."""
    places = range(len(rows))
    kinds = (
        (prefill_gain, -0.16, _FIRST, "prefill"),
        (total_gain, 0.16, _WHOLE, f"{record.tokens} tokens from pixels"),
    )
    most = 1.0
    for gain, shift, color, name in kinds:
        gains = [gain(record, one) for one in rows]
        heights = [place + shift for place in places]
        promised, realised = [one.promised for one in gains], [one.realised for one in gains]
        most = max(most, *promised, *realised)
        axes.hlines(heights, promised, realised, color=color, alpha=0.45, linewidth=2)
        axes.plot(promised, heights, "o", color=color, markerfacecolor="white", label=f"{name}: promised")
        axes.plot(realised, heights, "o", color=color, label=f"{name}: realised")
        for height, one in zip(heights, gains, strict=True):
            axes.text(
                max(one.promised, one.realised) * 1.03 + 0.03, height, f"{one.share:.2f}", va="center", fontsize=7.5,
                color=color,
            )  # fmt: skip
    axes.axvline(1, color="0.6", linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.12 * most + 0.1)
    axes.set_yticks(places, [])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    several = len({one.execution for one in rows}) > 1
    base = "vanilla of the same execution" if several else "vanilla"
    axes.set_title(f"speed-up over {base}; numbers: realised ÷ promised", loc="left", fontsize=10)
    _clean(axes)


def _clean(axes: Any) -> None:
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
