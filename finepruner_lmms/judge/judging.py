"""Judging many answers: several at once, each stored as it comes, none twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finepruner_lmms.errors import FieldError, show
from finepruner_lmms.judge.client import ChatClient, GarbledReply, JudgeError, JudgeUnavailable
from finepruner_lmms.judge.judgements import Judgement, Judgements, JudgementsError, judgement_key

# a reply that cannot be read is asked for again, warmer, since the same question has the same answer at temperature 0
_TEMPERATURES = (0.0, 0.5, 1.0)
_MANY_FAILURES = 10
_NAMED_FAILURES = 3


@dataclass(frozen=True)
class Case:
    """What is put to the judge: `prompt` about an `answer` to `document`. `read` makes a value of the reply.

    `read` raises `ValueError` if it cannot. `rubric` identifies the instructions in the prompt. `time` counts how often
    the same was asked before.
    """

    document: str
    answer: str
    prompt: str
    rubric: str
    read: Callable[[str], Any]
    time: int = 0


def require_fields(entries: Sequence[Any], fields: Sequence[str]) -> None:
    """`FieldError` naming the first of `fields` that an answered question lacks."""
    for number, entry in enumerate(entries):
        for name in fields:
            if not isinstance(entry, dict) or name not in entry:
                raise FieldError(f"answer {number}", f"has no {name!r}; expected {', '.join(fields)}", value=entry)


def judge_all(
    cases: Sequence[Case], client: ChatClient, memory: Judgements, on_progress: Callable[[int, int], None] | None = None
) -> list[Judgement]:
    """A judgement of each case, from `memory` where it is known; its `value` is what `read` made of the reply.

    `JudgeError` if some could not be judged: at once if the server is out of reach, else after the others. All that
    were judged are in `memory`. `JudgementsError`, before anything is asked, if what is there was not judged so.
    """
    left = [case for case in cases if _known(case, client, memory) is None]
    with ThreadPoolExecutor(client.server.workers, thread_name_prefix="judge") as pool:
        futures = {pool.submit(judge_one, case, client, memory): case for case in left}
        try:
            failures = _collect(futures, len(cases), on_progress or (lambda _done, _total: None))
        except BaseException:  # whatever stops us, Ctrl-C among it, must stop the threads
            client.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise JudgeError(_summary(failures, len(cases)))
    return [found for case in cases if (found := _known(case, client, memory)) is not None]


def _collect(futures: dict[Future[Judgement], Case], total: int, report: Callable[[int, int], None]) -> list[str]:
    """Wait for all; returns what went wrong with single cases."""
    failures: list[str] = []
    done = total - len(futures)
    report(done, total)
    for future in as_completed(futures):
        try:
            future.result()
        except JudgeUnavailable:
            raise
        except JudgeError as error:
            failures.append(f"{futures[future].document}: {error}")
            if len(failures) == _MANY_FAILURES:
                raise JudgeUnavailable(f"gave up: {_summary(failures, total)}") from None
        else:
            done += 1
            report(done, total)
    return failures


def _summary(failures: Sequence[str], total: int) -> str:
    named = "\n  ".join(failures[:_NAMED_FAILURES])
    return f"{len(failures)} of {total} answers could not be judged, such as\n  {named}"


def judge_one(case: Case, client: ChatClient, memory: Judgements) -> Judgement:
    """The judgement of one case, from `memory` or the server."""
    if (known := _known(case, client, memory)) is not None:
        return known
    for number, temperature in enumerate(_TEMPERATURES, 1):
        try:
            reply = client.ask(case.prompt, temperature)
            value = _read(case, reply.text, client)
        except GarbledReply:
            if number == len(_TEMPERATURES):
                raise
            continue
        break
    judgement = Judgement(
        key=_key(case, client),
        document=case.document,
        answer=case.answer,
        value=value,
        reply=reply.text,
        judge=client.server.name,
        model=reply.model,
        host=client.server.host,
        rubric=case.rubric,
        temperature=temperature,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        usage=reply.usage,
    )
    memory.add(judgement)
    return judgement


def _known(case: Case, client: ChatClient, memory: Judgements) -> Judgement | None:
    """What is remembered of a case. `JudgementsError` if its reply does not mean it, or it is of another case."""
    known = memory.get(_key(case, client))
    if known is None:
        return None
    try:
        meant = case.read(known.reply)
    except ValueError as error:
        problem = f"the reply {show(known.reply)} is no judgement: {error}"
    else:
        same = type(known.value) in (type(meant), int) and known.value == meant
        problem = "" if same else f"the value {show(known.value)} is not what the reply {show(known.reply)} means"
    if (known.document, known.answer, known.judge) != (case.document, case.answer, client.server.name):
        problem = f"it is not about the answer to {case.document} that its key says"
    if problem:
        raise JudgementsError(f"{memory.place(known)}: {problem}; delete the line to have it judged again")
    return known


def _key(case: Case, client: ChatClient) -> str:
    return judgement_key(case.document, client.server.name, case.prompt, case.time)


def _read(case: Case, text: str, client: ChatClient) -> Any:
    try:
        return case.read(text)
    except ValueError as error:
        raise GarbledReply(f"judge {client.server.url}: {error}, but said {text[:300]!r}") from None
