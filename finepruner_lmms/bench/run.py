"""The bench from a checked request to its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from finepruner_lmms.bench.asking import Asking
from finepruner_lmms.bench.measure import Bench
from finepruner_lmms.bench.prompts import random_prompts, scene_prompts
from finepruner_lmms.bench.record import Record
from finepruner_lmms.bench.request import Request
from finepruner_lmms.bench.roofline import measure_device
from finepruner_lmms.bench.shapes import random_llava
from finepruner_lmms.checkpoints.load import load_model
from finepruner_lmms.errors import FieldError


def run(request: Request, note: Callable[[str], None] = lambda _: None) -> Record:
    """Measure all that is asked for; `note` is told what is under way."""
    note("what the device can do")
    device = measure_device(request.device, request.dtype)
    note(f"the model {request.name}")
    processor: Any = None
    if request.like is not None:
        model = random_llava(request.like, request.device, request.dtype)
    else:
        model, processor = load_model(str(request.pretrained), dtype=request.dtype, device=request.device)
    figures, prompts = [], None
    for batch in request.batches:
        if processor is None:
            prompts = random_prompts(model, batch, request.text)
        else:
            prompts = scene_prompts(model, processor, batch)
        bench = Bench(Asking(model, prompts.questions), request.tokens, request.rounds, processor is None, note)
        try:
            figures += bench.measure(request.methods, request.executions, prompts)
        except torch.OutOfMemoryError as error:
            if not figures:
                raise FieldError(
                    "--batch", f"{batch} does not fit into memory", value=batch, fix="give less"
                ) from error
            note(f"batch {batch} does not fit into memory and is left out")
            break
    assert prompts is not None
    return Record(
        request.name,
        processor is None,
        prompts.text,
        prompts.visual,
        request.tokens,
        request.rounds,
        device,
        tuple(figures),
    )
