"""Whether a method can run on a family, before anything is loaded: what is missing, why, and what to take instead."""

from __future__ import annotations

from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.base import Pruner, VisionPruner

_STANDS_IN = {
    "cls_attention": ("importance", "cls", "importance=received or importance=norm"),
    "cls_projected": ("importance", "cls", "importance=received or importance=norm"),
    "image_embeds": ("relevance", "clip", "relevance=embedding or relevance=none"),
}
"""What a method reads: the parameter that makes it do so, its value, and others."""


def check_fits(family: Family, pruner: Pruner) -> None:
    """Raise `FieldError` where `pruner` cannot work on models of a family, whatever the image."""
    before, inside = pruner.halves
    if before is not None:
        _check_before(family, before)
    if inside is not None:
        check_positions(family, inside)


def check_positions(family: Family, pruner: Pruner) -> None:
    """Raise `FieldError` where a method is to number tokens anew that have places in a grid."""
    if family.grid_positions and getattr(pruner, "positions", None) == "renumbered":
        raise FieldError(
            "positions",
            f"got 'renumbered', but visual tokens of {family.title} have places in a grid, which cannot be numbered "
            "anew",
            value="renumbered",
            fix="leave it out: every token keeps its place",
        )


def _check_before(family: Family, pruner: VisionPruner) -> None:
    for name in pruner.reads:
        if (reason := family.lacks.get(name)) is None:
            continue
        parameter, value, instead = _STANDS_IN.get(name, ("method", pruner.name, "use another method"))
        problem = f"{value!r} of method {pruner.name!r} needs {name} of {family.title}, and there is none: {reason}"
        raise FieldError(parameter, problem, value=value, fix=instead)
    if family.grid_positions and type(pruner).reduce is not VisionPruner.reduce:
        raise FieldError(
            "method",
            f"{pruner.name!r} makes new tokens before the language model, and {family.title} numbers visual tokens by "
            "their places in a grid, where new ones have none",
            value=pruner.name,
            fix=pruner.instead,
        )
