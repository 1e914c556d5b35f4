"""What happened in one call: which visual tokens were retained where, and how long each cache became."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from finepruner_lmms.errors import FieldError

if TYPE_CHECKING:
    from finepruner_lmms.engine.prompt_layout import Layout
    from finepruner_lmms.pruners.base import Reduction
    from finepruner_lmms.pruners.decoder_context import Selection


@runtime_checkable
class Details(Protocol):
    """What a method says of its choice, one record per row of the call."""

    def of_rows(self, rows: slice) -> Any:
        """The same of some rows."""


@dataclass(repr=False)
class Trace:
    """The record of one prefill.

    `keep_masks` maps the first decoder layer that sees fewer tokens to the kept ones, `[B, V]` bool (key 0 for
    vision-side methods): the placeholders of the row, then tokens that a method made. They stay on the device until
    somebody looks at `kept` or `tokens_entering`. `num_visual_tokens` is the most placeholders of a row: N where each
    row shows one image.
    """

    num_layers: int = 0
    num_visual_tokens: int = 0
    has_image: tuple[bool, ...] = ()
    keep_masks: dict[int, Tensor] = field(default_factory=dict)
    kv_lengths: list[int] = field(default_factory=list)
    """Cache length of each layer after prefill, in tokens (padding included)."""
    chosen_heads: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By layer, where heads were selected: `[B, heads]`, best first, -1 for none; and every head's score `[B, H]`."""
    guides: dict[int, Tensor] = field(default_factory=dict)
    """By layer, `[B, m, V]`: what guided the choice, over the row's placeholders and then what a method made: the
    attention of the first m of `chosen_heads`, or else, m = 1, the scores of the tokens, where the method gave some."""
    merge_masks: dict[int, Tensor] = field(default_factory=dict)
    """By layer, `[B, V]` bool: the tokens that went into new ones there, where a method makes some."""
    details: dict[int, Any] = field(default_factory=dict)
    """By layer, what a method says of its choice (`consensus.Consensus`): `Details`, or a tensor with a row per row."""
    expected: dict[str, tuple[FieldError, Tensor]] = field(default_factory=dict)
    """What must hold, as a bool on the device, and the error if it does not; of every prefill under one `attach`."""
    counted: Tensor | None = None
    """`[B, V]`, where images are told apart: what budgets count of a row's placeholders. The rest are newlines."""
    entering: tuple[int, ...] = ()
    """And how many these are of each row."""

    def __repr__(self) -> str:
        """What was kept in short, on one line. Waits for the device."""
        rows, made = len(self.has_image), self.made
        shown = [row for row, has_image in enumerate(self.has_image) if has_image]
        told = [f"{rows} rows" if rows != 1 else "1 row"]
        if len(shown) < rows:
            told[0] += f", {len(shown)} with an image"
        told += [f"{self.num_visual_tokens} visual tokens"] if shown else []
        for layer, kept in self.kept.items():
            text = f"layer {layer}: kept {_range(len(kept[row]) for row in shown)}"
            if any(made[layer]):
                text += f", made {_range(made[layer][row] for row in shown)}"
            if layer in self.chosen_heads:
                text += f", by {_range((self.chosen_heads[layer][0] >= 0).sum(1).tolist())} heads"
            told.append(text)
        return f"Trace({'; '.join(told)})"

    @property
    def heads(self) -> Tensor | None:
        """`[B, heads]`, best first, where heads were selected: at the first drop."""
        return self.chosen_heads[min(self.chosen_heads)][0] if self.chosen_heads else None

    @property
    def head_scores(self) -> Tensor | None:
        """`[B, H]`, the score of every head, where heads were selected: at the first drop."""
        return self.chosen_heads[min(self.chosen_heads)][1] if self.chosen_heads else None

    @property
    def kept(self) -> dict[int, list[Tensor]]:
        """First layer that sees only these → per row the retained visual tokens, as ascending indices.

        They count every placeholder of the row in the order of the prompt, over all its images; newlines and
        separators, which always stay, are among them.
        """
        layers = sorted(self.keep_masks)
        masks = on_host([self.keep_masks[layer][:, : self.num_visual_tokens] for layer in layers])
        return {layer: [row.nonzero().squeeze(1) for row in mask] for layer, mask in zip(layers, masks, strict=True)}

    @property
    def merged(self) -> dict[int, list[Tensor]]:
        """Layer before which new tokens were made → per row the visual tokens that went into them, as `kept` has them.

        Tokens that a method made earlier, and merged again, are not listed.
        """
        layers = sorted(self.merge_masks)
        masks = on_host([self.merge_masks[layer][:, : self.num_visual_tokens] for layer in layers])
        return {layer: [row.nonzero().squeeze(1) for row in mask] for layer, mask in zip(layers, masks, strict=True)}

    @property
    def made(self) -> dict[int, list[int]]:
        """First layer that sees only these → per row, how many of its visual tokens a method made; see `kept`."""
        layers = sorted(self.keep_masks)
        counts = on_host([self.keep_masks[layer][:, self.num_visual_tokens :].sum(1) for layer in layers])
        return {layer: count.tolist() for layer, count in zip(layers, counts, strict=True)}

    @property
    def tokens_entering(self) -> list[list[int]]:
        """Per row, per layer: the visual tokens that enter it, of all images of the row, as budgets count them."""
        sums = on_host([self._budgeted(mask).sum(1) for mask in self.keep_masks.values()])
        counts = {layer: count.tolist() for layer, count in zip(self.keep_masks, sums, strict=True)}
        table = []
        for row, shown in enumerate(self.has_image):
            whole = self.entering[row] if self.entering else self.num_visual_tokens
            current, entering = whole if shown else 0, []
            for layer in range(self.num_layers):
                current = counts[layer][row] if layer in counts else current
                entering.append(current)
            table.append(entering)
        return table

    def start(self, num_layers: int, num_visual_tokens: int, has_image: tuple[bool, ...]) -> None:
        """Begin a new prefill: forget the previous one, but not what is still to be checked of it."""
        self.__init__(num_layers, num_visual_tokens, has_image, expected=self.expected)  # type: ignore[misc]

    def tell_images(self, layout: Layout) -> None:
        """That the images of this prefill are told apart, and what of them budgets count."""
        self.num_visual_tokens = layout.columns.shape[1]
        self.counted = torch.zeros_like(layout.present)
        entering = [0] * len(self.has_image)
        for group in layout.groups:
            self.counted[group.index[:, None], group.places] = True
            for row in group.rows:
                entering[row] += group.num_visual_tokens
        self.entering = tuple(entering)

    def _budgeted(self, mask: Tensor) -> Tensor:
        """Of the kept tokens `[B, V ...]`, those that budgets count; what a method made is among them."""
        if self.counted is None:
            return mask
        places = self.counted.shape[1]
        return torch.cat([mask[:, :places] & self.counted.to(mask.device), mask[:, places:]], dim=1)

    def expect(self, error: FieldError, holds: Tensor) -> None:
        """Remember to raise `error` unless `holds` (a bool on the device), without waiting for the device now."""
        if (known := self.expected.get(str(error))) is not None:
            holds = holds & known[1].to(holds.device)
        self.expected[str(error)] = error, holds

    def watch(self, what: str, values: Tensor, present: Tensor | None = None) -> None:
        """Remember to check that `values` are finite (where `present`)."""
        finite = torch.isfinite(values)
        error = FieldError(what, "holds NaN or infinite values, so no token can be chosen by it")
        self.expect(error, (finite if present is None else finite | ~present).all())

    def check(self) -> None:
        """Raise the error of what does not hold, the first remembered. Waits for the device: call it at the end."""
        errors, flags = [error for error, _ in self.expected.values()], [holds for _, holds in self.expected.values()]
        for error, holds in zip(errors, on_host(flags), strict=True):
            if not bool(holds):
                raise error

    def copied(self, rows: slice) -> Trace:
        """The trace of some rows, in memory of its own: what it was copied from may be written over."""
        heads = {layer: (chosen[rows], scores[rows]) for layer, (chosen, scores) in self.chosen_heads.items()}
        everything = range(len(self.has_image))[rows] == range(len(self.has_image))
        details = self.details
        if not everything:
            details = {layer: _details_of_rows(found, rows) for layer, found in details.items()}
        return replace(
            self,
            has_image=self.has_image[rows],
            keep_masks={layer: mask[rows].clone() for layer, mask in self.keep_masks.items()},
            counted=None if self.counted is None else self.counted[rows].clone(),
            entering=self.entering[rows],
            kv_lengths=list(self.kv_lengths),
            chosen_heads=_cloned(heads),
            guides={layer: rows_of[rows].clone() for layer, rows_of in self.guides.items()},
            merge_masks={layer: mask[rows].clone() for layer, mask in self.merge_masks.items()},
            details=_cloned(details),
            expected={text: (error, holds.clone()) for text, (error, holds) in self.expected.items()},
        )

    def to_original_tokens(self, reduction: Reduction, has_image: tuple[bool, ...]) -> Trace:
        """This trace, of prompts that a vision-side method had shortened, in terms of the image's own tokens.

        `reduction` has one row per image, the trace one per prompt; `has_image` tells which prompts showed one before.
        """
        keep, (_, made, _) = reduction.keep, reduction.tokens.shape
        shown = [row for row, one in enumerate(has_image) if one]
        images, count = keep.shape
        # which of the shortened prompt's tokens are the image's own, and which of the image's these are
        order = keep.int().argsort(dim=1, descending=True, stable=True)
        place = torch.arange(made, device=keep.device).expand(images, -1) - reduction.lead
        rank = keep.sum(1, keepdim=True)
        own = (place >= 0) & (place < rank)
        spare = count + torch.arange(made, device=keep.device).expand(images, -1)
        column = torch.where(own, order.gather(1, place.clamp(0, count - 1)), spare)

        def of_rows(told: Tensor) -> Tensor:
            """`[images, ...]` → `[B, ...]`, row by row: an index would be copied to the device, which is waited for."""
            every = list(told.new_zeros(len(has_image), *told.shape[1:]).unbind())
            for row, image in zip(shown, told, strict=True):
                every[row] = image
            return torch.stack(every)

        def told(values: Tensor) -> Tensor:
            """`[images, ..., made + merged]` of the shortened image → `[B, ..., N + made + merged]`."""
            between = values.shape[1:-1]
            full = values.new_zeros(images, *between, count + made)
            place = column.view(images, *[1] * len(between), made).expand(images, *between, made)
            full.scatter_(-1, place, values[..., :made])
            return of_rows(torch.cat([full, values[..., made:]], dim=-1))

        def moved(found: dict[int, Tensor]) -> dict[int, Tensor]:
            return {layer: told(torch.stack([value[row] for row in shown])) for layer, value in found.items()}

        merged = moved(self.merge_masks)
        if reduction.merged is not None:
            merged[0] = of_rows(reduction.merged)
        return replace(
            self,
            num_visual_tokens=count,
            has_image=has_image,
            keep_masks={0: told(torch.ones_like(own))} | moved(self.keep_masks),
            guides=moved(self.guides),
            merge_masks=merged,
        )

    def drop_beams(self, copies: int) -> Trace:
        """The trace of every `copies`-th row: undoes the copies that beam search makes of a sample.

        Raises `FieldError` for details of a method that cannot be told apart by rows.
        """
        if copies == 1:
            return self
        rows = slice(None, None, copies)
        return replace(
            self,
            has_image=self.has_image[rows],
            keep_masks={layer: mask[rows] for layer, mask in self.keep_masks.items()},
            counted=None if self.counted is None else self.counted[rows],
            entering=self.entering[rows],
            chosen_heads={layer: (heads[rows], scores[rows]) for layer, (heads, scores) in self.chosen_heads.items()},
            guides={layer: rows_of[rows] for layer, rows_of in self.guides.items()},
            merge_masks={layer: mask[rows] for layer, mask in self.merge_masks.items()},
            details={layer: _details_of_rows(details, rows) for layer, details in self.details.items()},
        )


def _range(counts: Iterable[int]) -> str:
    """`64`, or `60 to 64` where rows differ."""
    least, *_, most = sorted([*counts] * 2) or (0, 0)
    return str(least) if least == most else f"{least} to {most}"


def guides_of(chosen: Selection) -> Tensor | None:
    """What a trace keeps of a choice to be shown, `[B, m, V]`: see `Trace.guides`."""
    if chosen.guides is not None or chosen.scores is None:
        return chosen.guides
    return chosen.scores[:, None]


def on_host(values: list[Tensor]) -> list[Tensor]:
    """`values`, of one type, on the CPU: with one wait for each device that they are on, however many they are."""
    places: dict[torch.device, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value.device, []).append(place)
    found = list(values)
    for here in places.values():
        together = torch.cat([values[place].flatten() for place in here]).cpu()
        for place, piece in zip(here, together.split([values[place].numel() for place in here]), strict=True):
            found[place] = piece.view(values[place].shape)
    return found


def _cloned(value: Any) -> Any:
    """The same with every tensor in it in memory of its own; what else it holds is shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_cloned, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_cloned, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cloned(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def _details_of_rows(details: Any, rows: slice) -> Any:
    if isinstance(details, Tensor):
        return details[rows]
    if isinstance(details, Details):
        return details.of_rows(rows)
    raise FieldError(
        "details",
        f"a {type(details).__name__} cannot be told apart by rows, as several beams per sample need",
        fix="give a tensor with one row per row of the call, or an object with of_rows(slice)",
    )
