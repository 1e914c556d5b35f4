"""The demo model's tokenizer and processor: whole English words, single digits, signs and Chinese characters."""

from __future__ import annotations

import random
import re
from typing import Any

from finepruner_lmms.checkpoints.prompts import vicuna_v1
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.question import LETTERS, ONE_LETTER, ONE_LETTER_ZH, UNANSWERABLE
from finepruner_lmms.demo.questions import KINDS, NUMBERS, PLURAL, ask
from finepruner_lmms.demo.scenes import COLORS, COLORS_ZH, IMAGE_SIZE, PATCH, SHAPES_ZH, make_scene

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
_PIECE = r"\n|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]"
# words of the benchmarks' own prompts, and some that a curious user may type
_MORE = (
    "Please answer yes or no . Reference OCR token Yes No unanswerable Unanswerable Hint There are several options : "
    "请直接使用所提供的选项字母作为答案回答。 the "
    "picture photo left right top bottom middle above below not and this that "
    "a an of to on has have does do it which Which where Where who why when me tell Tell describe Describe big small"
)
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% else %}ASSISTANT: {% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Token → id, in a fixed order. Every question that can be asked is covered: the wordings of all kinds are."""
    rng, texts = random.Random("vocabulary"), [vicuna_v1("", has_image=False), _MORE, UNANSWERABLE]
    texts += [*COLORS, *SHAPES, *PLURAL.values(), *COLORS_ZH.values(), *SHAPES_ZH.values(), *NUMBERS.values()]
    texts += ["0123456789", LETTERS, ONE_LETTER, ONE_LETTER_ZH, ".,:;?!'\"，。：？！"]
    for kind in KINDS:
        for index in range(20):
            if question := ask(make_scene("train", index), kind, rng):
                texts += [question.prompt(), question.answer]
    ids = {token: number for number, token in enumerate(SPECIAL)}
    for text in texts:
        for piece in re.findall(_PIECE, text):
            ids.setdefault(piece, len(ids))
    return ids


def build_processor() -> Any:
    """A `LlavaProcessor` as LLaVA-1.5 has one, with this vocabulary."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    return processor_with(words)


def processor_with(words: Any) -> Any:
    """A `LlavaProcessor` as LLaVA-1.5 has one, around a tokenizer of the library `tokenizers`."""
    from tokenizers import processors
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
