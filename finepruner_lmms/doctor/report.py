"""`finepruner doctor`: what is ready and what is missing, before a GPU is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from finepruner_lmms.doctor.check import Check
from finepruner_lmms.doctor.machine import machine_checks
from finepruner_lmms.doctor.readiness import checkpoint_checks, clip_checks, judge_check, task_checks
from finepruner_lmms.output import plain, rich_text

if TYPE_CHECKING:
    from finepruner_lmms.judge.settings import Judge
    from finepruner_lmms.pruners import Pruner

_COLOURS = {"ok": "green", "warning": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Request:
    """What is to be run; what is None is not looked at. `pruners`, `judge` and `submission` are a matrix file's."""

    data: str | None = None
    tasks: Sequence[str] = ()
    pretrained: str | None = None
    attention: str = "sdpa"
    pruners: Sequence[Pruner] = ()
    judge: Judge | None = None
    submission: bool = False
    wrong: Check | None = None
    """What is wrong with the matrix file."""


def examine(request: Request) -> list[Check]:
    """Every check that applies, in a fixed order."""
    checks = list(machine_checks())
    checks += [] if request.wrong is None else [request.wrong]
    if request.pretrained is not None:
        found = list(checkpoint_checks(request.pretrained, request.attention))
        checks += found
        if found[0].status != "missing":
            checks += clip_checks(request.pruners, request.pretrained)
    if request.data is not None:
        for name in request.tasks:
            checks += task_checks(request.data, name, request.submission)
        if "mmvet" in request.tasks:
            checks.append(judge_check(request.judge))
    return checks


def ready(checks: Iterable[Check]) -> bool:
    """Whether nothing stops a run."""
    return all(check.status != "missing" for check in checks)


def as_json(checks: Sequence[Check]) -> str:
    """For programs: `ready`, and the checks with topic, status, text, fix and command."""
    return json.dumps({"ready": ready(checks), "checks": [asdict(check) for check in checks]}, indent=1)


def show(checks: Sequence[Check], console: Console) -> None:
    """One line per check, what to do and what to type below it."""
    states, topics = (max(map(len, column)) for column in zip(*((c.status, c.topic) for c in checks), strict=True))
    for check in checks:
        line = Text.assemble(
            (f"{check.status:{states}}", _COLOURS[check.status]), f"  {check.topic:{topics}}  {plain(check.text)}"
        )
        console.print(line, soft_wrap=True)
        for mark, what in (("→", check.fix), ("$", check.command)):
            if what:
                console.print(rich_text(f"{'':{states + topics + 4}}{mark} {what}"), soft_wrap=True)
    counts = {status: sum(check.status == status for check in checks) for status in _COLOURS}
    verdict = "ready" if ready(checks) else "not ready"
    console.print(f"{verdict}: " + ", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
