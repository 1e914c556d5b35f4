"""Every way in which the methods of this package can choose: with variants, heads, queries, correctors, in chains."""

from __future__ import annotations

from typing import Any, NamedTuple

from finepruner_lmms.heads import NORMALISATIONS, consensus, known_strategies
from finepruner_lmms.heads.queries import known_queries
from finepruner_lmms.ops.token_scores import AGGREGATES, ROWS
from finepruner_lmms.pruners import build_pruner, method_class
from finepruner_lmms.pruners.cdpruner import RELEVANCES
from finepruner_lmms.pruners.finepruner import GUIDED
from finepruner_lmms.pruners.mmtok import WORDS
from finepruner_lmms.pruners.registry import known_correctors, known_methods, parameter_names, takes_budget


class Way(NamedTuple):
    """A method with parameters, without its budget; `label` names the two in one word."""

    label: str
    name: str
    parameters: dict[str, Any]

    def build(self, budget: int | str, first: int | str | None = None) -> Any:
        """The pruner at a budget; a chain leaves `first` tokens before the model."""
        chained = {"first": first} if "first" in parameter_names(self.name) else {}
        given = {"budget": budget} if takes_budget(self.name) else {}
        return build_pruner(self.name, **given, **chained, **self.parameters)


def every_way() -> list[Way]:
    """All of them: what is registered as a method, head strategy, query or preset later is among them."""
    found = [Way(name, name, {}) for name in known_methods() if method_class(name).side != "none"]

    def add(name: str, **parameters: Any) -> None:
        found.append(Way("-".join((name, *map(str, parameters.values()))), name, parameters))

    for relevance in RELEVANCES:
        add("cdpruner", relevance=relevance)
        add("eadp", relevance=relevance)
    for words in WORDS:
        add("mmtok", words=words)
    add("tops", importance="received")
    for ratio in (0.0, 1.0):
        add("vispruner", important_ratio=ratio)
    for rows in ROWS:
        for aggregate in AGGREGATES:
            add("fastv", rows=rows, aggregate=aggregate)
    add("fastv", positions="renumbered")
    add("pdrop", variant="official")
    for strategy in known_strategies():
        for normalise in NORMALISATIONS:
            add("finepruner", head_strategy=strategy, normalise=normalise)
    for preset in consensus.PRESETS:
        for rows in ROWS:
            add("finepruner", head_strategy="consensus", preset=preset, rows=rows)
    for query in known_queries():
        add("finepruner", query=query)
        add("finepruner", query=query, head_strategy="consensus")
    add("finepruner", head_strategy="recommended")
    add("finepruner", head_strategy="fixed", fixed_heads="1+3")
    for guide in GUIDED:
        add("finepruner", guide=guide)
        add("finepruner", guide=guide, head_strategy="consensus")
        add("finepruner", guide=guide, aggregate="quota", rows="renormalised")
    sides = {side: [n for n in known_methods() if method_class(n).side == side] for side in ("vision", "decoder")}
    for before in filter(takes_budget, sides["vision"]):
        for inside in sides["decoder"]:
            add(f"{before}+{inside}")
    for corrector in known_correctors():
        if corrector != "coordinates":  # these are positions, which are numbered anew before the model
            add(f"fastervlm+{corrector}")
        add(f"fastv+{corrector}")
    add("fastervlm+merge", merge_into="kept")
    return found
