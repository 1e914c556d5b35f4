"""Names of tasks: which can be evaluated, why another one cannot, and what is meant by a name that is none."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.data.lmms_tasks import ANSWERED, TaskFile
from finepruner_lmms.errors import list_names, show

_MOST = 5
"""Names that are proposed."""
_ALIKE = 0.85
"""How alike more than one of them have to be: the share of characters in common."""


def no_task(name: str, others: Mapping[str, TaskFile]) -> str:
    """Why a name that is none of the ten cannot be evaluated, and what can be instead; "" where it can.

    `others` is what lmms-eval and the user's folder define, by name.
    """
    ours = name.removeprefix("fp_")
    if ours in BENCHMARKS:
        return f"{show(name)} is called {ours!r} here"
    found = others.get(name)
    if found is None:
        return f"unknown task {show(name)}{_meant(name, others)}; {_known(name, others)}"
    if found.members:
        can = [member for member in found.members if member not in others or _is_text(others[member])]
        if not can:
            return f"{name!r} is a group of tasks that ask for no texts{_meant(name, others)}"
        return f"{name!r} is a group of tasks; name those that are meant: {list_names(can, 20)}"
    if not _is_text(found):
        why = f"{_kind(found)}, not for texts (generate_until), which is what is evaluated here"
        return f"{name!r} {why}{_meant(name, others)}"
    return ""


def find_tasks(word: str, others: Mapping[str, TaskFile]) -> list[tuple[str, str]]:
    """The names that hold `word`, each with "" or what it is instead of a task for texts: the ten first."""
    ours = [(name, "") for name in BENCHMARKS if word in name]
    return ours + [
        (name, "" if _is_text(others[name]) else _kind(others[name]))
        for name in sorted(set(others) - set(BENCHMARKS))
        if word.lower() in name.lower()
    ]


def _kind(task: TaskFile) -> str:
    """What something is that asks for no texts itself."""
    if task.members:
        return f"is a group: {list_names(task.members, 20)}"
    return "is a Python class" if task.output_type is None else f"asks for {task.output_type}"


def _is_text(task: TaskFile) -> bool:
    """Whether its questions are answered with a text."""
    return not task.members and task.output_type in ANSWERED


def _meant(name: str, others: Mapping[str, TaskFile]) -> str:
    """` (did you mean 'a', 'b'?)`: the nearest names that can be evaluated, or nothing."""
    usable = list(dict.fromkeys([*BENCHMARKS, *(other for other, about in others.items() if _is_text(about))]))
    near = difflib.get_close_matches(name, usable, 1) or []
    near += [other for other in difflib.get_close_matches(name, usable, _MOST, _ALIKE) if other not in near]
    begin = [other for other in usable if len(name) > 2 and other.startswith(f"{name}_") and other not in near]
    near = [*near, *sorted(begin)][:_MOST]
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def _known(name: str, others: Mapping[str, TaskFile]) -> str:
    texts = sum(map(_is_text, others.values()))
    word = "".join(character for character in name if character.isalnum() or character in "_-")[:4] or "WORD"
    more = f"{texts:,} of lmms-eval's own tasks (`finepruner tasks --find {word}` lists them)"
    return f"known: {', '.join(BENCHMARKS)}, {more}, and yours in `tasks_dir`"
