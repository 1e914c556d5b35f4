"""The images of a batch: which row shows which, and what a method may read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.first_layer import FirstLayer
from finepruner_lmms.engine.parts import device_of, word_embeddings
from finepruner_lmms.engine.prompt_layout import Layout
from finepruner_lmms.engine.vision_tower import encode_images, encoder_outputs
from finepruner_lmms.errors import FieldError
from finepruner_lmms.ops.selection import fingerprint
from finepruner_lmms.pruners import Pruner, VisionPruner
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish, VisionOutputs


def image_arguments(inputs: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The images of the batch as arguments of `model.generate`, one for each row that shows one.

    Raises `FieldError` where images and placeholders do not fit each other.
    """
    if (vision := inputs.get("vision")) is not None:
        return encoder_outputs(vision.of_rows(_images_of_rows("vision", len(vision.projected), layout)).projected)
    for key in ("pixel_values", "image_features"):
        if (images := inputs.get(key)) is not None and len(images):
            shown = images[_images_of_rows(key, len(images), layout)]
            return {"pixel_values": shown} if key == "pixel_values" else encoder_outputs(shown)
    if any(layout.has_image):
        raise _no_images()
    return {}


def encoded(
    model: LlavaForConditionalGeneration,
    inputs: Mapping[str, Any],
    layout: Layout,
    encode: Callable[[Tensor], VisionOutputs],
) -> Mapping[str, Any]:
    """The same inputs with `vision` in place of `pixel_values`; `encode` gets pixels as the tower takes them."""
    if (pixels := inputs.get("pixel_values")) is None or not len(pixels):
        return inputs
    tower = model.model.vision_tower
    pixels = pixels[_images_of_rows("pixel_values", len(pixels), layout)]
    pixels = pixels.to(device_of(tower, pixels.device), model.dtype, non_blocking=True)
    return {key: value for key, value in inputs.items() if key != "pixel_values"} | {"vision": encode(pixels)}


def visual_tokens(model: LlavaForConditionalGeneration, inputs: Mapping[str, Any], layout: Layout) -> Tensor | None:
    """The projected visual tokens `[images, N, D]` of the rows that show an image, in order; None without images.

    Raises `FieldError` where images and placeholders do not fit each other.
    """
    if (vision := inputs.get("vision")) is not None:
        return vision.projected[_images_of_rows("vision", len(vision.projected), layout)]
    for key in ("pixel_values", "image_features"):
        if (images := inputs.get(key)) is not None and len(images):
            shown = images[_images_of_rows(key, len(images), layout)]
            if key == "image_features":
                return shown
            return torch.stack(list(model.get_image_features(shown, return_dict=True).pooler_output))
    if any(layout.has_image):
        raise _no_images()
    return None


def outputs_for(
    model: LlavaForConditionalGeneration,
    inputs: Mapping[str, Any],
    layout: Layout,
    pruner: VisionPruner,
    questions: list[str] | None,
) -> VisionOutputs:
    """The encoded images of the rows that show one, with their questions where the method reads them.

    Sample keys tell image and prompt apart. Raises `FieldError` where images or questions are missing or do not fit.
    """
    rows = [row for row, shown in enumerate(layout.has_image) if shown]
    if (vision := inputs.get("vision")) is not None:
        vision = vision.of_rows(_images_of_rows("vision", len(vision.features), layout))
    elif (pixels := inputs.get("pixel_values")) is not None:
        pixels = pixels[_images_of_rows("pixel_values", len(pixels), layout)]
        vision = encode_images(model, pixels, tower_wish(pruner))
    elif inputs.get("image_features") is not None:
        raise FieldError(
            "image_features",
            f"method {pruner.name!r} chooses by the vision tower's own outputs",
            fix="pass pixel_values",
        )
    else:
        raise _no_images()
    return with_questions(model, pruner, vision, rows, inputs["input_ids"], layout, questions)


def tower_wish(pruner: Pruner) -> TowerWish:
    """What the tower is asked for the sake of what works before the language model."""
    before, _ = pruner.halves
    return NOTHING_MORE if before is None else before.wish


def joined_wish(pruners: Iterable[Pruner]) -> TowerWish:
    """What the tower is asked for several methods at once: of early layers the first; who reads another asks anew.

    It need not run where none of them looks at the image.
    """
    wishes = [tower_wish(pruner) for pruner in pruners]
    early = next((wish.early for wish in wishes if wish.early is not None), None)
    return TowerWish(
        any(wish.received for wish in wishes), early, unread=bool(wishes) and all(wish.unread for wish in wishes)
    )


def with_questions(
    model: Any,
    pruner: VisionPruner,
    vision: VisionOutputs,
    rows: list[int],
    ids: Tensor,
    layout: Layout,
    questions: list[str] | None,
) -> VisionOutputs:
    """Images that are shown in `rows` of the prompts `ids` `[B, L]`, with their questions where the method reads them.

    Sample keys tell image and prompt apart. `FieldError` where the method reads questions and there are none.
    """
    if pruner.early_layer not in (None, vision.early):
        problem = f"method {pruner.name!r} reads another layer of the tower than the one that was asked for"
        raise FieldError("vision", problem, fix="pass pixel_values")
    device = vision.features.device
    prompts = fingerprint(ids, layout.valid)[rows].to(device)
    keys = fingerprint(vision.features) if vision.sample_keys is None else vision.sample_keys
    vision = vision.replace(sample_keys=keys.to(device) ^ prompts)
    if pruner.reads_question == "embedding":
        words = word_embeddings(model, ids[:, ids.shape[1] - layout.tail :]).to(device)
        texts = [words[row, layout.tail - layout.tails[row] :] for row in rows]
        return vision.replace(text_embeds=texts, first_layer=FirstLayer(model.model.language_model))
    if pruner.reads_question in ("clip", "keywords") and questions is None:
        raise FieldError(
            "questions", f"{pruner.name!r} reads the question apart from the prompt", fix="give one per row"
        )
    asked = [] if questions is None else [questions[row] for row in rows]
    if pruner.reads_question == "keywords":
        from finepruner_lmms.engine.keywords import keyword_embeddings

        return vision.replace(text_embeds=keyword_embeddings(model, asked, device))
    if pruner.reads_question == "clip":
        from finepruner_lmms.engine.clip import bare_question, joint_space
        from finepruner_lmms.engine.clip_names import clip_checkpoint

        space = joint_space(clip_checkpoint(model.config, getattr(pruner, "clip", None)), device)
        bare = [bare_question(question) for question in asked]
        texts = space.embed_words(bare) if pruner.reads_words else space.embed_texts(bare)
        return vision.replace(image_embeds=space.embed_patches(model, vision.features), text_embeds=texts)
    return vision


def _images_of_rows(key: str, count: int, layout: Layout) -> list[int] | slice:
    """Which of `count` images the rows that show one show, in order: all, or of one per row theirs."""
    rows = [row for row, shown in enumerate(layout.has_image) if shown]
    if count and not rows:
        raise FieldError(
            key,
            f"holds {count} images, but no row of input_ids shows one",
            fix="expand the placeholders of the prompt, or leave the images out",
        )
    if count == len(rows):
        return slice(None)
    if count == len(layout.has_image):
        return rows
    raise FieldError(
        key,
        f"holds {count} images for a batch of {len(layout.has_image)} rows, of which {len(rows)} show one",
        fix="give one per row that shows one, or one per row",
    )


def _no_images() -> FieldError:
    return FieldError("inputs", "the prompt holds image placeholders, but there are no images", fix="pass pixel_values")
