"""Generating where images are told apart: families whose images differ, and rows of several images.

The images are encoded once. What a method before the language model does not choose is dropped at the decoder's
entrance, so that the model itself sees the prompt as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from finepruner_lmms.budget import keeps_all
from finepruner_lmms.engine.clock import Clock
from finepruner_lmms.engine.contract import check_reduction
from finepruner_lmms.engine.decoder_hooks import attached
from finepruner_lmms.engine.entrance import Entrance
from finepruner_lmms.engine.families.family import Encoded, Family
from finepruner_lmms.engine.families.fits import check_fits
from finepruner_lmms.engine.generation import Generation, marked
from finepruner_lmms.engine.images import tower_wish, with_questions
from finepruner_lmms.engine.parts import device_of
from finepruner_lmms.engine.prompt_layout import ImageGroup, Layout
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.engine.vision_tower import encoder_outputs
from finepruner_lmms.errors import FieldError
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.pruners import Pruner
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.vision_outputs import TowerWish, VisionOutputs


def generate_by_image(
    model: Any,
    family: Family,
    pruner: Pruner,
    inputs: Mapping[str, Any],
    layout: Layout,
    questions: list[str] | None,
    clock: Clock,
    generation_kwargs: Mapping[str, Any],
) -> Generation:
    """`generate` of a call that was checked and whose prompt was read: `layout`, and `attention_mask` in `inputs`."""
    checks, ids = Trace(), inputs["input_ids"]
    given = {name: inputs[name] for name in (*family.media, *family.passes) if inputs.get(name) is not None}
    arguments, entrance = dict(given), None
    asked = _asked_before(family, pruner, layout)
    encoded = _encoded(model, family, inputs, asked, layout)
    if encoded is not None:
        arguments = {name: value for name, value in given.items() if name not in _PIXELS}
        arguments["mm_encoder_outputs"] = dict(encoded.outputs)
    if asked:
        assert encoded is not None
        entrance, everything = Entrance(), [*encoded.images, *encoded.videos]
        for group, before in asked:
            vision = _of_group(everything, group)
            vision = with_questions(model, before, vision, list(group.rows), ids, layout, questions)
            with for_choosing(vision.features.device):
                reduced = before.reduce(vision)
            for what, values in vision.tensors().items():
                checks.watch(what, values)
            check_reduction(before, reduced, vision.projected, checks)
            entrance.add(group.number, reduced, before)
    where = device_of(model.get_input_embeddings(), ids.device)
    arguments |= {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
    arguments = {name: value.to(where) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    with attached(model, pruner, entrance=entrance, described=given) as trace, marked(model, clock):
        output = model.generate(**arguments, return_dict_in_generate=True, **generation_kwargs)
        checks.check()
    logits = getattr(output, "logits", None)
    return Generation(
        output.sequences[:, ids.shape[1] :],
        None if logits is None else tuple(logits),
        trace.drop_beams(max(len(trace.has_image) // len(ids), 1)),
        "eager",
        clock,
    )


_PIXELS = ("pixel_values", "pixel_values_videos", "image_features")


def _asked_before(family: Family, pruner: Pruner, layout: Layout) -> list[tuple[ImageGroup, VisionPruner]]:
    """The groups of images of which a method before the language model drops tokens, and that method."""
    asked = []
    for group in layout.groups:
        count = group.num_visual_tokens
        if pruner.side in ("none", "decoder") or keeps_all(pruner.budget, count):
            continue
        before, _ = pruner.parts(count)
        if before is not None and not keeps_all(before.budget, count) and before.retained(count) < count:
            asked.append((group, before))
    if asked:
        check_fits(family, asked[0][1])
    return asked


def _encoded(
    model: Any,
    family: Family,
    inputs: Mapping[str, Any],
    asked: list[tuple[ImageGroup, VisionPruner]],
    layout: Layout,
) -> Encoded | None:
    """The images of the call where they have to be encoded now, or were before; None where `generate` encodes them."""
    if isinstance(vision := inputs.get("vision"), Encoded):
        return vision
    if isinstance(vision, VisionOutputs):
        rows = [vision.of_rows(slice(row, row + 1)) for row in range(len(vision.projected))]
        return Encoded(encoder_outputs(vision.projected)["mm_encoder_outputs"], rows)
    features = inputs.get("image_features")
    if features is not None and (asked or family.num_visual_tokens(model.config) is None):
        raise FieldError(
            "image_features",
            f"{asked[0][1].name!r} chooses by the vision tower's own outputs"
            if asked
            else f"images of {family.title} are given as its processor returns them",
            fix="pass pixel_values",
        )
    if features is not None:
        return Encoded(encoder_outputs(features)["mm_encoder_outputs"])
    if not asked:
        return None
    wish = tower_wish(asked[0][1]) if asked else TowerWish()  # of all sizes of images it is one method
    counts = {number: group.num_visual_tokens for group in layout.groups for number in group.number}
    media = {name: inputs[name] for name in family.media if inputs.get(name) is not None}
    return family.encode(model, media, [counts[number] for number in sorted(counts)], wish)


def _of_group(images: list[VisionOutputs], group: ImageGroup) -> VisionOutputs:
    """The outputs of the images of a group, as a batch. `FieldError` where there are too few."""
    if max(group.number) >= len(images):
        raise FieldError(
            "inputs",
            f"the prompt shows more images than the {len(images)} that are given",
            fix="give each prompt its own images",
        )
    found = VisionOutputs.join([images[number] for number in group.number])
    if found.num_visual_tokens != group.num_visual_tokens:
        raise FieldError(
            "inputs",
            f"an image has {found.num_visual_tokens} visual tokens, but {group.num_visual_tokens} placeholders",
            fix="expand the placeholders with the processor that prepared the images",
        )
    return found
