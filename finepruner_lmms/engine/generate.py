"""Generating with a pruner: one function for vision-side and decoder-side methods, for batches of any mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.contract import check_reduction
from finepruner_lmms.engine.decoder_hooks import attach
from finepruner_lmms.engine.generation_modes import check_generation, setting
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.images import image_arguments, outputs_for
from finepruner_lmms.engine.parts import check_model
from finepruner_lmms.engine.prompt_layout import find_padding, read_layout, shorten_prompt
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.engine.vision_tower import encoder_outputs
from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.pruners import Pruner, build_pruner

_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_features", "vision")


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
    `questions`, one per row, is for methods that read the question apart from the prompt. Everything else goes to
    `model.generate`. A row gets in a batch what it gets alone.

    Raises `FieldError` for inputs and generation modes that cannot be pruned correctly, and for a budget out of reach
    on this model.
    """
    check_model(model)
    geometry = Geometry.of(model.config)
    check_call(model, inputs, questions, generation_kwargs)
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None:
        mask = find_padding(ids, *special_ids(model, generation_kwargs))
    layout = read_layout(ids, mask, geometry.image_token_id, geometry.num_visual_tokens)
    pruner.stages(geometry.num_layers, geometry.num_visual_tokens)  # raises what cannot be
    before, inside = pruner.parts(geometry.num_visual_tokens)

    generation_kwargs |= _lengths(model, generation_kwargs, ids.shape[1])
    shown = any(layout.has_image)
    if not shown or before is None or before.retained(geometry.num_visual_tokens) == geometry.num_visual_tokens:
        arguments = {"input_ids": ids, "attention_mask": mask} | image_arguments(inputs, layout)
        # what works inside was given its share of what works before leaves; without an image there is neither
        with attach(model, inside if shown and inside is not None else build_pruner("vanilla")) as trace:
            output = _run(model, arguments, generation_kwargs)
        return _finish(output, ids.shape[1], trace.drop_beams(len(trace.has_image) // len(ids)))

    vision = outputs_for(model, inputs, layout, before, questions)
    with for_choosing(vision.features.device):
        reduced = before.reduce(vision)
    checks = Trace()
    check_reduction(before, reduced, vision.projected, checks)
    left = reduced.tokens.shape[1]
    short_ids, short_mask = shorten_prompt(ids, layout, left, padding_id(model, geometry))
    arguments = {"input_ids": short_ids, "attention_mask": short_mask} | encoder_outputs(reduced.tokens)
    generation_kwargs |= _lengths(model, generation_kwargs, ids.shape[1], ids.shape[1] - short_ids.shape[1])
    with attach(model, inside or build_pruner("vanilla"), num_visual_tokens=left) as trace:
        output = _run(model, arguments, generation_kwargs)
        for what, values in vision.tensors().items():
            trace.watch(what, values)
    checks.check()  # after NaN, which may be the reason why a method chose wrongly
    trace = trace.drop_beams(len(trace.has_image) // len(ids)).to_original_tokens(reduced)
    return _finish(output, short_ids.shape[1], trace)


def _lengths(
    model: LlavaForConditionalGeneration, given: Mapping[str, Any], prompt: int, shorter_by: int = 0
) -> dict[str, Any]:
    """`max_length` and `min_length`, which count the prompt that the user gave, for one that is shorter."""
    changed: dict[str, Any] = {}
    most, least = setting(model, given, "max_length"), setting(model, given, "min_length")
    if most is not None and setting(model, given, "max_new_tokens") is None:
        if prompt >= most:
            raise FieldError(
                "max_length",
                f"{most} leaves no room after a prompt of {prompt} tokens",
                value=most,
                fix="raise it, or give max_new_tokens",
            )
        changed["max_length"] = most - shorter_by
    if least is not None and setting(model, given, "min_new_tokens") is None:
        changed["min_length"] = max(least - shorter_by, 0)
    return changed if shorter_by else {}


def check_call(
    model: LlavaForConditionalGeneration,
    inputs: Mapping[str, Any],
    questions: list[str] | None,
    generation_kwargs: dict[str, Any],
) -> None:
    """Raise `FieldError` for inputs and ways of generating that cannot be pruned."""
    for key in inputs:
        if key not in _INPUTS:
            known = ", ".join(_INPUTS)
            raise FieldError("inputs", f"unknown key {key!r}{nearest(key, _INPUTS)}; known: {known}", value=key)
    if "input_ids" not in inputs:
        raise FieldError("inputs", "'input_ids' is missing")
    given = [key for key in ("pixel_values", "image_features", "vision") if inputs.get(key) is not None]
    if len(given) > 1:
        raise FieldError("inputs", f"got {' and '.join(given)}", fix="give the images once")
    if questions is not None and len(questions) != len(inputs["input_ids"]):
        raise FieldError(
            "questions", f"got {len(questions)} for {len(inputs['input_ids'])} rows", fix="give one per row"
        )
    check_generation(model, generation_kwargs)
    if "return_dict_in_generate" in generation_kwargs:
        raise FieldError("return_dict_in_generate", "the result is always a Generation", fix="leave it out")


def special_ids(
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


def padding_id(model: LlavaForConditionalGeneration, geometry: Geometry) -> int:
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
