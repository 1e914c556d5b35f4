"""Which methods run on which families, found out by running them on the small models: the table of docs/models.md.

`python -m finepruner_lmms.testing.family_support` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import finepruner_lmms as fp
from finepruner_lmms.engine.families.fits import check_fits
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners import Pruner, build_pruner
from finepruner_lmms.pruners.registry import needs_budget
from finepruner_lmms.testing.families import FAMILIES, Row, family_prompts, tiny_model

SUBSTITUTES: tuple[dict[str, Any], ...] = ({"importance": "received"}, {"relevance": "embedding"})
"""Parameters under which a method runs where the published way is not there, in the order in which they are tried."""
_BUDGET = "50%"
_ROW: Row = (3, "a", 4)
_SQUARES: dict[str, Row] = {"llava_onevision": (3, "a", 2, "b", 4), "internvl": (3, "s", 4)}
"""Where pictures are tiled as a rule, rows in which each fills one square: several pictures at once, and one tile."""


@dataclass(frozen=True)
class Support:
    """How a method runs on a family: the `parameters` it takes there and what else differs, or why it is `refused`."""

    parameters: dict[str, Any] = field(default_factory=dict)
    positions_kept: bool = False
    refused: str = ""
    squares_only: bool = False

    @property
    def text(self) -> str:
        """A cell of the table."""
        if self.refused:
            return "refused"
        changed = [f"`{name}={value}`" for name, value in self.parameters.items()]
        changed += ["places kept"] if self.positions_kept else []
        changed += ["square pictures only"] if self.squares_only else []
        return ", ".join(changed) or "unchanged"


def support(which: str, name: str) -> Support:
    """How the method `name` runs on the tiny model `which`."""
    family = find_family(FAMILIES[which].config().model_type)
    reason = ""
    for parameters in ({}, *SUBSTITUTES):
        try:
            pruner = build_pruner(name, **({"budget": _BUDGET} if needs_budget(name) else {}), **parameters)
        except FieldError:  # the method has no such parameter
            continue
        _, inside = pruner.halves
        kept = family.grid_positions and inside is not None and inside.renumber_positions
        try:
            check_fits(family, pruner)
            _run(which, pruner, _ROW)
            return Support(parameters, kept)
        except FieldError as error:
            # the small models name no CLIP checkpoint; what CLIP's text tower says of a question needs none here
            if error.field == "relevance" and "clip_vision_model" in family.towers:
                return Support(parameters, kept)
            if error.field == "words":  # nor have they a tokenizer, which every checkpoint brings along
                return Support(parameters, kept)
            reason = str(error)  # that of the last way, which is what stands in the way at the end
        if name in ("pool", "downsample") and which in _SQUARES:
            _run(which, build_pruner(name, budget=2), _SQUARES[which])
            return Support(parameters, kept, squares_only=True)
    return Support(refused=reason)


def _run(which: str, pruner: Pruner, row: Row) -> None:
    inputs = family_prompts(which, row)
    fp.generate(tiny_model(which), pruner, inputs, questions=["what is there"], max_new_tokens=1, do_sample=False)


def table() -> str:
    """The table, in Markdown, and under it why a method is refused somewhere."""
    families = [which for which in FAMILIES if "-" not in which]
    titles = [find_family(which).title for which in families]
    lines = ["| method | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    reasons: dict[str, list[str]] = {}
    for name in fp.METHODS:
        found = {title: support(which, name) for which, title in zip(families, titles, strict=True)}
        lines.append(f"| `{name}` | " + " | ".join(one.text for one in found.values()) + " |")
        for title, one in found.items():
            if one.refused:
                reasons.setdefault(f"`{name}`: {one.refused.replace(title, 'this family')}", []).append(title)
    refused = [f"- {reason} ({', '.join(where)})" for reason, where in reasons.items()]
    return "\n".join([*lines, *([""] if refused else []), *refused])


if __name__ == "__main__":
    print(table())  # noqa: T201
