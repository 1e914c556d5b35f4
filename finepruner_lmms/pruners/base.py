"""What a pruning method is: a frozen dataclass of its parameters, a schedule, and a choice of tokens.

A method never sees prompts, padding, the batch's ragged rows or transformers: the engine hands it plain tensors over
the N visual tokens of each image, and drops what it does not keep.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from finepruner_lmms.errors import FieldError
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.ops.selection import mask_to_index, take, top_mask
from finepruner_lmms.pruners.budget import BudgetValue, parse_budget, plain_budget, round_half_up, show_tokens
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.vision_outputs import TowerWish, VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["none", "vision", "decoder", "both"]


class Stage(NamedTuple):
    """Before decoder layer `layer`, all but `retained` visual tokens are dropped (layer 0: before the model).

    `merged` new ones, made of the dropped, follow the rest.
    """

    layer: int
    retained: int
    merged: int = 0


class Reduction(NamedTuple):
    """What a vision-side method makes of an image: `tokens` `[B, R, D]`, of which `keep` `[B, N]` are its own.

    Every row keeps equally many of its own. They stand in raster order after `lead` new ones; other new ones follow.
    `merged` `[B, N]` bool says which of the image's tokens went into new ones, where the method says it. `changed`
    tells that its own tokens are not the projected ones any more, since others were merged into them.
    """

    tokens: Tensor
    keep: Tensor
    lead: int = 0
    merged: Tensor | None = None
    changed: bool = False


@dataclass(frozen=True, kw_only=True)
class Pruner(ABC):
    """A pruning method with its parameters. `budget`: see `pruners.budget`; `None` keeps every token."""

    name: ClassVar[str]
    side: ClassVar[Side]
    fills_budget: ClassVar[bool] = True
    """Whether each row keeps exactly its stage's count (or all it has); a method that may keep fewer says False."""
    paper: ClassVar[str] = ""
    """Where the method is published, and `code` where its authors' program is: what `finepruner methods` shows."""
    code: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    """How the method differs from its name or its paper, in a clause: a note below tables."""

    budget: BudgetValue = None

    def __post_init__(self) -> None:
        """Check the parameters, and write each in one way, so that equal pruners are equal: subclasses go on here."""
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if isinstance(value, numbers.Integral) and not isinstance(value, int):  # NumPy's integers
                self._write(parameter.name, int(value))
        self._write("budget", self._plain_budget())

    def _plain_budget(self) -> BudgetValue:
        """The budget in the one way to write it; `FieldError` for what is none."""
        return plain_budget(self.budget)

    def _write(self, name: str, value: Any) -> None:
        """Set a parameter to an equal value while the pruner is made; afterwards it is frozen."""
        object.__setattr__(self, name, value)

    def _unread(self, name: str, why: str) -> FieldError:
        """The error of a parameter that was given although the others leave nothing for it to say."""
        value = getattr(self, name)
        return FieldError(name, f"got {value!r}; {why}, so leave it out", value=value)

    @abstractmethod
    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """Where tokens are dropped in a model of this depth; empty where none are. See `schedule` for errors."""

    def schedule(self, num_layers: int, num_visual_tokens: int) -> list[int]:
        """The visual tokens entering each decoder layer, for `num_visual_tokens` per image.

        Raises `FieldError` if the method cannot reach its budget at this depth, stating the reachable range.
        """
        entering, current = [], num_visual_tokens
        drops = {stage.layer: stage.retained + stage.merged for stage in self.stages(num_layers, num_visual_tokens)}
        for layer in range(num_layers):
            current = drops.get(layer, current)
            entering.append(current)
        return entering

    def scored_layers(self, num_layers: int, num_visual_tokens: int) -> tuple[int, ...]:
        """The decoder layers of which a row of attention is computed again to choose by, in every drop anew."""
        _, inside = self.parts(num_visual_tokens)
        drops = [stage.layer for stage in self.stages(num_layers, num_visual_tokens) if stage.layer]
        return () if inside is None else tuple(layer for drop in drops for layer in inside.reads_layers(drop))

    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """What works before the language model and what works inside it, on images of so many tokens."""
        return self.halves

    @property
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """Both without budgets of their own: who wants to know what is read asks these, whatever the image."""
        return None, None

    def check_heads(self, num_heads: int) -> None:  # noqa: B027 - most methods do not choose heads
        """Raise `ValueError` if the method asks for more query heads than the model has."""

    def parameters(self) -> dict[str, Any]:
        """The parameters beyond the budget, as given or by default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "budget"}

    def _tokens(self, num_visual_tokens: int, least: Fraction) -> Fraction:
        """The budget as an exact average, checked against what the method can reach."""
        tokens = parse_budget(self.budget).tokens(num_visual_tokens)
        if not least <= tokens <= num_visual_tokens:
            written = show_tokens(self.budget) if isinstance(self.budget, Fraction) else repr(self.budget)
            raise FieldError(
                "budget",
                f"cannot reach an average of {show_tokens(tokens)} visual tokens per layer (budget={written}) on this "
                f"model; reachable: {show_tokens(least)} to {num_visual_tokens}",
                value=self.budget,
            )
        return tokens


@dataclass(frozen=True, kw_only=True)
class VisionPruner(Pruner):
    """A method that chooses before the language model: every layer sees the budget."""

    side: ClassVar[Side] = "vision"
    instead: ClassVar[str] = "use a method that keeps tokens as they are"
    """What to use in its place where a family takes no new tokens."""

    @property
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """All before."""
        return self, None

    @property
    def reads_question(self) -> Literal["", "clip", "embedding", "keywords"]:
        """How the question reaches `VisionOutputs.text_embeds`.

        Not, through CLIP, or as the model embeds it: all words after the image, or the question's keywords.
        """
        return ""

    @property
    def reads_words(self) -> bool:
        """Whether CLIP is to give the question's words one by one, and behind them the question as a whole."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of `VisionOutputs` that the method needs, beyond features and projected tokens."""
        return ()

    @property
    def early_layer(self) -> int | Fraction | None:
        """The earlier layer of the tower whose attention it reads, counted from 1, or a share of the depth."""
        return None

    @property
    def wish(self) -> TowerWish:
        """What the tower is asked for the method's sake."""
        return TowerWish("received_attention" in self.reads, self.early_layer)

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """One drop, before layer 0."""
        retained = self.retained(num_visual_tokens)
        return () if retained == num_visual_tokens else (Stage(0, retained),)

    def retained(self, num_visual_tokens: int) -> int:
        """R, the tokens kept of each image."""
        return round_half_up(self._tokens(num_visual_tokens, Fraction(1)))

    @abstractmethod
    def choose(self, vision: VisionOutputs) -> Tensor:
        """Which visual tokens to keep: `[B, N]` bool, exactly `retained(N)` True per row. No wait for the device."""

    def select_visual(self, vision: VisionOutputs) -> Tensor:
        """`choose`, of outputs that are checked to be finite: `[B, N]` bool. `FieldError` if they are not.

        Scores are float32 or better, also under `torch.autocast`.
        """
        for what, values in vision.tensors().items():
            if not bool(values.isfinite().all()):
                raise FieldError(what, "holds NaN or infinite values, so no token can be chosen by it")
        with for_choosing(vision.features.device):
            return self.choose(vision)

    def reduce(self, vision: VisionOutputs) -> Reduction:
        """The tokens that the language model sees: the kept ones in raster order, unless a method makes new ones."""
        keep = self.choose(vision)
        return Reduction(take(vision.projected, mask_to_index(keep, self.retained(vision.num_visual_tokens))), keep)


@dataclass(frozen=True, kw_only=True)
class DecoderPruner(Pruner):
    """A method that chooses inside the language model, by what its attention says."""

    side: ClassVar[Side] = "decoder"

    @property
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """All inside."""
        return None, self

    @property
    def renumber_positions(self) -> bool:
        """Whether tokens are numbered anew after a drop, or keep the positions that they had (FastV)."""
        return False

    def reads_layers(self, layer: int) -> tuple[int, ...]:
        """The decoder layers whose last row `select` reads at the drop before `layer`: by default the one before.

        Of any earlier ones, `DecoderContext.attention_in` is there where they are named here.
        """
        return (layer - 1,)

    @abstractmethod
    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Choose at most `retained` of the tokens that are present, in each row; those required are among them.

        A prompt that ends with its image requires that image's last token: its logits are read. It takes one of the
        `retained` places, and is kept also where there is none; a method that does not choose it has it take the place
        of its worst.
        """

    @staticmethod
    def keep_best(scores: Tensor, context: DecoderContext, retained: int) -> Selection:
        """Keep the best-scored tokens of each row, the lower index on a tie."""
        return Selection(top_mask(scores, retained, context.present, context.required), scores)


@dataclass(frozen=True, kw_only=True)
class TwoStage(Pruner):
    """A method that chooses before the language model and again inside it, within one budget.

    `parts` shares the budget out; `halves` are the same two for what they read. A half is a method of its own that
    need not be registered; its `name` is said in errors.
    """

    side: ClassVar[Side] = "both"

    @property
    @abstractmethod
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """What works before and what works inside, without budgets."""

    @abstractmethod
    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """Both with their budgets; None for what drops nothing of so many tokens."""

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The drop before the model, then those inside, of what is left."""
        before, inside = self.parts(num_visual_tokens)
        left = num_visual_tokens if before is None else before.retained(num_visual_tokens)
        drop = () if before is None else before.stages(num_layers, num_visual_tokens)
        return (*drop, *(() if inside is None else inside.stages(num_layers, left)))
