"""Reading a prompt of any family: which images each row shows, and which of their tokens may be dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.families.family import Family, ImageSpan, Run
from finepruner_lmms.engine.prompt_layout import ImageGroup, Layout, Placeholders


def read_prompt(
    family: Family,
    config: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    arguments: Mapping[str, Any],
    copies: int = 1,
) -> Layout:
    """The layout of a prompt `[B, L]` with expanded placeholders; `arguments` (`Family.media`) describe its images.

    Of `copies` rows after each other, as beam search makes them, `arguments` describe one. Raises `FieldError` where
    placeholders and images do not fit each other, and for padding on the right or inside.
    """
    placeholders = family.placeholders(config)
    found = Placeholders.find(input_ids, attention_mask, placeholders.values())
    every = family.num_visual_tokens(config)
    if every is not None and set(found.counts) <= {0, every}:
        return found.layout(every)
    if not any(found.counts):
        return found.layout(0)
    videos = input_ids == placeholders["video"] if "video" in placeholders else torch.zeros_like(found.visual)
    rows = [_runs(*row) for row in zip(found.visual[::copies].cpu(), videos[::copies].cpu(), strict=True)]
    spans = iter(family.spans(config, [run for runs in rows for run in runs], arguments))
    images: list[_Image] = []
    for row, runs in enumerate(rows):
        place = 0
        for span in (span for _ in runs for span in next(spans)):
            images.append(_Image(row, place, span))
            place += span.length
    groups = _grouped(images, found, copies, input_ids.device)
    return found.layout(max(found.counts), groups)


@dataclass(frozen=True)
class _Image:
    row: int
    start: int  # its first placeholder among those of its row
    span: ImageSpan

    def places(self) -> Tensor:
        """Its visual tokens among the placeholders of its row."""
        own = torch.ones(self.span.length, dtype=torch.bool)
        own[list(self.span.separators)] = False
        return self.start + own.nonzero().squeeze(1)

    def ends(self, placeholders: int, tail: int) -> bool:
        """Whether its last token is a visual one and the last of the prompt."""
        last = self.span.length - 1
        return tail == 0 and self.start + last == placeholders - 1 and last not in self.span.separators


def _runs(visual: Tensor, video: Tensor) -> list[Run]:
    """The runs of consecutive placeholders of one kind in a row, `[L]` each."""
    columns = visual.nonzero().squeeze(1)
    if not len(columns):
        return []
    kinds = video[columns]
    breaks = ((columns.diff() != 1) | (kinds[1:] ^ kinds[:-1])).nonzero()
    ends = [*(breaks.squeeze(1) + 1).tolist(), len(columns)]
    starts = [0, *ends[:-1]]
    return [Run(end - start, bool(kinds[start])) for start, end in zip(starts, ends, strict=True)]


def _grouped(images: list[_Image], found: Placeholders, copies: int, device: torch.device) -> tuple[ImageGroup, ...]:
    """The images by what they have in common. They are numbered as `Encoded` has them: images first, then videos."""
    stills = [image for image in images if not image.span.video]
    numbers = {id(image): number for number, image in enumerate([*stills, *(i for i in images if i.span.video)])}
    by_size: dict[tuple[Any, ...], list[tuple[int, _Image]]] = {}
    for image in images:
        for copy in range(copies):
            span = image.span  # tiles with their new lines elsewhere fill other grids
            alike = span.num_visual_tokens, span.grid, span.separators
            by_size.setdefault(alike, []).append((image.row * copies + copy, image))
    order = sorted((row, numbers[id(image)]) for members in by_size.values() for row, image in members)
    several = len({row for row, _ in order}) < len(order)
    groups = []
    for (count, grid, _), members in by_size.items():
        if not count:
            continue
        members.sort(key=lambda member: member[0])  # stable: the images of a row stay in order
        rows = tuple(row for row, _ in members)
        told = [order.index((row, numbers[id(image)])) if several else row for row, image in members]
        groups.append(
            ImageGroup(
                num_visual_tokens=count,
                grid=grid,
                number=tuple(numbers[id(image)] for _, image in members),
                rows=rows,
                index=torch.tensor(rows).to(device),
                places=torch.stack([image.places() for _, image in members]).to(device),
                counts=(count,) * len(members),
                ends=tuple(image.ends(found.counts[row], found.tails[row]) for row, image in members),
                told=torch.tensor(told).to(device),
                told_of=len(order) if several else len(found.counts),
            )
        )
    return tuple(groups)
