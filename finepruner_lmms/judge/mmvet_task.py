"""MM-Vet as LLaVA-1.5 was evaluated on it: the bare question, and a judge that is asked after all answers are kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from loguru import logger
from PIL import Image

from finepruner_lmms.judge.answers import score_file, write_answers
from finepruner_lmms.judge.client import JudgeError
from finepruner_lmms.judge.mmvet import Entry
from finepruner_lmms.judge.settings import Judge, from_environment


@functools.cache
def judge_of_the_run() -> Judge:
    """Who judges a plain lmms-eval run, which can be told only by the environment; it is read once per process."""
    return from_environment()


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The image, or none for a question without."""
    return [] if doc["image"] is None else [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question; `FieldError` if nobody is named who will judge the answer.

    lmms-eval asks to reason step by step before it, which LLaVA's evaluation does not.
    """
    judge_of_the_run()  # here, since no function of a task is called earlier without its errors being wrapped
    options = lmms_eval_specific_kwargs or {}
    return f"{options.get('pre_prompt', '')}{doc['question']}{options.get('post_prompt', '')}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Entry]:
    """The answer and what is needed to judge it, in lmms-eval's names; nobody is asked yet."""
    entry = {
        "question_id": doc["question_id"],
        "question": doc["question"],
        "gt_answer": doc["answer"],
        "capabilities": doc["capability"],
        "pred_answer": results[0],
    }
    return {"gpt_eval_score": entry}


def aggregate(results: Sequence[Entry], args: Any = None) -> float | None:
    """Keep the answers, have them judged, and return the mean score, 0 to 100; None, for lmms-eval N/A, without one.

    That is so if `FINEPRUNER_JUDGE` is `later`, or if the judge fails: the error is logged, with the file in which the
    answers are kept. (Raised, it would cost the results of all other tasks of the run.) The scores of single
    capabilities are logged and written beside the answers.
    """
    judge = judge_of_the_run()
    file = write_answers(results, getattr(args, "output_path", None))
    again = f"`finepruner judge {file}`"
    if judge == "later":
        logger.info("MM-Vet waits for the judge; the answers are kept: {}", again)
        return None
    try:
        outcome, judged = score_file(file, judge, _log_progress)
    except (JudgeError, ValueError) as error:
        logger.error("MM-Vet has no score: {}\nThe answers are kept; {} goes on from here", error, again)
        return None
    for entry, scored in zip(results, judged, strict=True):
        entry["score"] = scored["score"]  # for lmms-eval's standard error
    shown = ", ".join(f"{name} {value:.1f}" for name, value in outcome["scores"].items())
    logger.info("MM-Vet, judged by {}: {}; {}", outcome["judge"]["name"], shown, file)
    return float(outcome["scores"]["total"])


def _log_progress(done: int, total: int) -> None:
    if done == total or done % 20 == 0:
        logger.info("MM-Vet: {} of {} answers judged", done, total)
