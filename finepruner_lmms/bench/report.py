"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.bench.clock import Spread
from finepruner_lmms.bench.gains import Gain, first_gain, prefill_gain, roofline_share, total_gain
from finepruner_lmms.bench.measure import Figures
from finepruner_lmms.bench.record import Record
from finepruner_lmms.output import markdown as escaped


def markdown(record: Record) -> str:
    """Tables of what was measured, and of what was promised and realised, with the machine and what the words mean."""
    device = record.device
    machine = (
        f"{device.name} ({device.kind}), torch {device.torch}, transformers {device.transformers}, Python "
        f"{device.python}; measured in this run: {device.flops / 1e12:.3g} TFLOP/s ({device.dtype}), "
        f"{device.flops_float32 / 1e12:.3g} TFLOP/s (float32), {device.bandwidth / 1e9:.4g} GB/s of copies"
    )
    weights = "random weights of this shape" if record.random_weights else "its own weights"
    parts = [
        f"# {escaped(record.model)}: {escaped(device.name)}\n",
        f"{escaped(machine)}.\n",
        f"{weights.capitalize()}; {record.text:.0f} text and {record.visual} visual tokens; methods were asked "
        f"in turn, each {record.rounds} times; medians, in brackets the 5th and 95th percentile. Times are of a whole "
        "batch, in milliseconds.\n",
    ]
    for batch in record.batches:
        rows = record.of_batch(batch)
        parts += [f"## Batch {batch}\n", _measured(record, rows), _promised(record, rows)]
    parts.append(_words(record))
    return "\n".join(parts)


def _measured(record: Record, rows: Sequence[Figures]) -> str:
    head = (
        "method", "execution", "vision", "selection", "prefill", "first token p50 / p95", "a token",
        f"questions/s, {record.tokens} tokens", "questions/s, natural", "peak MiB", "waits: first + a step",
    )  # fmt: skip
    body = [
        (
            one.method,
            one.execution,
            _ms(one.vision),
            "–" if one.selection is None else _ms(one.selection),
            _ms(one.prefill),
            f"{1e3 * one.first.median:.4g} / {1e3 * one.first.p95:.4g}",
            _ms(one.step),
            _plain(one.per_second),
            f"{_plain(one.natural)}, {one.natural_tokens:.1f} tokens",
            "–" if one.peak is None else f"{one.peak / 2**20:.0f}",
            "–" if one.waits is None else f"{one.waits.first} + {one.waits.step:.3g}",
        )
        for one in rows
    ]
    return _table(head, body)


def _promised(record: Record, rows: Sequence[Figures]) -> str:
    head = (
        "method", "execution", "prefill: promised", "realised", "share", "first token: promised", "realised", "share",
        f"{record.tokens} tokens: promised", "realised", "share", "roofline ms: vision + prefill + a token",
        "reached: prefill, a token",
    )  # fmt: skip
    body = []
    for one in rows:
        gains = [_gain(gain(record, one)) for gain in (prefill_gain, first_gain, total_gain)]
        parts = (one.promise.vision, one.promise.prefill, one.promise.step)
        best = " + ".join(f"{1e3 * part.seconds(record.device):.3g}" for part in parts)
        reached = ", ".join(f"{share:.0%}" for share in roofline_share(record, one))
        body.append((one.method, one.execution, *(cell for cells in gains for cell in cells), best, reached))
    return _table(head, body)


def _words(record: Record) -> str:
    return (
        "*vision*: tower and projector. *selection*: the method's choice alone, run eagerly. *prefill*: from encoded "
        "images to the first token. *first token*, *questions/s*: from pixels. *natural*: "
        f"{escaped(record.natural)}. *peak*: above what was allocated before the first call, of the first call. "
        "*promised*: "
        "speed-up over vanilla by the exact operations of prefill (and tower), and for whole answers by the roofline: "
        "each part takes operations ÷ the measured product rate, or bytes of weights and cache ÷ the measured copy "
        "rate, whichever is longer. *share*: realised ÷ promised. *reached*: roofline time ÷ measured time.\n"
    )


def _ms(spread: Spread) -> str:
    return _plain(Spread(1e3 * spread.median, 1e3 * spread.p5, 1e3 * spread.p95, spread.samples))


def _plain(spread: Spread) -> str:
    return f"{spread.median:.4g} ({spread.p5:.4g}–{spread.p95:.4g})"


def _gain(gain: Gain) -> tuple[str, str, str]:
    return f"{gain.promised:.2f}×", f"{gain.realised:.2f}×", f"{gain.share:.2f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(map(escaped, line)) + " |\n" for line in lines)
