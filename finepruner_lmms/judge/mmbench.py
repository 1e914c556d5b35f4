"""MMBench: the judge finds the option that an answer in words means, where no letter can be read from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from finepruner_lmms.judge.client import ChatClient
from finepruner_lmms.judge.judgements import Judgements
from finepruner_lmms.judge.judging import Case, judge_one

_NONE = "E"
_INSTRUCTIONS = (
    "A multiple-choice question was answered in words. Say which option means the same as the answer. Reply with the "
    f"option's letter alone, or with {_NONE} if the answer means none of the options.\n"
)


def letter(
    question: str, options: Mapping[str, str], answer: str, client: ChatClient, memory: Judgements, document: str
) -> str | None:
    """The letter of the option that `answer` means, or None if it means none of them. `JudgeError` as for `judge_one`.

    `options` are by letter; empty ones and "nan" do not count. `document` names the question in the judgements file.
    """
    found = str(judge_one(case(question, options, answer, document), client, memory)["value"])
    return None if found == _NONE else found


def case(question: str, options: Mapping[str, str], answer: str, document: str) -> Case:
    """What the judge is asked."""
    given = {name: text for name, text in options.items() if isinstance(text, str) and text not in ("", "nan")}
    shown = " ".join(f"{name}. {text}" for name, text in given.items())
    prompt = f"{_INSTRUCTIONS}Question: {question}\nOptions: {shown}\nAnswer: {answer}\nLetter:"

    def read(reply: str) -> str:
        said = reply.strip().strip("*`\"'().:").strip()
        known = [*given, _NONE]
        if said not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return said

    fingerprint = hashlib.sha256(_INSTRUCTIONS.encode()).hexdigest()[:12]
    return Case(document, answer, prompt, fingerprint, read)
