"""From answered questions to judged ones, whoever the judge and whatever the benchmark is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from finepruner_lmms.errors import FieldError
from finepruner_lmms.judge import mmbench, mmvet
from finepruner_lmms.judge.client import ChatClient
from finepruner_lmms.judge.judgements import Judgements
from finepruner_lmms.judge.judging import Case, judge_all
from finepruner_lmms.judge.settings import JudgeServer

Entry = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rules:
    """How the answers to a benchmark are judged.

    What the judge finds becomes the entry's `field`. `case` is what it is asked, or None where it is not needed;
    `exact` finds the same by string match, where that can be. `totals` are the judged entries' scores in percent, by
    name, `total` among them; `check` raises `ValueError` for what is no entry.
    """

    field: str
    check: Callable[[Sequence[Entry]], None]
    case: Callable[[Entry], Case | None]
    totals: Callable[[Sequence[Entry]], dict[str, float]]
    exact: Callable[[Entry], Any] | None = None
    repeats: bool = False
    """Whether what is found is a number, of which the mean over several judgements is meant."""


MMVET = Rules("score", mmvet.check_entries, mmvet.case, mmvet.totals, mmvet.exact, repeats=True)
MMBENCH = Rules("letter", mmbench.check_entries, mmbench.case, mmbench.totals)
RULES = {"mmvet": MMVET, "mmbench": MMBENCH, "mmbench_cn": MMBENCH}
"""By benchmark."""


class Scorer:
    """A judge at work. A context manager: several sets of answers can be scored while it is open.

    `memory` is the judgements file; `exact` needs none.
    """

    def __init__(self, judge: JudgeServer | Literal["exact"], memory: Judgements) -> None:
        self._judge, self._memory = judge, memory

    def __enter__(self) -> Scorer:
        self._client = ChatClient(self._judge) if isinstance(self._judge, JudgeServer) else None
        with ExitStack() as opened:
            if self._client is not None:
                opened.enter_context(self._memory)
                opened.enter_context(self._client)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._opened.close()

    def score(
        self, rules: Rules, entries: Sequence[Entry], on_progress: Progress | None = None
    ) -> tuple[list[Entry], dict[str, Any]]:
        """The judged entries, and what to remember of the judge. `JudgeError` if one could not be judged."""
        rules.check(entries)
        entries = [{name: value for name, value in one.items() if name != f"{rules.field}s"} for one in entries]
        if self._client is None:
            if rules.exact is None:
                problem = f"got 'exact'; there is no string match for the {rules.field} of an answer"
                raise FieldError("judge", problem, value="exact")
            return [entry | {rules.field: rules.exact(entry)} for entry in entries], {"name": "exact"}
        cases, server = [rules.case(entry) for entry in entries], self._client.server
        times = server.times if rules.repeats else 1
        asked = [replace(case, time=time) for case in cases if case is not None for time in range(times)]
        found = judge_all(asked, self._client, self._memory, on_progress)
        values = iter(one.value for one in found)
        judged = [
            entry if case is None else entry | _found(rules.field, [next(values) for _ in range(times)])
            for entry, case in zip(entries, cases, strict=True)
        ]
        about = {"name": server.scored_as, "host": server.host, "models": sorted({one.model for one in found})}
        return judged, about | {"asked": len(asked), "rubric": asked[0].rubric if asked else None}


def _found(field: str, values: list[Any]) -> Entry:
    """What is added to an entry: the value, or of several their mean, and each of them."""
    if len(values) == 1:
        return {field: values[0]}
    return {field: statistics.fmean(values), f"{field}s": values}
