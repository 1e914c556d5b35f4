"""Correctors: what is done to the choice of any method, written behind it, as in `divprune+merge` or `fastv+restore`.

A corrector and its method share one budget: what the corrector adds, the method goes without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Stage, VisionPruner
from finepruner_lmms.pruners.budget import exactly, round_half_up
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Corrector(ABC):
    """Parameters of a corrector, and what it makes of a method: another method. `paper`, `code`: see `Pruner`."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    code: ClassVar[str] = ""
    last: ClassVar[bool] = False
    """Whether nothing may be written behind it."""

    @abstractmethod
    def before(self, method: VisionPruner) -> Pruner:
        """What it makes of a method before the language model; `FieldError` where it makes no sense."""

    @abstractmethod
    def inside(self, method: DecoderPruner) -> DecoderPruner:
        """What it makes of a method inside the language model; `FieldError` where it makes no sense."""

    def on(self, method: Pruner) -> Pruner:
        """The corrected method. `FieldError` for one that it cannot sit on."""
        if isinstance(method, VisionPruner) and method.budget != 0:
            return self.before(method)
        if isinstance(method, DecoderPruner):
            return self.inside(method)
        why = {"none": "keeps every token", "both": "shares its budget out between two stages itself"}
        problem = f"cannot sit on {method.name!r}, which {why.get(method.side, 'leaves no token')}"
        raise self.refuse(method, problem)

    def parameters(self) -> dict[str, Any]:
        """The parameters, as given or by default."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def refuse(self, method: Pruner, problem: str, fix: str = "") -> FieldError:
        """An error of the composition of both."""
        name = f"{method.name}+{self.name}"
        return FieldError("method", f"got {name!r}; {self.name!r} {problem}", value=name, fix=fix)

    def needs_own_tokens(self, method: VisionPruner) -> VisionPruner:
        """`method`; `FieldError` if it makes new tokens, of which none can be told to stay or to go."""
        if type(method).reduce is not VisionPruner.reduce:
            raise self.refuse(
                method, f"needs a method that keeps tokens as they are, and {method.name!r} makes new ones"
            )
        return method

    def needs_plain_drops(self, method: DecoderPruner) -> DecoderPruner:
        """`method`; `FieldError` if it merges what it drops."""
        try:
            stages = replace(method, budget="50%").stages(32, 576)
        except FieldError:  # out of its reach: its own drops are looked at when they are made
            return method
        self.check_plain(method, stages)
        return method

    def check_plain(self, method: DecoderPruner, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """`stages`; `FieldError` if one of them merges."""
        if any(stage.merged for stage in stages):
            raise self.refuse(method, f"is for what a method drops, and {method.name!r} merges that already")
        return stages


def share_of(share: float, count: int) -> int:
    """How many of `count` places a share of them is, halves up; one at least is left for the method."""
    return max(min(round_half_up(exactly(share) * count), count - 1), 0)


@dataclass(frozen=True, kw_only=True)
class Corrected(Pruner):
    """A method with a corrector behind it. The budget is that of the whole; `method` has none of its own."""

    method: Any
    corrector: Any

    @property
    def name(self) -> str:  # type: ignore[override]
        """Both names."""
        return f"{self.method.name}+{self.corrector.name}"

    @property
    def clip(self) -> Any:
        """Which CLIP the method wants, where it wants one."""
        return getattr(self.method, "clip", None)

    @property
    def positions(self) -> Any:
        """How the method was told to number positions, where it can be told."""
        return getattr(self.method, "positions", None)

    def check_heads(self, num_heads: int) -> None:
        """As the method."""
        self.method.check_heads(num_heads)

    def parameters(self) -> dict[str, Any]:
        """Those of both."""
        return {**self.method.parameters(), **self.corrector.parameters()}


class Adds(Corrector):
    """A corrector that chooses some of the tokens which its method dropped."""

    @abstractmethod
    def places(self, count: int) -> int:
        """How many of `count` tokens are its own choice: fewer than all of them."""

    @abstractmethod
    def add(self, tokens: Tensor, candidates: Tensor, count: int) -> Tensor:
        """`count` of the `candidates` `[B, N]` bool, by what `tokens` `[B, N, D]` are: `[B, N]` bool."""


@dataclass(frozen=True, kw_only=True)
class CorrectedBefore(Corrected, VisionPruner):
    """A method before the language model and what a corrector adds to its choice."""

    method: VisionPruner
    corrector: Adds

    @property
    def reads_question(self) -> Literal["", "clip", "embedding", "keywords"]:
        """As the method."""
        return self.method.reads_question

    @property
    def reads_words(self) -> bool:
        """As the method."""
        return self.method.reads_words

    @property
    def reads(self) -> tuple[str, ...]:
        """As the method."""
        return self.method.reads

    @property
    def early_layer(self) -> int | Fraction | None:
        """As the method."""
        return self.method.early_layer

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The method's choice of fewer tokens, and what the corrector adds: `[B, N]`."""
        retained = self.retained(vision.num_visual_tokens)
        added = self.corrector.places(retained)
        keep = replace(self.method, budget=retained - added).choose(vision)
        return keep | self.corrector.add(vision.projected, ~keep, added) if added else keep


@dataclass(frozen=True, kw_only=True)
class CorrectedInside(Corrected, DecoderPruner):
    """A method inside the language model and what a corrector adds to each of its choices; its drops are the same."""

    method: DecoderPruner
    corrector: Any

    @property
    def renumber_positions(self) -> bool:
        """As the method."""
        return self.method.renumber_positions

    @property
    def fills_budget(self) -> bool:  # type: ignore[override]
        """As the method."""
        return self.method.fills_budget

    def reads_layers(self, layer: int) -> tuple[int, ...]:
        """As the method."""
        return self.method.reads_layers(layer)

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The method's at the budget of the whole."""
        stages = replace(self.method, budget=self.budget).stages(num_layers, num_visual_tokens)
        return self.corrector.check_plain(self.method, stages)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The method's choice of fewer tokens, and what the corrector adds by their hidden states."""
        added = self.corrector.places(retained)
        found = self.method.select(context, retained - added)
        if not added:
            return found
        more = self.corrector.add(context.hidden, context.present & ~found.keep, added)
        return replace(found, keep=found.keep | more)
