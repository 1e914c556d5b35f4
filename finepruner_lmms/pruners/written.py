"""Methods as one writes them on a command line: `fastv:64,finepruner:25%:heads=4`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.pruners.base import Pruner
from finepruner_lmms.pruners.budget import BudgetValue
from finepruner_lmms.pruners.registry import build_pruner, known_methods, needs_budget


def split_methods(text: str) -> list[str]:
    """The parts of a list of methods, without blanks."""
    return [part.strip() for part in text.split(",") if part.strip()]


def read_method(text: str, budget: BudgetValue = None, field: str = "--methods") -> tuple[str, Pruner]:
    """`method:budget:parameter=value` → its name in tables (`fastv 64`) and the pruner.

    `budget` is for a method that is written without one; `vanilla` takes none. `FieldError` of `field`.
    """
    import yaml

    name, *rest = (part.strip() for part in text.split(":"))
    parameters: dict[str, Any] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals and part is rest[0]:
            parameters["budget"] = part
        elif equals and key and value:
            parameters[key] = yaml.safe_load(value)
        else:
            problem = f"{text!r}: cannot read {part!r}; expected method:budget:parameter=value"
            raise FieldError(field, problem, value=text, fix="such as fastv:64, or finepruner:64:heads=4")
    if "budget" not in parameters and needs_budget(name):
        if budget is None:
            check_choice(field, name, known_methods())
            fix = f"write {name}:64, or a share such as {name}:25%"
            raise FieldError(field, f"{text!r} has no budget", value=text, fix=fix)
        parameters["budget"] = budget
        rest = [str(budget), *rest]
    try:
        return " ".join([name, *rest]), build_pruner(name, **parameters)
    except FieldError as error:
        raise FieldError(field, f"{text!r}: {error.field}: {error.problem}", value=text, fix=error.fix) from error


def read_methods(methods: Sequence[str], budget: BudgetValue = None) -> list[tuple[str, Pruner]]:
    """`vanilla` first, then each of `methods` once."""
    found = {"vanilla": build_pruner("vanilla")}
    for text in methods:
        label, pruner = read_method(text, budget)
        found.setdefault(label, pruner)
    return list(found.items())
