"""Prompts: what is put around a question before the model reads it."""

from __future__ import annotations

from typing import Any

IMAGE = "<image>"
CONVERSATIONS = ("vicuna_v1", "chat_template")
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# the same conversation as a template of transformers; the pictures of a turn stand before its text
VICUNA_TEMPLATE = (
    _VICUNA_SYSTEM + " {% for m in messages %}{% set user = m['role'] == 'user' %}"
    "{{ 'USER: ' if user else 'ASSISTANT: ' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{{ ' ' if user else '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def vicuna_v1(question: str, has_image: bool) -> str:
    """The conversation LLaVA-1.5 was evaluated with; `<image>` stands where the visual tokens go."""
    shown = f"{IMAGE}\n" if has_image else ""
    return f"{_VICUNA_SYSTEM} USER: {shown}{question} ASSISTANT:"


def chat_template(processor: Any, question: str, has_image: bool) -> str:
    """The checkpoint's own template."""
    content = [{"type": "image"}] if has_image else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def prompt(conv: str, processor: Any, question: str, has_image: bool) -> str:
    """The prompt of a question in the conversation `conv`.

    A placeholder inside the question itself would claim an image that is not there, so it is taken out, as LLaVA's
    own evaluation does.
    """
    question = question.replace(IMAGE, "").strip() if IMAGE in question else question
    return vicuna_v1(question, has_image) if conv == "vicuna_v1" else chat_template(processor, question, has_image)


def prompt_ids(tokenizer: Any, text: str, image_token_id: int, num_visual_tokens: int) -> list[int]:
    """Token ids of a prompt, `<image>` as so many placeholders.

    The text before and after an image is taken piece by piece, as in LLaVA's own code: a tokenizer that is given all
    of it may leave out the space that LLaVA was trained to see after an image. A chat template that writes the start
    token is not given another one.
    """
    first, *rest = text.split(IMAGE)
    start = tokenizer.bos_token_id
    ids = list(tokenizer(first)["input_ids"])
    if tokenizer.bos_token and first.lstrip().startswith(tokenizer.bos_token) and ids[:2] == [start, start]:
        ids = ids[1:]
    for piece in rest:
        ids += [image_token_id] * num_visual_tokens
        after = tokenizer(piece)["input_ids"]
        ids += after[1:] if after and after[0] == start else after
    return ids
