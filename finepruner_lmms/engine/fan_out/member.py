"""One of the methods that answer together: what it starts from, what it drops, and what is told of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.contract import check_reduction
from finepruner_lmms.engine.dropping import Dropping
from finepruner_lmms.engine.fan_out.prompts import Prompt
from finepruner_lmms.engine.fan_out.stream import Sprout, Stream
from finepruner_lmms.engine.prompt_state import PromptState
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.pruners import Pruner, VisionPruner, build_pruner
from finepruner_lmms.pruners.base import DecoderPruner, Reduction, Stage
from finepruner_lmms.pruners.vision_outputs import TowerWish, VisionOutputs

T = TypeVar("T")
# after these the process may no longer compute correctly, so they are nobody's own
_POISONED = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))


@dataclass
class Member:
    """A method among those that answer together, by its `number`.

    `error` is what it raised, after which it takes part no more; the others do not notice.
    """

    number: int
    pruner: Pruner
    before: VisionPruner | None = None
    inside: DecoderPruner | None = None
    error: Exception | None = None
    trace: Trace = field(default_factory=Trace)
    checks: Trace = field(default_factory=Trace)
    vision: VisionOutputs | None = None
    reduced: Reduction | None = None
    visual: Tensor | None = None
    dropping: Dropping | None = None
    state: PromptState | None = None
    prompt: Prompt | None = None
    has_image: tuple[bool, ...] = ()

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Do something for this method; if it raises, this method has failed and no other."""
        try:
            return action()
        except _POISONED:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a method raises is its own failure, which is reported
            self.error = error
            return None

    def plan(self, num_layers: int, num_visual: int, has_image: tuple[bool, ...]) -> None:
        """What it is to do on images of so many tokens; nothing where none is shown, or where every token stays."""
        self.pruner.stages(num_layers, num_visual)  # raises what cannot be
        before, inside = self.pruner.parts(num_visual)
        self.has_image = has_image
        if not any(has_image):
            return
        self.inside = inside
        if before is not None and before.retained(num_visual) < num_visual:
            self.before = before

    def reduce(self, vision: VisionOutputs) -> None:
        """Choose before the language model."""
        assert self.before is not None
        self.vision = vision
        with for_choosing(vision.features.device):
            self.reduced = self.before.reduce(vision)
        check_reduction(self.before, self.reduced, vision.projected, self.checks)
        self.visual = self.reduced.tokens

    def begin(self, model: LlavaForConditionalGeneration, prompt: Prompt, embeds: Tensor) -> None:
        """Be ready to drop from `embeds` `[B, L, D]`, the prompts as they enter the first layer."""
        shown = any(prompt.layout.has_image)
        inside = self.inside if self.inside is not None and shown else build_pruner("vanilla")
        self.dropping = Dropping(model, inside, self.trace, prompt.left)
        self.trace.start(self.dropping.geometry.num_layers, prompt.left, prompt.layout.has_image)
        self.prompt = prompt
        self.state = PromptState(prompt.layout, len(embeds), embeds=embeds if self.dropping.stages else None)

    def identities(self, layout_present: Tensor, parents: list[int], own: bool) -> list[Any]:
        """What tells the rows of this method apart, and from those of others: equal ones hold the same tokens."""
        assert self.dropping is not None
        renumber = bool(getattr(self.dropping.pruner, "renumber_positions", False))
        kept = layout_present.cpu().numpy()
        return [
            (parent, renumber, self.number if own else -1, row.tobytes())
            for parent, row in zip(parents, kept, strict=True)
        ]

    @property
    def watched(self) -> frozenset[int]:
        """The layers of which the last token is kept for its sake."""
        assert self.dropping is not None
        return self.dropping.watched(stage.layer for stage in self.dropping.stages)

    def next_stage(self, layer: int) -> Stage | None:
        """The first drop after `layer` layers."""
        assert self.dropping is not None
        return next((stage for stage in self.dropping.stages if stage.layer > layer), None)

    def drop(self, stream: Stream, stage: Stage, sprouts: dict[Any, Sprout]) -> None:
        """Drop before the layer that `stream` has come to, and add the rows to the sprout of their width."""
        assert self.dropping is not None and self.state is not None and stream.inside is not None
        rows = stream.rows[self.number]
        every = len(rows) == len(stream) and bool((rows == torch.arange(len(rows), device=rows.device)).all())

        def own(values: Tensor) -> Tensor:
            return values if every or len(values) == 1 else values[rows]

        layer = self.dropping.decoder.layers[stage.layer - 1]
        rotary = self.dropping.decoder.rotary_emb(stream.inside, position_ids=stream.positions)
        self.state.inputs[stage.layer] = own(stream.inside), layer.self_attn, (own(rotary[0]), own(rotary[1]))
        for earlier in self.dropping.watched([stage.layer]):
            self.state.asking[earlier] = stream.asking[earlier].changed(own)

        def cached(earlier: int) -> tuple[Tensor, Tensor]:
            keys, values = (stream.caches[earlier] if every else stream.caches[earlier].of_rows(rows)).copied()
            return keys, values

        hidden = self.dropping.drop(self.state, stage.layer, own(stream.hidden), cached, own(stream.positions))
        view = self.state.views[stage.layer]
        shift = view.shift if isinstance(view.shift, Tensor) else rows.new_full((len(rows), 1), view.shift)
        parents = rows.tolist()
        key = view.length, view.valid is None
        sprout = sprouts.setdefault(key, Sprout(stream, view.length))
        identities = self.identities(view.layout.present, parents, own=bool(stage.merged))
        sprout.add(self.number, identities, parents, hidden, view.positions, view.valid, shift)

    def report(self) -> Trace:
        """What was kept where, in terms of the image's own tokens. Raises what the method got wrong."""
        assert self.dropping is not None and self.state is not None and self.prompt is not None
        lengths = {0: self.prompt.layout.width} | {layer: view.length for layer, view in self.state.views.items()}
        self.trace.kv_lengths = [
            lengths[max(start for start in lengths if start <= layer)]
            for layer in range(self.dropping.geometry.num_layers)
        ]
        if self.vision is not None:
            for what, values in self.vision.tensors().items():
                self.trace.watch(what, values)
        self.trace.check()
        self.checks.check()  # after NaN, which may be the reason why a method chose wrongly
        return self.trace if self.reduced is None else self.trace.to_original_tokens(self.reduced, self.has_image)


def shared_vision(model: LlavaForConditionalGeneration, inputs: Mapping[str, Any], wish: TowerWish) -> dict[str, Any]:
    """`inputs` with their pictures encoded, once for all methods, with what `wish` asks of the tower."""
    from finepruner_lmms.engine.vision_tower import encode_images

    pixels = inputs.get("pixel_values")
    if pixels is None or not len(pixels):
        return dict(inputs)
    rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
    return rest | {"vision": encode_images(model, pixels, wish)}
