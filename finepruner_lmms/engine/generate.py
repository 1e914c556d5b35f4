"""Generating with a pruner: one function for vision-side and decoder-side methods, for batches of any mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.decoder_hooks import attach
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.parts import check_model, word_embeddings
from finepruner_lmms.engine.prompt_layout import Layout, find_padding, read_layout, shorten_prompt
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.engine.vision_tower import encode_images, encoder_outputs
from finepruner_lmms.ops.selection import fingerprint
from finepruner_lmms.pruners import Pruner, VisionPruner, build_pruner
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_features", "vision")
_REFUSED = {
    "assistant_model": "assisted decoding verifies several tokens at once",
    "prompt_lookup_num_tokens": "assisted decoding verifies several tokens at once",
    "prefill_chunk_size": "chunked prefill never shows the whole prompt",
    "labels": "the logits of a pruned prompt are fewer than its labels",
    "inputs_embeds": "the visual tokens of a prompt are found by their placeholders in input_ids",
    "position_ids": "positions follow from the attention mask",
}


@dataclass(frozen=True)
class Generation:
    """`sequences` `[B, T]`: new token ids only; `logits`: T tensors `[B, V]` if asked for; `trace`: what was kept."""

    sequences: Tensor
    logits: tuple[Tensor, ...] | None
    trace: Trace


@torch.no_grad()
def generate(
    model: LlavaForConditionalGeneration,
    pruner: Pruner,
    inputs: Mapping[str, Any],
    *,
    questions: list[str] | None = None,
    **generation_kwargs: Any,
) -> Generation:
    """Answer a batch of prompts with `pruner` at work on an unmodified transformers LLaVA.

    `inputs` holds `input_ids` `[B, L]` (placeholders expanded, left-padded), `attention_mask` `[B, L]` (found by the
    model's padding id where it is not given and can be told), and one of
    `pixel_values` `[images, 3, S, S]`, `image_features` `[images, N, D]` (projected visual tokens; not for
    vision-side methods) or `vision` (what `encode_images` returned, to encode an image once for several methods).
    Images belong to the rows that hold placeholders, in order; one for each of the B rows is accepted as well.
    `questions`, one a row, is for methods that read the question apart from the prompt. Everything else goes to
    `model.generate`. A row gets in a batch what it gets alone.

    Raises `ValueError` for inputs and generation modes that cannot be pruned correctly, and for a budget out of reach
    on this model.
    """
    check_model(model)
    geometry = Geometry.of(model.config)
    _check_call(model, inputs, questions, generation_kwargs)
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None:
        mask = find_padding(ids, *_special_ids(model, generation_kwargs))
    layout = read_layout(ids, mask, geometry.image_token_id, geometry.num_visual_tokens)
    pruner.stages(geometry.num_layers, geometry.num_visual_tokens)  # raises what cannot be
    before, inside = pruner.parts(geometry.num_visual_tokens)
    under: Pruner = inside or build_pruner("vanilla")

    if (
        before is None
        or before.retained(geometry.num_visual_tokens) == geometry.num_visual_tokens
        or not any(layout.has_image)
    ):
        arguments = {"input_ids": ids, "attention_mask": mask} | _images(inputs, layout)
        with attach(model, under) as trace:
            output = _run(model, arguments, generation_kwargs)
        return _finish(output, ids.shape[1], trace.every(len(trace.has_image) // len(ids)))

    vision = _vision_for(model, inputs, layout, before, questions)
    reduced = before.reduce(vision)
    left = reduced.tokens.shape[1]
    short_ids, short_mask = shorten_prompt(ids, layout, left, _padding_id(model, geometry))
    arguments = {"input_ids": short_ids, "attention_mask": short_mask} | encoder_outputs(reduced.tokens)
    with attach(model, under, num_visual_tokens=left) as trace:
        output = _run(model, arguments, generation_kwargs)
        for what, values in vision.tensors().items():
            trace.watch(what, values)
    trace = trace.every(len(trace.has_image) // len(ids)).behind(reduced)
    return _finish(output, short_ids.shape[1], trace)


def _check_call(
    model: LlavaForConditionalGeneration,
    inputs: Mapping[str, Any],
    questions: list[str] | None,
    generation_kwargs: dict[str, Any],
) -> None:
    for key in inputs:
        if key not in _INPUTS:
            raise ValueError(f"inputs: unknown key {key!r}; known: {', '.join(_INPUTS)}")
    if "input_ids" not in inputs:
        raise ValueError("inputs: 'input_ids' is missing")
    given = [key for key in ("pixel_values", "image_features", "vision") if inputs.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"inputs: got {' and '.join(given)}; give the images once")
    if questions is not None and len(questions) != len(inputs["input_ids"]):
        raise ValueError(f"questions: got {len(questions)} for {len(inputs['input_ids'])} rows; give one a row")
    config = generation_kwargs.get("generation_config") or model.generation_config
    for key, reason in _REFUSED.items():
        if generation_kwargs.get(key) is not None or getattr(config, key, None) is not None:
            raise ValueError(f"{key}: cannot be combined with pruning, because {reason}")
    cache = generation_kwargs.get("cache_implementation", getattr(config, "cache_implementation", None))
    if cache not in (None, "dynamic"):
        raise ValueError(f"cache_implementation: {cache!r} gives every layer the same length; leave it out")
    if generation_kwargs.get("use_cache", getattr(config, "use_cache", True)) is False:
        raise ValueError("use_cache: pruning needs the key-value cache; leave it on")
    past = generation_kwargs.get("past_key_values")
    if past is not None and past.get_seq_length():
        raise ValueError("past_key_values: holds tokens already; pruning starts from an empty cache")
    if "return_dict_in_generate" in generation_kwargs:
        raise ValueError("return_dict_in_generate: the result is always a Generation; leave it out")


def _images(inputs: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The images of the batch as arguments of `model.generate`, one for each row that shows one."""
    if (vision := inputs.get("vision")) is not None:
        inputs = {"image_features": vision.projected}
    for key in ("pixel_values", "image_features"):
        if (images := inputs.get(key)) is not None:
            shown = _of_rows(key, images, layout)
            if not len(shown):
                return {}
            return {"pixel_values": shown} if key == "pixel_values" else encoder_outputs(shown)
    if any(layout.has_image):
        raise ValueError("inputs: the prompt holds image placeholders, but there are no images (pixel_values)")
    return {}


def _of_rows(key: str, images: Tensor, layout: Layout) -> Tensor:
    """The images of the rows that show one, from one an image or one a row."""
    rows = [row for row, shown in enumerate(layout.has_image) if shown]
    if len(images) == len(rows):
        return images
    if len(images) == len(layout.has_image):
        return images[rows]
    raise ValueError(
        f"{key}: holds {len(images)} images for a batch of {len(layout.has_image)} rows, of which {len(rows)} show one"
    )


def _vision_for(
    model: LlavaForConditionalGeneration,
    inputs: Mapping[str, Any],
    layout: Layout,
    pruner: VisionPruner,
    questions: list[str] | None,
) -> VisionOutputs:
    """The encoded images of the rows that show one, with their questions where the method reads them.

    Sample keys tell image and prompt apart.
    """
    rows = [row for row, shown in enumerate(layout.has_image) if shown]
    vision = inputs.get("vision")
    if vision is None:
        if inputs.get("pixel_values") is None:
            raise ValueError(
                f"image_features: method {pruner.name!r} chooses by the vision tower's own outputs; pass pixel_values"
                if inputs.get("image_features") is not None
                else "inputs: the prompt holds image placeholders, but there are no images (pixel_values)"
            )
        vision = encode_images(model, _of_rows("pixel_values", inputs["pixel_values"], layout))
    elif len(vision.features) != len(rows):
        raise ValueError(f"vision: holds {len(vision.features)} images, but {len(rows)} rows show one")
    ids = inputs["input_ids"]
    prompts = fingerprint(ids, layout.valid)[rows]
    keys = fingerprint(vision.features) if vision.sample_keys is None else vision.sample_keys
    vision = vision.replace(sample_keys=keys.to(prompts.device) ^ prompts)
    if pruner.reads_question == "embedding":
        words = word_embeddings(model, ids[:, ids.shape[1] - layout.tail :])
        return vision.replace(text_embeds=[words[row, layout.tail - layout.tails[row] :] for row in rows])
    if pruner.reads_question == "clip":
        if questions is None:
            raise ValueError(f"questions: {pruner.name!r} reads the question apart from the prompt; give one a row")
        from finepruner_lmms.engine.clip import bare_question, clip_checkpoint, joint_space

        space = joint_space(clip_checkpoint(model.config, getattr(pruner, "clip", None)), model.device)
        texts = space.embed_texts([bare_question(questions[row]) for row in rows])
        return vision.replace(image_embeds=space.embed_patches(model, vision.features), text_embeds=texts)
    return vision


def _special_ids(
    model: LlavaForConditionalGeneration, generation_kwargs: Mapping[str, Any]
) -> tuple[int | None, tuple[int, ...]]:
    """The id that pads, where one is named, and those that end an answer."""
    config = generation_kwargs.get("generation_config") or model.generation_config
    text = model.config.get_text_config()

    def named(key: str) -> Any:
        found = (generation_kwargs.get(key), getattr(config, key, None), getattr(text, key, None))
        return next((value for value in found if value is not None), None)

    end = named("eos_token_id")
    return named("pad_token_id"), tuple(end) if isinstance(end, list | tuple) else () if end is None else (end,)


def _padding_id(model: LlavaForConditionalGeneration, geometry: Geometry) -> int:
    """An id for padding; any but the placeholder's, because padding is masked."""
    padding = model.config.text_config.pad_token_id
    if isinstance(padding, int) and 0 <= padding != geometry.image_token_id:
        return padding
    return 0 if geometry.image_token_id != 0 else 1


def _run(model: LlavaForConditionalGeneration, arguments: dict[str, Any], generation_kwargs: dict[str, Any]) -> Any:
    return model.generate(**arguments, return_dict_in_generate=True, **generation_kwargs)


def _finish(output: Any, prompt_length: int, trace: Trace) -> Generation:
    logits = getattr(output, "logits", None)
    return Generation(output.sequences[:, prompt_length:], None if logits is None else tuple(logits), trace)
