"""Several methods on one batch of prompts: what they have in common runs once, equal rows are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.fan_out.decoding import decode
from finepruner_lmms.engine.fan_out.greedy import why_apart
from finepruner_lmms.engine.fan_out.layers import CHUNK
from finepruner_lmms.engine.fan_out.member import Member, shared_vision
from finepruner_lmms.engine.fan_out.prompts import Prompt
from finepruner_lmms.engine.fan_out.stream import Segment, Sprout, Stream
from finepruner_lmms.engine.fixed.decoding import Ending
from finepruner_lmms.engine.generate import check_call, ending_of, padding_id, special_ids
from finepruner_lmms.engine.generation import Generation
from finepruner_lmms.engine.generation_modes import setting
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.images import joined_wish, outputs_for, visual_tokens
from finepruner_lmms.engine.parts import check_model
from finepruner_lmms.engine.prompt_layout import find_padding, shorten_prompt
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners import Pruner
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.vision_outputs import VisionOutputs


@dataclass(frozen=True)
class Together:
    """What came of each method, in order: its `Generation`, or the error that it raised.

    `rows` of `asked` rows were computed to the end: the others were equal to one of them.
    """

    outcomes: list[Generation | Exception]
    rows: int
    asked: int


@torch.no_grad()
def answer_together(
    model: LlavaForConditionalGeneration,
    pruners: Sequence[Pruner],
    inputs: Mapping[str, Any],
    *,
    questions: list[str] | None = None,
    **generation_kwargs: Any,
) -> Together:
    """Answer a batch of prompts with each of `pruners`, as `generate` would with one after the other.

    `inputs` and `questions` are those of `generate`; of `generation_kwargs`, those that leave it plain greedy decoding
    (`why_apart`). A method that raises fails alone. Raises `FieldError` for what no method could be given.
    """
    check_model(model)
    check_call(model, family_of(model), inputs, questions, generation_kwargs)
    if (reason := why_apart(model, generation_kwargs)) is not None:
        raise FieldError("generation_kwargs", f"methods cannot answer together: {reason}", fix="call generate for each")
    ending = ending_of(model, generation_kwargs)
    batch = _Batch(model, pruners, inputs, questions, generation_kwargs)
    members = [Member(number, pruner) for number, pruner in enumerate(pruners)]
    streams = _prefill(batch, members)
    answers = decode(model, streams, ending, setting(model, generation_kwargs, "max_new_tokens")) if streams else []
    return _outcomes(members, streams, answers, ending, len(batch.ids))


class _Batch:
    """The prompts, their images, and what the methods start from; what several of them need is made once."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        pruners: Sequence[Pruner],
        inputs: Mapping[str, Any],
        questions: list[str] | None,
        generation_kwargs: Mapping[str, Any],
    ) -> None:
        self.model, self.questions = model, questions
        self.geometry = Geometry.of(model.config)
        self.ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        if mask is None:
            mask = find_padding(self.ids, *special_ids(model, generation_kwargs))
        whole = Prompt.read(model, self.ids, mask, self.geometry.image_token_id, self.geometry.num_visual_tokens)
        self.layout = whole.layout
        self.prompts = {whole.left: whole}
        self._wish, self._given = joined_wish(pruners), inputs
        self.inputs = shared_vision(model, inputs, self._wish)
        self.visual = visual_tokens(model, self.inputs, self.layout)
        self._seen: dict[Any, VisionOutputs] = {}

    @property
    def shown(self) -> bool:
        """Whether any row shows an image."""
        return any(self.layout.has_image)

    def vision_for(self, pruner: VisionPruner) -> VisionOutputs:
        """The encoded images with the questions, as the method reads them; encoded anew for one of another layer."""
        key = pruner.reads_question, pruner.reads_words, getattr(pruner, "clip", None), pruner.early_layer
        if key not in self._seen:
            early = pruner.early_layer
            shared = early is None or early == self._wish.early
            inputs = self.inputs if shared else shared_vision(self.model, self._given, pruner.wish)
            self._seen[key] = outputs_for(self.model, inputs, self.layout, pruner, self.questions)
        return self._seen[key]

    def prompt(self, left: int) -> Prompt:
        """The prompts with so many placeholders per image; which of them go makes no difference."""
        if left not in self.prompts:
            padding = padding_id(self.model, self.geometry)
            ids, mask = shorten_prompt(self.ids, self.layout, left, padding)
            self.prompts[left] = Prompt.read(self.model, ids, mask, self.geometry.image_token_id, left)
        return self.prompts[left]


def _prefill(batch: _Batch, members: list[Member]) -> list[Stream]:
    """The streams at the end of the decoder, in which every method that did not fail has its rows."""
    waiting, finished = _starts(batch, members), []
    decoder, count = batch.model.model.language_model, batch.geometry.num_layers
    while waiting:
        stream = waiting.pop()
        inside = [members[number] for number in stream.rows]
        stages = {member.number: member.next_stage(stream.layer) for member in inside}
        drops = [stage.layer for stage in stages.values() if stage is not None]
        watched = frozenset[int]().union(*(member.watched for member in inside))
        stream.advance(decoder, min(drops, default=count), CHUNK, watched)
        if not drops:
            finished.append(stream)
            continue
        sprouts: dict[Any, Sprout] = {}
        staying = []
        for member in inside:
            stage = stages[member.number]
            if stage is None or stage.layer > stream.layer:
                staying.append(member.number)
                continue
            member.attempt(partial(member.drop, stream, stage, sprouts))
        if staying:
            waiting.append(stream.without_drop(staying))
        stream.inside = None
        waiting += [sprout.grown() for sprout in sprouts.values() if sprout.rows]
    return finished


def _starts(batch: _Batch, members: list[Member]) -> list[Stream]:
    """The streams before the first layer: one for each number of placeholders that methods leave."""
    geometry = batch.geometry
    starts: dict[int, list[Member]] = {}
    for member in members:
        member.attempt(partial(member.plan, geometry.num_layers, geometry.num_visual_tokens, batch.layout.has_image))
        if member.error is None and member.before is not None:
            member.attempt(partial(_reduce, batch, member, member.before))
        if member.error is None:
            left = geometry.num_visual_tokens if member.visual is None else member.visual.shape[1]
            starts.setdefault(left, []).append(member)
    return [stream for left, those in starts.items() if (stream := _start(batch, left, those)) is not None]


def _reduce(batch: _Batch, member: Member, before: VisionPruner) -> None:
    member.reduce(batch.vision_for(before))


def _start(batch: _Batch, left: int, members: list[Member]) -> Stream | None:
    """The rows of methods whose prompts have the same length; equal rows are one."""
    prompt = batch.prompt(left)
    rows, device = len(prompt.layout.valid), prompt.words.device
    place = {row: image for image, row in enumerate(r for r, shown in enumerate(prompt.layout.has_image) if shown)}
    known: dict[Any, int] = {}
    embeds, questions, of_member = [], [], {}
    whole: Tensor | None = None
    for member in members:
        identities: list[Any]
        if member.reduced is None:
            whole = prompt.with_images(batch.visual) if whole is None else whole
            entering, identities = whole, list(range(rows))
        else:
            entering = prompt.with_images(member.visual)
            kept = member.reduced.keep.cpu().numpy()
            # new tokens that a method makes are its own
            owner = -1 if getattr(type(member.before), "reduce", None) is VisionPruner.reduce else member.number
            identities = [(row, owner, kept[place[row]].tobytes()) if row in place else row for row in range(rows)]
        member.attempt(partial(member.begin, batch.model, prompt, entering))
        if member.error is not None:
            continue
        new = [row for row, identity in enumerate(identities) if identity not in known]
        for row in new:
            known[identities[row]] = len(known)
        if new:
            embeds.append(entering if len(new) == rows else entering[torch.tensor(new, device=device)])
            questions += new
        of_member[member.number] = torch.tensor([known[identity] for identity in identities], device=device)
    if not of_member:
        return None
    origin = torch.tensor(questions, device=device)
    valid = prompt.layout.valid[origin] if prompt.layout.padded else None
    shift = origin.new_zeros(len(origin), 1)
    return Stream(
        0,
        torch.cat(embeds),
        prompt.positions[origin],
        prompt.lengths[origin],
        [Segment(0, prompt.layout.width, valid, shift)],
        [],
        of_member,
    )


def _outcomes(
    members: list[Member], streams: list[Stream], answers: list[list[int]], ending: Ending, questions: int
) -> Together:
    """The answers sorted by method."""
    own: dict[int, list[list[int]]] = {}
    start = 0
    for stream in streams:
        for number, rows in stream.rows.items():
            own[number] = [answers[start + row] for row in rows.tolist()]
        start += len(stream)
    outcomes: list[Generation | Exception] = []
    for member in members:
        trace = None if member.error is not None else member.attempt(member.report)
        if member.error is not None:
            outcomes.append(member.error)
            continue
        assert trace is not None
        texts = own[member.number]
        width = max(map(len, texts))
        padded = [text + [ending.padding] * (width - len(text)) for text in texts]
        outcomes.append(Generation(torch.tensor(padded, device=trace_device(streams)), None, trace))
    return Together(outcomes, start, sum(member.error is None for member in members) * questions)


def trace_device(streams: list[Stream]) -> torch.device:
    """Where the answers are."""
    return streams[0].next_position.device
