"""What there is to prune with: methods, their parameters, and where they are published."""

from __future__ import annotations

import inspect
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from finepruner_lmms.output import plain

if TYPE_CHECKING:
    from finepruner_lmms.pruners import Corrector, Pruner

    Kind: TypeAlias = type[Pruner] | type[Corrector]

_PLACES = {
    "": "behind any method",
    "none": "drops nothing",
    "vision": "before the language model",
    "decoder": "inside the language model",
    "both": "before the language model and inside it",
}


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, with all there is to say.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the methods and correctors with their parameters, papers and code; those of plug-ins too."""
    from finepruner_lmms.pruners.registry import corrector_class, known_correctors, known_methods, method_class

    correctors = [corrector_class(one) for one in known_correctors()]
    found: list[Kind] = [method_class(one) for one in known_methods()] + correctors
    if name is not None:
        found = [cls for cls in correctors if cls.name == name] or [method_class(name)]
    if as_json:
        # of all, the methods alone: programs build each by its name, which a corrector is not
        told = [cls for cls in found if name is not None or cls not in correctors]
        sys.stdout.write(json.dumps([_facts(cls) for cls in told], indent=1, default=str) + "\n")
    elif name is None:
        width = max(len(cls.name) for cls in found)
        lines = [line for cls in found for line in _short(cls, width)]
        more = "two joined by '+' prune before the language model and inside it: divprune+fastv, first=288; "
        more += "a corrector stands behind what it corrects: divprune+merge"
        sys.stdout.write("\n".join(map(plain, [*lines, "", more, "finepruner methods NAME says more of one"])) + "\n")
    else:
        sys.stdout.write("\n".join(map(plain, _long(found[0]))) + "\n")


def _facts(cls: Kind) -> dict[str, Any]:
    """A method as data. Paper, code and caveat are its own, not those of a method that it derives from."""
    from finepruner_lmms.pruners.registry import aliases_of

    own = vars(cls)
    return {
        "name": cls.name,
        "aliases": aliases_of(cls.name),
        "side": getattr(cls, "side", ""),
        "summary": _docstring(cls)[0],
        "parameters": _parameters(cls),
        "paper": own.get("paper", ""),
        "code": own.get("code", ""),
        "caveat": own.get("caveat", ""),
        "module": cls.__module__,
    }


def _parameters(cls: Kind) -> dict[str, Any]:
    """Each parameter beyond the budget with its default."""
    return cls().parameters()


def _docstring(cls: Kind) -> list[str]:
    """Its lines; a class without one of its own says nothing."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return [""] if text.startswith(f"{cls.__name__}(") else text.splitlines() or [""]


def _short(cls: Kind, width: int) -> list[str]:
    facts = _facts(cls)
    given = " ".join(name if value is None else f"{name}={value}" for name, value in facts["parameters"].items())
    rest = [given, " · ".join(filter(None, [facts["paper"], facts["code"]]))]
    return [f"{cls.name:{width}}  {_PLACES[facts['side']]}: {facts['summary']}"] + [
        f"{'':{width}}  {line}" for line in rest if line
    ]


def _long(cls: Kind) -> list[str]:
    from finepruner_lmms.pruners.registry import needs_budget

    facts = _facts(cls)
    aliases = f" (also {', '.join(facts['aliases'])})" if facts["aliases"] else ""
    lines = [f"{cls.name}{aliases}: {_PLACES[facts['side']]}; {cls.__module__}", "", *_docstring(cls), ""]
    needed = (
        ["  budget: required; visual tokens per layer on average, such as 128 or '22%'"]
        if facts["side"] and needs_budget(cls.name)
        else []
    )
    lines += ["parameters", *needed]
    for name, value in facts["parameters"].items():
        default = "none" if value is None else str(value)
        choices = _choices(name)
        lines.append(f"  {name}: default {default}{choices and f'; known: {choices}'}")
    lines += [f"{what}: {facts[what]}" for what in ("caveat", "paper", "code") if facts[what]]
    return lines


def _choices(parameter: str) -> str:
    """What head strategy, query and preset may be, with what plug-ins added."""
    from finepruner_lmms.heads.consensus import PRESETS
    from finepruner_lmms.heads.queries import known_queries
    from finepruner_lmms.heads.registry import RESERVED, known_strategies

    names = {"head_strategy": (*RESERVED, *known_strategies()), "query": known_queries(), "preset": tuple(PRESETS)}
    return ", ".join(names.get(parameter, ()))
