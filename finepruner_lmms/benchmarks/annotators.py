"""VQA accuracy: how far ten annotators agree with an answer, by three conventions for what "agree" means.

LLaVA normalises the model's answer (`convert_*_for_submission.py`, Pythia's answer processor) and uploads it; a server
compares it with the annotators' answers. What the servers do to those answers differs, and so does lmms-eval:

- VQAv2 (`vqaEval.py` of the VQA API): where the annotators do not all say the same, both sides are normalised; where
  they do, neither is, so that "2" does not match ten times "two".
- VizWiz (`vqaEval.py` of its API): the model's answer is normalised, the annotators' are taken as they are.
- lmms-eval: both sides are always normalised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

Normaliser = Callable[[str], str]


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """The mean, over leaving out one annotator, of min(others who say the same / 3, 1)."""
    agree, count = sum(one == answer for one in annotators), len(annotators)
    if not count:
        return 0.0
    return (agree * min(1.0, (agree - 1) / 3) + (count - agree) * min(1.0, agree / 3)) / count


def normalised(answer: str) -> str:
    """An answer as LLaVA uploads it: "men's" is "men 's", "Two dogs." is "2 dogs"."""
    return str(_processor()(answer))


def vqav2(answer: str, annotators: Sequence[str]) -> float:
    """The score of a model's answer by LLaVA's upload and VQAv2's server, 0 to 1."""
    said, given = _plain(normalised(answer)), [_plain(one) for one in annotators]
    if len(set(given)) > 1:
        said, given = _served(said), [_served(one) for one in given]
    return vqa_accuracy(said, given)


def vizwiz(answer: str, annotators: Sequence[str]) -> float:
    """The score of a model's answer by LLaVA's upload and VizWiz's server, 0 to 1."""
    return vqa_accuracy(_served(_plain(normalised(answer))), annotators)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _served(text: str) -> str:
    """What a server makes of an answer: punctuation, number words, articles and contractions, but no split of "'s"."""
    processor = _processor()
    return str(processor.process_digit_article(processor.process_punctuation(text)))


@functools.cache
def _processor() -> Any:
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    return EvalAIAnswerProcessor()
