"""The measured speed of a cell, from what its processes spent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finepruner_lmms.lmms.meter import ImageUse, Spent, first_tokens, seconds_per_token
from finepruner_lmms.matrix.records import Conditions, Speed


def measured(
    spent: Sequence[Spent | None], device: str, dtype: str, batch_size: int, together: int = 1
) -> Speed | None:
    """The speed of a cell, from what each of its processes spent; None where none of them asked anything.

    Processes work side by side, so questions and tokens add up, and the slowest says how long it took.
    """
    parts = [part for part in spent if part is not None]
    if not parts:
        return None
    batches = [batch for part in parts for batch in part.batches]
    first, peaks = first_tokens(batches), [part.peak_bytes for part in parts if part.peak_bytes is not None]
    rows = sum(batch.rows for batch in batches)
    seconds = max(part.seconds for part in parts)
    model = max(sum(batch.seconds for batch in part.batches) for part in parts)
    waiting = [part.waiting for part in parts if part.waiting is not None]
    return Speed(
        questions=sum(part.questions for part in parts),
        batches=len(batches),
        seconds=seconds,
        questions_per_second=rows / seconds,
        model_questions_per_second=rows / model,
        first_token_p50=float(np.quantile(first, 0.5)) if first else None,
        first_token_p95=float(np.quantile(first, 0.95)) if first else None,
        seconds_per_token=seconds_per_token(batches),
        peak_bytes=max(peaks) if peaks else None,
        waiting=sum(waiting) / sum(part.seconds for part in parts) if len(waiting) == len(parts) else None,
        image_hits=ImageUse(
            sum(part.images.asked for part in parts), sum(part.images.encoded for part in parts)
        ).hit_rate,
        conditions=Conditions(
            device=device,
            dtype=dtype,
            processes=len(spent),
            batch_size=batch_size,
            execution=" and ".join(sorted({batch.execution for batch in batches})),
            together=together,
        ),
    )
