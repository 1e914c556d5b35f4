"""The measured speed of a cell, from the batches of its journal: every question once, of all processes and attempts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from finepruner_lmms.lmms.journal import Batch, Written
from finepruner_lmms.lmms.meter import ImageUse, first_tokens, seconds_per_token
from finepruner_lmms.matrix.records import Conditions, Speed


def measured(written: Written, dtype: str) -> Speed | None:
    """The speed of a cell; None where nothing was answered.

    Processes work side by side, so questions and tokens add up, and the slowest says how long it took. One attempt
    comes after the other, so their times add up. What was lost in a kill is not among them.
    """
    times = [batch.time for batch in written.batches]
    rows, seconds = sum(time.rows for time in times), _seconds(written.batches, "wall")
    model = _seconds(written.batches, "seconds")
    if not rows or not seconds or not model:
        return None
    first, peaks = first_tokens(times), [time.peak_bytes for time in times if time.peak_bytes is not None]
    waiting = [time.waiting for time in times if time.waiting is not None]
    origins = [batch.origin for batch in written.batches]
    most, asked = min(time.most for time in times), max(time.asked for time in times)
    return Speed(
        questions=len(written.answers),
        batches=len(times),
        attempts=len({origin.session for origin in origins}),
        seconds=seconds,
        questions_per_second=rows / seconds,
        model_questions_per_second=rows / model,
        first_token_p50=float(np.quantile(first, 0.5)) if first else None,
        first_token_p95=float(np.quantile(first, 0.95)) if first else None,
        seconds_per_token=seconds_per_token(times),
        peak_bytes=max(peaks) if peaks else None,
        waiting=sum(waiting) / sum(time.wall for time in times) if len(waiting) == len(times) else None,
        image_hits=ImageUse(sum(t.images.asked for t in times), sum(t.images.encoded for t in times)).hit_rate,
        conditions=Conditions(
            device=" and ".join(sorted({origin.device for origin in origins})),
            dtype=dtype,
            processes=max(origin.processes for origin in origins),
            batch_size=most,
            asked_batch_size=asked if most < asked else None,
            execution=" and ".join(sorted({time.execution for time in times})),
            together=max(time.together for time in times),
        ),
    )


def _seconds(batches: Sequence[Batch], name: str) -> float:
    """The sum over attempts of what the slowest process took."""
    spent: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for batch in batches:
        spent[batch.origin.session][batch.origin.rank] += getattr(batch.time, name)
    return sum(max(ranks.values()) for ranks in spent.values())
