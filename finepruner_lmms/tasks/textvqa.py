"""TextVQA as LLaVA-1.5 was evaluated on it."""

from __future__ import annotations

from typing import Any


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question as written, the OCR tokens where `ocr` is set, and the instruction.

    lmms-eval capitalises the question, which lower-cases the names in it; LLaVA's question file does not.
    """
    options = lmms_eval_specific_kwargs or {}
    reference = f"\nReference OCR token: {', '.join(doc['ocr_tokens'])}" if options.get("ocr") else ""
    return f"{doc['question']}{reference}{options.get('post_prompt', '')}"
