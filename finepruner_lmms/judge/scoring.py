"""From answered questions of MM-Vet to judged ones, whoever the judge is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from finepruner_lmms.judge import mmvet
from finepruner_lmms.judge.client import ChatClient
from finepruner_lmms.judge.judgements import Judgements
from finepruner_lmms.judge.judging import judge_all
from finepruner_lmms.judge.mmvet import Entry
from finepruner_lmms.judge.settings import JudgeServer

Progress = Callable[[int, int], None]


class Scorer:
    """A judge at work. A context manager: several sets of answers can be scored while it is open.

    `memory` is the judgements file; `exact` needs none.
    """

    def __init__(self, judge: JudgeServer | Literal["exact"], memory: Judgements) -> None:
        self._judge, self._memory = judge, memory

    def __enter__(self) -> Scorer:
        self._client = ChatClient(self._judge) if isinstance(self._judge, JudgeServer) else None
        if self._client is not None:
            self._memory.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        if self._client is not None:
            self._memory.__exit__(*problem)
            self._client.__exit__(*problem)

    def score(
        self, entries: Sequence[Entry], on_progress: Progress | None = None
    ) -> tuple[list[float], dict[str, Any]]:
        """The score of each answer, 0 to 1, and what to remember of the judge. `JudgeError` if one has none."""
        mmvet.check_entries(entries)
        if self._client is None:
            scores = [mmvet.exact_score(str(e["gt_answer"]), str(e["pred_answer"])) for e in entries]
            return scores, {"name": "exact"}
        cases = [mmvet.case(entry) for entry in entries]
        found = judge_all(cases, self._client, self._memory, on_progress)
        server = self._client.server
        about = {"name": server.name, "host": server.host, "models": sorted({str(one["model"]) for one in found})}
        return [float(one["value"]) for one in found], about | {"rubric": cases[0].rubric if cases else None}
