"""What a pruning method is: a frozen dataclass of its parameters, a schedule, and a choice of tokens.

A method never sees prompts, padding, the batch's ragged rows or transformers: the engine hands it plain tensors over
the N visual tokens of each image, and drops what it does not keep.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from torch import Tensor

from finepruner_lmms.budget import parse_budget, round_half_up, show_tokens
from finepruner_lmms.selection import top_mask
from finepruner_lmms.vision import VisionOutputs

Side = Literal["none", "vision", "decoder"]


class Stage(NamedTuple):
    """Before decoder layer `layer`, all but `retained` visual tokens are dropped (layer 0: before the model)."""

    layer: int
    retained: int


@dataclass(frozen=True)
class DecoderContext:
    """What a decoder-side method may look at when it chooses.

    `layer` is the layer before which tokens are dropped; `attention` `[B, H, N]` float32 the attention of the last
    prompt token in the layer before it, softmax over the whole row, visual columns only (0 where not `present`);
    `present` `[B, N]` the tokens still there: none in a row without an image.
    """

    layer: int
    attention: Tensor
    present: Tensor


@dataclass(frozen=True)
class Selection:
    """The choice: `keep` `[B, N]` bool, at most the stage's count in a row; and what it was based on."""

    keep: Tensor
    scores: Tensor | None = None
    heads: Tensor | None = None
    head_scores: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Pruner(ABC):
    """A pruning method with its parameters. `budget`: see `finepruner_lmms.budget`; `None` keeps every token."""

    name: ClassVar[str]
    side: ClassVar[Side]
    fills_budget: ClassVar[bool] = True
    """Whether each row keeps exactly its stage's count (or all it has); a method that may keep fewer says False."""
    renumber_positions: ClassVar[bool] = False
    """Whether tokens are numbered anew after a drop inside the decoder, or keep their place (FastV)."""

    budget: int | str | None = None

    def __post_init__(self) -> None:
        parse_budget(self.budget)

    @abstractmethod
    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """Where tokens are dropped in a model of this depth; empty where none are. See `schedule` for errors."""

    def schedule(self, num_layers: int, num_visual_tokens: int) -> list[int]:
        """The visual tokens entering each decoder layer, for `num_visual_tokens` an image.

        Raises `ValueError` if the method cannot reach its budget at this depth, stating the reachable range.
        """
        entering, current = [], num_visual_tokens
        drops = dict(self.stages(num_layers, num_visual_tokens))
        for layer in range(num_layers):
            current = drops.get(layer, current)
            entering.append(current)
        return entering

    def check_heads(self, num_heads: int) -> None:  # noqa: B027 - most methods do not choose heads
        """Raise `ValueError` if the method asks for more query heads than the model has."""

    def parameters(self) -> dict[str, Any]:
        """The parameters beyond the budget, as given or by default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "budget"}

    def _tokens(self, num_visual_tokens: int, least: Fraction) -> Fraction:
        """The budget as an exact average, checked against what the method can reach."""
        tokens = parse_budget(self.budget).tokens(num_visual_tokens)
        if not least <= tokens <= num_visual_tokens:
            raise ValueError(
                f"budget: {self.name} cannot reach an average of {show_tokens(tokens)} visual tokens per layer "
                f"(budget={self.budget!r}) on this model; reachable: {show_tokens(least)} to {num_visual_tokens}"
            )
        return tokens


@dataclass(frozen=True, kw_only=True)
class VisionPruner(Pruner):
    """A method that chooses before the language model: every layer sees the budget."""

    side: ClassVar[Side] = "vision"

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """One drop, before layer 0."""
        retained = self.retained(num_visual_tokens)
        return () if retained == num_visual_tokens else (Stage(0, retained),)

    def retained(self, num_visual_tokens: int) -> int:
        """R, the tokens kept of each image."""
        return round_half_up(self._tokens(num_visual_tokens, Fraction(1)))

    @abstractmethod
    def select_visual(self, vision: VisionOutputs) -> Tensor:
        """Which visual tokens to keep: `[B, N]` bool, exactly `retained(N)` True a row."""


@dataclass(frozen=True, kw_only=True)
class DecoderPruner(Pruner):
    """A method that chooses inside the language model, by what its attention says."""

    side: ClassVar[Side] = "decoder"

    @abstractmethod
    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Choose at most `retained` of the tokens that are present, in each row."""

    @staticmethod
    def keep_best(scores: Tensor, context: DecoderContext, retained: int, **based_on: Tensor) -> Selection:
        """Keep the best-scored tokens of each row, the lower index on a tie."""
        return Selection(top_mask(scores, retained, context.present), scores, **based_on)


P = TypeVar("P", bound=type[Pruner])
_METHODS: dict[str, type[Pruner]] = {}
_ALIASES: dict[str, str] = {}


def register(name: str, *aliases: str) -> Callable[[P], P]:
    """Make a pruner class known by `name` (and `aliases`) to `build_pruner`, lmms-eval and matrix files."""

    def add(cls: P) -> P:
        cls.name = name
        _METHODS[name] = cls
        _ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return add


def known_methods() -> list[str]:
    """The sorted names of all methods."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Pruner]:
    """The class registered as `name` or as one of its aliases; `ValueError` if there is none."""
    resolved = _ALIASES.get(name, name)
    if resolved not in _METHODS:
        known = known_methods()
        near = difflib.get_close_matches(str(name), [*known, *_ALIASES], 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"method: unknown method {name!r}{hint}; known: {', '.join(known)}")
    return _METHODS[resolved]


def parameter_names(name: str) -> list[str]:
    """The parameters that a method reads, `budget` first."""
    return [f.name for f in fields(method_class(name))]


def known_parameters() -> set[str]:
    """The parameters that any method reads."""
    return {parameter for name in _METHODS for parameter in parameter_names(name)}


def build_pruner(name: str, **params: Any) -> Pruner:
    """The pruner `name` with its parameters, all checked now, before any model is loaded.

    Raises `ValueError` naming the culprit: an unknown method, a parameter that the method does not read, or a value
    out of range. Whether the budget can be reached depends on the model's depth: `Pruner.schedule` tells.
    """
    cls = method_class(name)
    known = parameter_names(name)
    for parameter in params:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{parameter}: method {cls.name!r} does not read it{hint}; it reads: {', '.join(known)}")
    return cls(**params)


def check_choice(field: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `known`."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{field}: got {value!r}{hint}; known: {', '.join(known)}")


def check_integer(field: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise `ValueError` unless `value` is a whole number in range."""
    wanted = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        raise ValueError(f"{field}: got {value!r}; expected {wanted}")
