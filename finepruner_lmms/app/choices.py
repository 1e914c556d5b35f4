"""What the page lets one choose, read from the registries, and the methods that a choice stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.asking.compared import label_of
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads.registry import RESERVED, known_strategies
from finepruner_lmms.pruners import Pruner
from finepruner_lmms.pruners.finepruner import CONSENSUS, RECOMMENDED
from finepruner_lmms.pruners.registry import build_pruner, known_methods, method_class, parameter_names
from finepruner_lmms.pruners.written import read_method, split_methods

FIRST = ("random", "vispruner", "fastv", "finepruner")
"""The methods that are chosen when the page opens, as `finepruner show` has them."""
_BUDGET = 64
_SHARE = 11
_HEADS = 16


@dataclass(frozen=True)
class Offer:
    """What there is to choose from. `vision` are the methods that drop tokens before the language model,
    `decoder` those that do inside it, or in both places.

    A budget is a number up to `most`, counted in visual tokens, or in percent of them where their number `varies`
    from picture to picture. `heads` is the number of query heads of a layer.
    """

    vision: tuple[str, ...]
    decoder: tuple[str, ...]
    strategies: tuple[str, ...]
    heads: int
    most: int
    varies: bool

    @classmethod
    def of(cls, config: Any) -> Offer:
        """For a model of this configuration, with the methods and strategies that are registered now."""
        geometry = Geometry.of(config)
        sides = {name: method_class(name).side for name in known_methods()}
        vision = tuple(name for name, side in sides.items() if side == "vision")
        decoder = tuple(name for name, side in sides.items() if side in ("decoder", "both"))
        # `fixed` and `profile` want to know which heads, or whose: they can be written
        strategies = (RECOMMENDED, *known_strategies(), CONSENSUS)
        most = 100 if geometry.varies else geometry.num_visual_tokens
        return cls(vision, decoder, strategies, geometry.num_heads, most, geometry.varies)

    @property
    def usual_budget(self) -> int:
        """What the slider says when the page opens."""
        return min(_SHARE if self.varies else _BUDGET, self.most)

    @property
    def usual_heads(self) -> int:
        """As `finepruner` has it for a layer of so many."""
        return min(_HEADS, max(1, self.heads // 2))

    @property
    def written(self) -> str:
        """Beside the recommended heads, those that the code base chooses which `finepruner` is after."""
        return f"finepruner:heads={self.usual_heads}:head_strategy=sum"


@dataclass(frozen=True)
class Choice:
    """What somebody chose: methods by name, and `written` ones as on a command line (`fastv:64:layer=3`)."""

    methods: Sequence[str]
    budget: str
    head_strategy: str
    heads: int
    written: str = ""

    def pruners(self) -> list[tuple[str, Pruner]]:
        """`vanilla` first, then every method once, named as in tables or as written. `FieldError` of what is wrong."""
        found = {"vanilla": build_pruner("vanilla")}
        for name in self.methods:
            try:
                pruner = build_pruner(name, **self._parameters(name))
            except FieldError as error:
                raise error.under(name) from error
            found.setdefault(label_of(pruner), pruner)
        for text in split_methods(self.written):
            label, pruner = read_method(text, self.budget, "more methods")
            if label_of(pruner) not in map(label_of, found.values()):
                found[label] = pruner
        return list(found.items())

    def _parameters(self, name: str) -> dict[str, Any]:
        """The budget, and of the heads what the method reads."""
        reads = parameter_names(name)
        given: dict[str, Any] = {"budget": self.budget}
        if "head_strategy" in reads:
            given["head_strategy"] = self.head_strategy
        if reads_heads([name], self.head_strategy):
            given["heads"] = self.heads
        return given


def reads_strategy(methods: Sequence[str]) -> bool:
    """Whether one of them chooses among heads by a strategy."""
    return any("head_strategy" in parameter_names(name) for name in methods)


def reads_heads(methods: Sequence[str], strategy: str) -> bool:
    """Whether one of them reads how many heads guide: strategies that rank no single heads say that themselves."""
    return any(
        "heads" in reads and ("head_strategy" not in reads or strategy not in RESERVED)
        for reads in map(parameter_names, methods)
    )
