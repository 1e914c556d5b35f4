"""Prompts: what is put around a question before the model reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IMAGE = "<image>"
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
    return _vicuna([_message(question, has_image)])


def chat_template(processor: Any, question: str, has_image: bool) -> str:
    """The checkpoint's own template."""
    return processor.apply_chat_template([_message(question, has_image)], add_generation_prompt=True)


def prompt(conv: str, processor: Any, question: str, has_image: bool) -> str:
    """The prompt of a question in the conversation `conv`."""
    return render(conv, processor, [_message(question, has_image)])


def render(conv: str, processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of a conversation in the form `conv`, up to where the model goes on.

    `messages` have a `role` and a `content`, a list of `{"type": "text", "text": …}` and `{"type": "image"}` as chat
    templates read it. A placeholder inside a text would claim an image that is not there, so it is taken out, as
    LLaVA's own evaluation does.
    """
    messages = [{**message, "content": [_own_text(part) for part in message["content"]]} for message in messages]
    return (
        _vicuna(messages)
        if conv == "vicuna_v1"
        else processor.apply_chat_template(messages, add_generation_prompt=True)
    )


def _message(question: str, has_image: bool) -> dict[str, Any]:
    shown = [{"type": "image"}] if has_image else []
    return {"role": "user", "content": [*shown, {"type": "text", "text": question}]}


def _own_text(part: Mapping[str, str]) -> Mapping[str, str]:
    text = part.get("text", "")
    return {**part, "text": text.replace(IMAGE, "").strip()} if IMAGE in text else part


def _vicuna(messages: Sequence[Mapping[str, Any]]) -> str:
    """LLaVA's `conv_vicuna_v1`; a message of the system stands in place of its own."""
    system, said = _VICUNA_SYSTEM, ""
    for message in messages:
        text = "".join(part["text"] if part["type"] == "text" else f"{IMAGE}\n" for part in message["content"])
        if message["role"] == "system":
            system = text
        else:
            said += f"USER: {text} " if message["role"] == "user" else f"ASSISTANT: {text}</s>"
    return f"{system} {said}ASSISTANT:"


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
