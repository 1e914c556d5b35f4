"""Generating with a pruner: one function for vision-side and decoder-side methods, for batches of any mix."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.clock import Clock
from finepruner_lmms.engine.contract import check_reduction
from finepruner_lmms.engine.decoder_hooks import attach
from finepruner_lmms.engine.execution import EXECUTIONS
from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.fixed.answer import Prompts, answer
from finepruner_lmms.engine.fixed.decoding import Ending
from finepruner_lmms.engine.fixed.programs import programs_of
from finepruner_lmms.engine.fixed.support import why_not
from finepruner_lmms.engine.fixed.vision import vision_programs
from finepruner_lmms.engine.generate_by_image import generate_by_image
from finepruner_lmms.engine.generation import Generation, marked
from finepruner_lmms.engine.generation_modes import check_generation, setting
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.images import encoded, image_arguments, outputs_for, tower_wish, visual_tokens
from finepruner_lmms.engine.parts import device_of
from finepruner_lmms.engine.prompt_layout import find_padding, read_layout, shorten_prompt
from finepruner_lmms.engine.prompt_reading import read_prompt
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.engine.vision_tower import encode_images, encoder_outputs
from finepruner_lmms.errors import FieldError, check_choice, nearest
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.pruners import Pruner, VisionPruner, build_pruner
from finepruner_lmms.pruners.base import Reduction
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

_log = logging.getLogger("finepruner_lmms")
_INPUTS = ("input_ids", "attention_mask", "image_features", "vision")


@torch.no_grad()
def generate(
    model: Any,
    pruner: Pruner,
    inputs: Mapping[str, Any],
    *,
    questions: list[str] | None = None,
    execution: str = "auto",
    **generation_kwargs: Any,
) -> Generation:
    """Answer a batch of prompts with `pruner` at work on an unmodified model of transformers, of any known family.

    `inputs` holds `input_ids` `[B, L]` (placeholders expanded, left-padded; best on the host), `attention_mask`
    `[B, L]` (found by the model's padding id where it is not given and can be told), and the images as the family's
    processor returns them. Rows may show several images, of any sizes, or none; budgets are per image. A row gets in a
    batch what it gets alone. A prompt with earlier turns is one prompt; a cache that holds tokens is refused.
    For LLaVA-1.5 the images are one of `pixel_values` `[images, 3, S, S]`, `image_features` `[images, N, D]` (projected
    visual tokens; not for vision-side methods) or `vision` (what `encode_images` returned, to encode an image once for
    several methods), in the order of the prompts; one for each of the B rows is accepted as well where each shows one.
    `questions`, one per row, is for methods that read the question apart from the prompt. Everything else goes to
    `model.generate`.

    `execution`: `"eager"` runs transformers' own loop; `"graphs"` runs prefill and decode on buffers of fixed size,
    which a GPU records once and replays (`engine.fixed`); `"auto"` is `"graphs"` on a GPU and `"eager"` elsewhere.
    The answers are the same. A call that cannot be recorded runs eagerly, which is logged once with the reason.

    Raises `FieldError` for inputs and generation modes that cannot be pruned correctly, and for a budget out of reach
    on this model.
    """
    family = family_of(model)
    check_choice("execution", execution, EXECUTIONS)
    geometry = Geometry.of(model.config)
    check_call(model, family, inputs, questions, generation_kwargs)
    clock = Clock(model.lm_head.weight.device)
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None:
        mask = find_padding(ids, *special_ids(model, generation_kwargs))
    fixed = _on_fixed_buffers(model, family, execution, ids, generation_kwargs)
    if fixed:  # what is known of the prompts is worked out on the host, and their images stay where they are
        ids, mask = ids.cpu(), mask.cpu()
    layout = read_prompt(family, model.config, ids, mask, inputs)
    if geometry.varies or layout.groups:
        if fixed:
            say_once("a row shows several images")
        inputs = {**inputs, "attention_mask": mask}
        return generate_by_image(model, family, pruner, inputs, layout, questions, clock, generation_kwargs)
    pruner.stages(geometry.num_layers, geometry.num_visual_tokens)  # raises what cannot be
    if fixed:
        wish = tower_wish(pruner)
        inputs = encoded(
            model,
            inputs,
            layout,
            lambda pixels: encode_images(model, pixels, wish) if wish else vision_programs(model).encode(pixels),
        )
    before, inside = pruner.parts(geometry.num_visual_tokens)
    generation_kwargs |= _lengths(model, generation_kwargs, ids.shape[1])
    shown = any(layout.has_image)
    # what works inside was given its share of what works before leaves; without an image there is neither
    within: Pruner = inside if shown and inside is not None else build_pruner("vanilla")
    reduced, vision, checks, left = None, None, Trace(), geometry.num_visual_tokens
    if shown and before is not None and before.retained(left) != left:
        vision = outputs_for(model, {**inputs, "input_ids": ids}, layout, before, questions)
        reduced = vision_programs(model).reduce(before, vision) if fixed else _reduced(before, vision)
        check_reduction(before, reduced, vision.projected, checks)
        left = reduced.tokens.shape[1]
        if not left and geometry.num_visual_tokens in layout.lengths:
            raise FieldError("input_ids", f"a row shows an image alone, of which {before.name!r} leaves nothing")
        short_ids, mask = shorten_prompt(ids, layout, left, padding_id(model, geometry))
        generation_kwargs |= _lengths(model, generation_kwargs, ids.shape[1], ids.shape[1] - short_ids.shape[1])
        ids = short_ids

    if fixed:
        images = visual_tokens(model, inputs, layout) if reduced is None else reduced.tokens
        short = layout if reduced is None else read_layout(ids, mask, geometry.image_token_id, left)
        prompts = Prompts(ids, mask.bool(), short, images, left)
        most, ending = setting(model, generation_kwargs, "max_new_tokens"), ending_of(model, generation_kwargs)
        want_logits = bool(setting(model, generation_kwargs, "output_logits"))
        try:
            sequences, found, trace = answer(model, within, prompts, ending, most, clock, want_logits)
        except torch.OutOfMemoryError:
            # buffers are made for the longest answer, which transformers' own loop may never need
            programs_of(model).clear()
            say_once(f"the buffers for {len(ids)} rows of {ids.shape[1]} + {most} tokens do not fit into the memory")
            fixed = False
    if not fixed:
        shown_as = image_arguments(inputs, layout) if reduced is None else encoder_outputs(reduced.tokens)
        where = device_of(model.get_input_embeddings(), ids.device)
        arguments = {"input_ids": ids.to(where), "attention_mask": mask.to(where)} | shown_as
        with attach(model, within, num_visual_tokens=left) as trace, marked(model, clock):
            output = model.generate(**arguments, return_dict_in_generate=True, **generation_kwargs)
        sequences, found = output.sequences[:, ids.shape[1] :], getattr(output, "logits", None)
        trace = trace.drop_beams(len(trace.has_image) // len(ids))
    if vision is not None and reduced is not None:
        for what, values in vision.tensors().items():
            trace.watch(what, values)
        trace.check()
        checks.check()  # after NaN, which may be the reason why a method chose wrongly
        trace = trace.to_original_tokens(reduced, layout.has_image)
    elif fixed:
        trace.check()
    logits = None if found is None else tuple(found)
    return Generation(sequences, logits, trace, "graphs" if fixed else "eager", clock)


def _reduced(pruner: VisionPruner, vision: VisionOutputs) -> Reduction:
    with for_choosing(vision.features.device):
        return pruner.reduce(vision)


def _on_fixed_buffers(
    model: Any, family: Family, execution: str, ids: Tensor, generation_kwargs: Mapping[str, Any]
) -> bool:
    """Whether a call runs on fixed buffers. Where it was to be and is not, the reason is logged."""
    if execution == "eager" or (execution == "auto" and not model.lm_head.weight.is_cuda):
        return False
    if family.num_visual_tokens(model.config) is None:
        say_once(f"images of {family.title} differ in their number of visual tokens")
        return False
    reason = why_not(model, generation_kwargs, ids.shape[1]) or programs_of(model).why_not(model)
    if reason is not None:
        say_once(reason)
    return reason is None


@functools.cache
def say_once(reason: str) -> None:
    """Log, once per reason, that a call runs eagerly which was to run on fixed buffers."""
    _log.warning("execution: eager, because %s", reason)


def ending_of(model: Any, generation_kwargs: Mapping[str, Any]) -> Ending:
    """What ends an answer, and fills its row from then on, as transformers finds it."""

    def named(name: str) -> Any:
        # an argument counts for transformers also where it is None
        return generation_kwargs[name] if name in generation_kwargs else setting(model, generation_kwargs, name)

    padding, ends = named("pad_token_id"), named("eos_token_id")
    ends = tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (int(ends),)
    return Ending(ends[0] if padding is None and ends else padding or 0, ends)


def _lengths(model: Any, given: Mapping[str, Any], prompt: int, shorter_by: int = 0) -> dict[str, Any]:
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
    model: Any,
    family: Family,
    inputs: Mapping[str, Any],
    questions: list[str] | None,
    generation_kwargs: dict[str, Any],
) -> None:
    """Raise `FieldError` for inputs and ways of generating that cannot be pruned."""
    known = (*_INPUTS[:2], *family.media, *family.passes, *_INPUTS[2:])
    for key in inputs:
        if key not in known:
            problem = f"unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}"
            raise FieldError("inputs", problem, value=key)
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


def special_ids(model: Any, generation_kwargs: Mapping[str, Any]) -> tuple[int | None, tuple[int, ...]]:
    """The id that pads, where one is named, and those that end an answer."""
    config = generation_kwargs.get("generation_config") or model.generation_config
    text = model.config.get_text_config()

    def named(key: str) -> Any:
        found = (generation_kwargs.get(key), getattr(config, key, None), getattr(text, key, None))
        return next((value for value in found if value is not None), None)

    end = named("eos_token_id")
    return named("pad_token_id"), tuple(end) if isinstance(end, list | tuple) else () if end is None else (end,)


def padding_id(model: Any, geometry: Geometry) -> int:
    """An id for padding; any but the placeholder's, because padding is masked."""
    padding = model.config.text_config.pad_token_id
    if isinstance(padding, int) and 0 <= padding != geometry.image_token_id:
        return padding
    return 0 if geometry.image_token_id != 0 else 1
