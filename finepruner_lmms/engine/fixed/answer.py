"""A batch from prompts to tokens on fixed buffers, without waiting for the device in between."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.clock import Clock
from finepruner_lmms.engine.fixed.decoding import Decoding, Ending
from finepruner_lmms.engine.fixed.programs import Program, programs_of, segment_widths
from finepruner_lmms.engine.fixed.shape import Shape, left_padded, round_up
from finepruner_lmms.engine.prompt_layout import Layout
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.pruners.base import Pruner

AHEAD = 2
"""So many steps the host goes ahead of the device before it looks whether all rows have ended."""
_ROOM_STEP = 16


@dataclass(frozen=True)
class Prompts:
    """A batch on the host: `ids` and `valid` `[B, L]`, left-padded, and their layout.

    `tokens` `[images, visual, D]` are the visual tokens of the rows that show an image, in order, on the device.
    """

    ids: Tensor
    valid: Tensor
    layout: Layout
    tokens: Tensor | None
    visual: int


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration,
    pruner: Pruner,
    prompts: Prompts,
    ending: Ending,
    max_new_tokens: int,
    clock: Clock,
    want_logits: bool = False,
) -> tuple[Tensor, list[Tensor] | None, Trace]:
    """The new tokens `[B, T]`, padded where a row has ended; their logits, T of `[B, V]`, if wanted; and the trace."""
    programs, layout = programs_of(model), prompts.layout
    shape = Shape.of(layout, prompts.visual)
    batch = len(prompts.ids)
    with programs.one_batch():
        program = programs.find(model, pruner, shape, round_up(max_new_tokens, _ROOM_STEP), ending)
        _load(program, prompts, shape)
        program.run_prefill()
        clock.mark()
        trace = program.prefill.trace.copied(slice(0, batch))
        tokens, logits = _decode(program, batch, max_new_tokens, want_logits)
    stages = pruner.stages(trace.num_layers, shape.visual) if shape.visual else ()
    widths = segment_widths(stages, (layout.lengths, layout.visual_counts, layout.tails))
    lengths = [max(width for width in widths if width[0] <= layer)[1] for layer in range(trace.num_layers)]
    return tokens, logits, replace(trace, has_image=layout.has_image, kv_lengths=lengths)


def _load(program: Program, prompts: Prompts, shape: Shape) -> None:
    """Copy a batch into the buffers; the rows beyond it repeat its first."""
    prefill, decoding, batch = program.prefill, program.decoding, len(prompts.ids)
    ids, valid = left_padded(prompts.ids, shape, 0), left_padded(prompts.valid, shape, False)
    idle = torch.arange(shape.rows) >= batch
    for buffer, values in ((prefill.ids, ids), (prefill.valid, valid), (decoding.idle, idle)):
        upload(values, buffer)
    if shape.visual and prompts.tokens is not None:
        rows = [row for row, shown in enumerate(prompts.layout.has_image) if shown]
        if len(rows) == batch:
            prefill.features[:batch].copy_(prompts.tokens)
        else:
            for image, row in enumerate(rows):
                prefill.features[row].copy_(prompts.tokens[image])
        prefill.features[batch:].copy_(prefill.features[:1].expand(shape.rows - batch, -1, -1))


def upload(values: Tensor, buffer: Tensor) -> None:
    """Copy `values` on the host into `buffer`, without waiting where that is a GPU's."""
    buffer.copy_(values.pin_memory() if buffer.is_cuda else values, non_blocking=True)


def _decode(program: Program, batch: int, most: int, want_logits: bool) -> tuple[Tensor, list[Tensor] | None]:
    """Steps until all rows have ended, `most` tokens at most."""
    decoding, logits = program.decoding, []
    watch = _Watch(decoding, most)
    for made in range(1, most + 1):
        if want_logits:
            logits.append(decoding.logits[:batch].clone())
        watch.look(made)
        if made == most or watch.all_ended(made - AHEAD):
            break
        program.run_step()
    length = watch.length(made)
    return decoding.tokens[:batch, :length].clone(), logits[:length] if want_logits else None


class _Watch:
    """How many rows go on after each token, as the host comes to know of it."""

    def __init__(self, decoding: Decoding, most: int) -> None:
        self._source, self._on_gpu = decoding.unfinished, decoding.unfinished.is_cuda
        self._counts = torch.zeros(most, dtype=torch.long, pin_memory=self._on_gpu)
        self._events: list[torch.cuda.Event] = []

    def look(self, made: int) -> None:
        """Ask for the count after `made` tokens, without waiting for it."""
        self._counts[made - 1 : made].copy_(self._source, non_blocking=True)
        if self._on_gpu:
            self._events.append(torch.cuda.current_stream(self._source.device).record_event())

    def all_ended(self, made: int) -> bool:
        """Whether all rows had ended after `made` tokens."""
        if not self._on_gpu:
            made += AHEAD
        return made > 0 and self._count(made) == 0

    def length(self, made: int) -> int:
        """After how many of `made` tokens all rows had ended; `made` if they have not."""
        return next((token for token in range(1, made) if self._count(token) == 0), made)

    def _count(self, made: int) -> int:
        if self._on_gpu:
            self._events[made - 1].synchronize()
        return int(self._counts[made - 1])
