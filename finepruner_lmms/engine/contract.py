"""What the engine holds a method to: where it may drop tokens, and what its choice must look like.

What the host knows is checked at once. How many tokens were kept is known to the device alone: the trace remembers
the question and asks it after the call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Reduction, Stage, VisionPruner
from finepruner_lmms.pruners.decoder_context import Selection


def check_stages(pruner: Pruner, stages: Sequence[Stage], num_layers: int) -> None:
    """Raise `FieldError` unless a decoder-side method's drops are ones that a model of so many layers can make."""
    if stages and not isinstance(pruner, DecoderPruner):
        raise FieldError(
            "pruner", f"{pruner.name!r} drops tokens inside the language model, but is no DecoderPruner", value=pruner
        )
    before = 0
    for stage in stages:
        if not isinstance(stage, Stage) or any(isinstance(n, bool) or not isinstance(n, int) for n in stage):
            raise FieldError(
                "stages", f"{pruner.name!r} gives {stage!r}; expected a Stage of whole numbers", value=stage
            )
        if not 1 <= stage.layer < num_layers:
            raise FieldError(
                "stages",
                f"{pruner.name!r} drops tokens before decoder layer {stage.layer}; possible are 1 to {num_layers - 1}, "
                "since it chooses by the attention of the layer before",
                value=stage,
            )
        if stage.layer <= before:
            raise FieldError(
                "stages",
                f"{pruner.name!r} drops tokens before layer {stage.layer} after layer {before}",
                value=tuple(stages),
                fix="give each layer once, in ascending order",
            )
        if stage.retained < 0 or stage.merged < 0:
            raise FieldError("stages", f"{pruner.name!r} gives {stage!r}; counts are at least 0", value=stage)
        assert isinstance(pruner, DecoderPruner)
        asked = pruner.reads_layers(stage.layer)
        if wrong := [layer for layer in asked if not 0 <= layer < stage.layer]:
            raise FieldError(
                "reads_layers",
                f"{pruner.name!r} reads the attention of layer {wrong[0]} before layer {stage.layer}; possible are 0 "
                f"to {stage.layer - 1}",
                value=asked,
            )
        before = stage.layer


def check_selection(
    pruner: DecoderPruner,
    chosen: Selection,
    stage: Stage,
    present: Tensor,
    required: Tensor | None,
    hidden: Tensor,
    trace: Trace,
) -> None:
    """Raise `FieldError` unless `chosen` is a choice among the tokens that are `present` `[B, V]` for `stage`.

    `required` is that of the `DecoderContext`; `hidden` `[B or more, L, D]` is what enters the stage's layer.
    """
    where = f"{pruner.name!r} at layer {stage.layer}"
    if not isinstance(chosen, Selection):
        raise FieldError("select", f"{where} returned a {type(chosen).__name__}; expected a Selection", value=chosen)
    rows, places = present.shape
    _check_tensor("keep", where, chosen.keep, (rows, places), hidden.device, "bool")
    for name in ("scores", "heads", "head_scores"):
        if (value := getattr(chosen, name)) is not None:
            shape = (rows, places) if name == "scores" else (rows, None)
            _check_tensor(name, where, value, shape, hidden.device)
    if chosen.guides is not None:
        _check_tensor("guides", where, chosen.guides, (rows, None, places), hidden.device, "floating")
    if chosen.sources is not None:
        _check_tensor("sources", where, chosen.sources, (rows, places), hidden.device, "bool")
    if stage.merged:
        if chosen.merged is None or chosen.merged_from is None:
            raise FieldError(
                "select", f"{where} promised {stage.merged} merged tokens and gave none", fix="give merged, merged_from"
            )
        _check_tensor("merged", where, chosen.merged, (rows, stage.merged, hidden.shape[2]), hidden.device, "floating")
        _check_tensor("merged_from", where, chosen.merged_from, (rows, stage.merged), hidden.device, "int64")
        inside = ((chosen.merged_from >= 0) & (chosen.merged_from < places)).all()
        trace.expect(FieldError("select", f"{where} takes positions of visual tokens that there are not"), inside)
    elif chosen.merged is not None:
        raise FieldError("select", f"{where} gave merged tokens, but its Stage promises none", fix="set Stage.merged")
    kept, there = (chosen.keep & present).sum(1), present.sum(1)
    most = stage.retained if required is None else max(stage.retained, 1)
    trace.expect(
        FieldError("select", f"{where} kept more than the {stage.retained} visual tokens of its Stage"),
        (kept <= most).all(),
    )
    if pruner.fills_budget:
        trace.expect(
            FieldError(
                "select",
                f"{where} kept fewer than the {stage.retained} visual tokens of its Stage",
                fix="keep that many, or set fills_budget = False",
            ),
            (kept >= there.clamp(max=stage.retained)).all(),
        )


def check_reduction(pruner: VisionPruner, reduced: Reduction, projected: Tensor, trace: Trace) -> None:
    """Raise `FieldError` unless `reduced` is made of the images `projected` `[B, N, D]` and meets the budget."""
    where = repr(pruner.name)
    if not isinstance(reduced, Reduction):
        raise FieldError("reduce", f"{where} returned a {type(reduced).__name__}; expected a Reduction", value=reduced)
    images, count, width = projected.shape
    retained = pruner.retained(count)
    _check_tensor("keep", where, reduced.keep, (images, count), projected.device, "bool")
    _check_tensor("tokens", where, reduced.tokens, (images, retained, width), projected.device, "floating")
    if reduced.merged is not None:
        _check_tensor("merged", where, reduced.merged, (images, count), projected.device, "bool")
    kept = reduced.keep.sum(1)
    # a method that makes no new tokens keeps all that it returns
    least = retained if type(pruner).reduce is VisionPruner.reduce else 0
    trace.expect(
        FieldError("choose", f"{where} did not keep as many visual tokens of an image as its budget says, {retained}"),
        ((kept >= least) & (kept <= retained) & (kept == kept[:1])).all(),
    )


def _check_tensor(
    name: str,
    where: str,
    value: Tensor,
    shape: tuple[int | None, ...],
    device: torch.device,
    kind: str = "",
) -> None:
    if not isinstance(value, Tensor):
        raise FieldError("select", f"{where} gave {name} as a {type(value).__name__}; expected a tensor", value=value)
    fits = value.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, value.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise FieldError("select", f"{where} gave {name} of shape {list(value.shape)}; expected [{wanted}]")
    right = value.is_floating_point() if kind == "floating" else not kind or value.dtype == getattr(torch, kind)
    if not right:
        raise FieldError("select", f"{where} gave {name} of type {value.dtype}; expected {kind}")
    if value.device != device:
        raise FieldError("select", f"{where} gave {name} on {value.device}; expected {device}, where its inputs are")
