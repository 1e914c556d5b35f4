"""What a model family is: where the visual tokens of its prompts stand, and what its vision tower says of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finepruner_lmms.pruners.vision_outputs import VisionOutputs


class Run(NamedTuple):
    """Consecutive placeholders of one kind in a row of `input_ids`."""

    length: int
    video: bool = False


class View(NamedTuple):
    """A grid of visual tokens, `rows` × `columns` in raster order, over a part of a picture.

    `box` is left, top, right, bottom, as shares of the picture's width and height. Views of one `sheet` lie beside each
    other and cover the picture once; a model that sees it as a whole and in tiles sees it in two sheets.
    """

    rows: int
    columns: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    sheet: int = 0


@dataclass(frozen=True)
class ImageSpan:
    """The placeholders of one image, or of one video, in the order of the prompt.

    Those at `separators`, counted from the first, are no visual tokens but newlines and the like: they are never
    dropped and no budget counts them. `grid` is frames × rows × columns of the visual tokens where they fill one grid.
    """

    length: int
    separators: tuple[int, ...] = ()
    grid: tuple[int, int, int] | None = None
    video: bool = False

    @property
    def num_visual_tokens(self) -> int:
        """N of this image: the tokens of which a budget is a part."""
        return self.length - len(self.separators)


@dataclass(frozen=True)
class Encoded:
    """The encoded images and videos of a batch, in the order of its prompts.

    `outputs` is what the model's own `generate` takes as `mm_encoder_outputs`. `images` and `videos` hold one
    `VisionOutputs` of batch size 1 each, over the visual tokens of that image in the order of its placeholders,
    separators left out.
    """

    outputs: dict[str, Any]
    images: list[VisionOutputs] = field(default_factory=list)
    videos: list[VisionOutputs] = field(default_factory=list)


class Family(ABC):
    """What the engine asks of the models of one type. One object serves all models of it; it holds no state."""

    model_type: ClassVar[str]
    """`model_type` of its config.json."""
    model_class: ClassVar[str]
    """The class of transformers."""
    title: ClassVar[str]
    """As papers write it."""
    decoders: ClassVar[frozenset[str]]
    """Known `text_config.model_type`s: their layers are Llama's in all that the engine reads."""
    towers: ClassVar[frozenset[str]] = frozenset()
    """Known `vision_config.model_type`s; empty where the family's own is the only one."""
    media: ClassVar[tuple[str, ...]]
    """The arguments of a call, beside ids and mask, that hold or describe its images and videos."""
    passes: ClassVar[tuple[str, ...]] = ()
    """What else the processor returns, and the model's `generate` takes."""
    grid_positions: ClassVar[bool] = False
    """Whether positions are those of a grid (M-RoPE, `[3, B, L]`), which cannot be numbered anew."""
    lacks: ClassVar[Mapping[str, str]] = {}
    """The fields of `VisionOutputs` that `encode` never has, and why."""
    has_cls: ClassVar[bool] = False
    """Whether the vision tower has a CLS token apart from its patches."""
    evaluation: ClassVar[Mapping[str, str | int]] = {"conv": "chat_template"}
    """Its own evaluation: the prompt, and each image setting that it reads (`asking.settings`)."""

    # -- what the configuration says ----------------------------------------------------------------------------------

    def check(self, config: Any) -> None:
        """Raise `FieldError` where a model of this configuration cannot be pruned. No weights are needed.

        `config` has `text_config` and `vision_config` with the names of transformers.
        """
        _check_part("text_config", config.text_config.model_type, self.decoders, self.title)
        if self.towers:
            _check_part("vision_config", config.vision_config.model_type, self.towers, self.title)
        check_decoder(config.text_config)

    @abstractmethod
    def most_visual_tokens(self, config: Any) -> int:
        """The most visual tokens of an image, as papers count them: what a budget as a count is compared with."""

    def num_visual_tokens(self, config: Any) -> int | None:
        """N where every image has the same number of visual tokens; None where it depends on the image."""
        return None

    def placeholders(self, config: Any) -> dict[str, int]:
        """The token ids that stand for visual tokens: `image`, and `video` where there are any."""
        ids = {"image": config.image_token_id}
        if (video := getattr(config, "video_token_id", None)) is not None:
            ids["video"] = video
        return ids

    # -- where visual tokens stand ------------------------------------------------------------------------------------

    @abstractmethod
    def described(self, config: Any, arguments: Mapping[str, Any]) -> Sequence[ImageSpan]:
        """The images of a call in the order of its prompts, then its videos, as its arguments (`media`) describe them.

        `FieldError` naming an argument that is missing or does not fit.
        """

    def spans(self, config: Any, runs: Sequence[Run], arguments: Mapping[str, Any]) -> list[list[ImageSpan]]:
        """Of which images each run of placeholders is made. `FieldError` where runs and images do not fit."""
        waiting = {video: [one for one in self.described(config, arguments) if one.video == video] for video in (0, 1)}
        found = []
        for run in runs:
            images, left = [], run.length
            while left > 0 and waiting[run.video]:
                images.append(waiting[run.video].pop(0))
                left -= images[-1].length
            if left:
                raise misfit(run, images)
            found.append(images)
        if any(waiting.values()):
            raise FieldError(
                self.media[0],
                f"holds {len(waiting[0]) + len(waiting[1])} more images or videos than input_ids shows",
                fix="expand the placeholders of the prompt with the processor, or leave them out",
            )
        return found

    def views(self, config: Any, span: ImageSpan, size: tuple[int, int]) -> tuple[View, ...]:
        """Which part of a picture of `size` (width, height) each visual token shows, in the order of the tokens.

        Empty where it is not known.
        """
        return (View(*span.grid[1:]),) if span.grid is not None and span.grid[0] == 1 else ()

    # -- parts of a model ---------------------------------------------------------------------------------------------

    def decoder(self, model: Any) -> nn.Module:
        """The language model, whose `layers` drop tokens."""
        return model.model.language_model

    def tower(self, model: Any) -> nn.Module:
        """The vision tower."""
        return model.model.vision_tower

    def deep_features(self, config: Any) -> int:
        """After how many of the first decoder layers features of the tower are added to the visual tokens."""
        return len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())

    # -- what the tower says ------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(
        self, model: Any, arguments: Mapping[str, Any], counts: Sequence[int] = (), wish: TowerWish = NOTHING_MORE
    ) -> Encoded:
        """Run the tower and the projector on the images of a call.

        `counts` are N of each image, and then of each video, for families whose arguments do not tell. `wish` says
        what of `VisionOutputs` needs whole attention maps, or another layer, and is computed for this call.
        """


def misfit(run: Run, images: Sequence[ImageSpan]) -> FieldError:
    """The error of a run of placeholders that is not as long as its images."""
    kind, known = ("video" if run.video else "image"), sum(image.length for image in images)
    return FieldError(
        "input_ids",
        f"holds {run.length} {kind} placeholders in a row, but the {kind}s that it shows have {known} visual tokens",
        fix="give each prompt its own images, with placeholders expanded by the processor",
    )


def check_decoder(text: Any) -> None:
    """Raise `FieldError` for a decoder in which a token does not see all tokens before it."""
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        found = ", ".join(sorted(kinds - {"full_attention"}))
        raise FieldError(
            "text_config.layer_types",
            f"holds {found}; pruning needs full attention in every layer",
            value=found,
            fix="take a checkpoint without sliding windows",
        )
    # Mistral has no layer_types: a window is on where a number stands
    if text.model_type == "mistral" and getattr(text, "sliding_window", None) is not None:
        raise FieldError(
            "text_config.sliding_window",
            f"got {text.sliding_window}; pruning needs full attention in every layer",
            value=text.sliding_window,
            fix="take a checkpoint without a sliding window (LLaVA-NeXT's Mistral has none)",
        )


def check_features(config: Any, strategy: str, title: str) -> None:
    """Raise `FieldError` unless the patches of one layer of the tower are projected, as `strategy` says."""
    if config.vision_feature_select_strategy != strategy:
        raise FieldError(
            "vision_feature_select_strategy",
            f"got {config.vision_feature_select_strategy!r}; {title} is supported with {strategy!r}",
            value=config.vision_feature_select_strategy,
        )
    if not isinstance(config.vision_feature_layer, int):
        raise FieldError(
            "vision_feature_layer",
            f"{config.vision_feature_layer} joins several layers; only a single one is supported",
            value=config.vision_feature_layer,
        )


def _check_part(part: str, kind: str, known: frozenset[str], title: str) -> None:
    if kind not in known:
        raise FieldError(
            f"{part}.model_type",
            f"got {kind!r}; {title} is supported with {' or '.join(repr(one) for one in sorted(known))}",
            value=kind,
        )


def pixels_for(tower: Any, pixels: Tensor) -> Tensor:
    """Pixels on the device and in the type of the tower."""
    from finepruner_lmms.engine.parts import device_of

    weight = next(tower.parameters())
    return pixels.to(device_of(tower, pixels.device), weight.dtype)
