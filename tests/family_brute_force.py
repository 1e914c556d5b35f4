"""The oracle of every family: the row alone, at full length, dropped tokens as masked columns, eager, no cache.

Nothing of the engine is used. What enters the decoder, its positions and its deep features are what the model itself
hands over; its own layers run over all columns, one step after the other from the start, and what a method sees are
the attention weights that they return. A method's choice is asked for one image at a time, on plain tensors; that the
choice is the published one is tested elsewhere.

`python tests/family_brute_force.py` prints how many cases each method passes on each family.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import finepruner_lmms as fp
from finepruner_lmms.budget import keeps_all
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.errors import FieldError
from finepruner_lmms.ops.selection import fingerprint
from finepruner_lmms.pruners import DecoderContext, Pruner, VisionPruner
from finepruner_lmms.testing.families import FAMILIES, IMAGE, LAYERS, VIDEO, Row, family_prompts, tiny_model

STEPS = 4
TOLERANCE = 1e-4
"""Of logits between some -5 and 5, in float32."""
GRID_FAMILIES = {"qwen2_5_vl", "qwen3_vl"}


@dataclass
class Entering:
    """What the model hands to its decoder: `embeds` `[L, D]`, `positions` `[1 or 3, L]`, `deep` `[L, D]` a layer."""

    embeds: Tensor
    positions: Tensor
    deep: list[Tensor]


class _EnoughError(Exception):
    """Ends a forward where its decoder begins."""


@torch.no_grad()
def entering(model: Any, inputs: dict[str, Any]) -> Entering:
    """Run the model on a row as far as its decoder."""
    decoder, seen = model.model.language_model, {}

    def stop(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise _EnoughError

    handle = decoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    embeds, positions = seen["inputs_embeds"][0], seen.get("position_ids")
    if positions is None:
        positions = torch.arange(len(embeds))[None, None]
    if positions.ndim == 3:
        positions = positions[-3:]  # a first row of four counts the text
    positions = positions.reshape(-1, positions.shape[-1])
    deep = []
    for features in seen.get("deepstack_visual_embeds") or []:
        whole = torch.zeros_like(embeds)
        whole[seen["visual_pos_masks"][0]] = features
        deep.append(whole)
    return Entering(embeds, positions, deep)


@dataclass
class Shown:
    """An image or a film of the row: the columns of its placeholders, and which of these are visual tokens."""

    columns: list[int]
    tokens: list[int]
    film: bool


def shown_in(which: str, row: Row, inputs: dict[str, Any], embeds: Tensor) -> list[Shown]:
    """The images of a row in order. Newlines are found by what they are: all the same, the model's `image_newline`."""
    model, ids = tiny_model(which, "eager").model, inputs["input_ids"][0]
    newline = getattr(model, "image_newline", None)
    names = [part for part in row if isinstance(part, str)]
    if which == "qwen3_vl":  # each frame of a film stands by itself
        names = [one for name in names for one in ([name, name] if name == "v" else [name])]
    visual = ((ids == IMAGE) | (ids == VIDEO)).nonzero().squeeze(1).tolist()
    single = {name: _length(which, row, name) for name in set(names)}
    found, start = [], 0
    for name in names:
        columns = visual[start : start + single[name]]
        start += single[name]
        tokens = [c for c in columns if newline is None or not torch.equal(embeds[c], newline)]
        found.append(Shown(columns, tokens, name == "v"))
    assert start == len(visual), (which, row, single)
    return found


def _length(which: str, row: Row, name: str) -> int:
    """The placeholders of a picture in this row, from a row that shows nothing else."""
    if which == "llava_onevision" and sum(part in ("a", "b") for part in row) > 1 and name != "v":
        return 10  # among several images each is one tile of 3 × 3, and a newline
    ids = family_prompts(which, (2, name, 2))["input_ids"]
    frames = 2 if which == "qwen3_vl" and name == "v" else 1
    return int(((ids == IMAGE) | (ids == VIDEO)).sum()) // frames


@dataclass
class Image:
    """An image on its way: `tokens` are labels of columns, the merged ones at the end; `alive` says which are left."""

    tokens: list[int]
    alive: list[bool]
    first: int = 0
    last: int = 0
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass
class Choice:
    """What was chosen of an image at a layer: the tokens that stay, and vectors made anew, with whom they replace."""

    keep: list[bool]
    made: Tensor | None = None
    made_from: list[int] | None = None
    lead: int = 0


@dataclass
class Answer:
    """What a pruned model must say of a row, and what must be left of it where."""

    logits: Tensor  # [steps, V]
    kept: dict[int, list[int]]  # by layer, of all placeholders of the row
    lengths: list[int]  # cache length of each layer after prefill
    entering: list[int]  # visual tokens entering each layer, newlines left out
    rotary: list[Tensor]  # cos of the last layer's columns: of the prompt, then of each new token


class BruteForce:
    """A row of `which`, answered under `pruner`."""

    def __init__(self, which: str, pruner: Pruner, row: Row) -> None:
        self.which, self.pruner = which, pruner
        self.model = tiny_model(which, "eager")
        self.decoder = self.model.model.language_model
        self.inputs = family_prompts(which, row)
        self.ids = self.inputs["input_ids"][0]
        self.prompt = entering(self.model, self.inputs)
        if which in GRID_FAMILIES:  # text alone has one number for all three
            self.prompt.positions = self.prompt.positions.expand(3, -1)
        self.shown = shown_in(which, row, self.inputs, self.prompt.embeds)
        self.words = list(range(max((image.columns[-1] for image in self.shown), default=0) + 1, len(self.ids)))
        self.choices: dict[tuple[int, int], Choice] = {}
        self.weights: Tensor | None = None
        self.values: Tensor | None = None
        self.outputs: Tensor | None = None
        self.last_rows: dict[int, dict[int, Tensor]] = {}  # by layer, what the last token's heads give each column
        for layer in self.decoder.layers:
            assert layer.self_attn.config._attn_implementation == "eager"

    # -- the method, one image at a time --------------------------------------------------------------------------

    def parts(self, count: int) -> tuple[Any, Any, dict[int, Any]]:
        """The method before the decoder, the one inside, and the stages of an image of `count` tokens by layer."""
        if keeps_all(self.pruner.budget, count):
            return None, None, {}
        before, inside = self.pruner.parts(count)
        stages, left = {}, count
        if before is not None and before.retained(count) < count:
            left = before.retained(count)
        else:
            before = None
        if inside is not None:
            stages = {stage.layer: stage for stage in inside.stages(LAYERS, left)}
        return before, inside, stages

    def encoded(self, before: VisionPruner, number: int) -> Any:
        family = family_of(self.model)
        media = {name: self.inputs[name] for name in family.media if name in self.inputs}
        with torch.no_grad():
            counts = [len(image.tokens) for film in (False, True) for image in self.shown if image.film == film]
            encoded = family.encode(self.model, media, counts, before.wish)
        films = [image.film for image in self.shown]
        among = films[:number].count(films[number])
        vision = (encoded.videos if films[number] else encoded.images)[among]
        tokens = self.prompt.embeds[self.shown[number].tokens]
        torch.testing.assert_close(vision.projected[0], tokens)  # each token is the one that stands there
        keys = fingerprint(vision.features) if vision.sample_keys is None else vision.sample_keys
        vision = vision.replace(sample_keys=keys ^ fingerprint(self.ids[None]))
        if before.reads_question:
            vision = vision.replace(text_embeds=[self.prompt.embeds[self.words]])
        return vision

    def before_decoder(self, images: list[Image], parts: list[Any]) -> None:
        for number in range(len(images)):
            before = parts[number][0]
            if before is None:
                continue
            vision = self.encoded(before, number)
            reduced = before.reduce(vision)
            own = int(reduced.keep.sum())
            lead = reduced.lead
            made = torch.cat([reduced.tokens[0, :lead], reduced.tokens[0, lead + own :]])
            self.choices[0, number] = Choice(reduced.keep[0].tolist(), made if len(made) else None, None, lead)

    def inside_decoder(self, layer: int, number: int, image: Image, part: Any, at: Any) -> None:
        _, inside, stages = part
        order, hidden, positions, seen = at
        columns = [order.index(label) for label in image.tokens]
        words = [order.index(label) for label in self.words]
        present = torch.tensor(image.alive)[None]
        last = len(order) - 1
        weights = self.weights
        required = None
        if last in columns:
            required = torch.tensor([[column == last for column in columns]])

        def following() -> Tensor:
            return self.run(layer, hidden, positions, seen)[1][:, :, -1, columns] * present[:, None]

        context = DecoderContext(
            layer,
            weights[:, :, -1, columns] * present[:, None],
            present,
            sum(image.alive),
            required,
            attention_in=lambda earlier: self.seen_in(earlier, image) * present[:, None],
            next_attention=following,
            text_attention=lambda: weights[:, :, words][..., columns] * present[:, None, None],
            text_present=torch.ones(1, len(words), dtype=torch.bool),
            prefix_lengths=torch.tensor([self.shown[number].tokens[0]]),
            hidden=hidden[:, columns],
            visual_embeds=self.prompt.embeds[self.shown[number].tokens][None],
            text_embeds=self.prompt.embeds[self.words][None],
            values=self.values[:, :, columns],
            text_output=self.outputs[:, :, words or [last]],
        ).remember_in(image.memory)
        chosen = inside.select(context, stages[layer].retained)
        keep = chosen.keep & present
        keep = (keep if required is None else keep | required)[0].tolist()  # it stays where none is retained, too
        if chosen.merged is None:
            self.choices[layer, number] = Choice(keep)
        else:
            self.choices[layer, number] = Choice(keep, chosen.merged[0], chosen.merged_from[0].tolist())

    def seen_in(self, layer: int, image: Image) -> Tensor:
        """The last token's attention to the image in an earlier layer, `[1, H, V]`; 0 for what was made since."""
        rows = self.last_rows[layer]
        none = torch.zeros_like(next(iter(rows.values())))
        return torch.stack([rows.get(label, none) for label in image.tokens], dim=1)[None]

    # -- the decoder ----------------------------------------------------------------------------------------------

    def run(self, number: int, hidden: Tensor, positions: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A layer of the model over all columns: `[1, L, D]`, its attention `[1, H, L, L]`, and cos `[L, d]`."""
        layer, length, caught = self.decoder.layers[number], hidden.shape[1], []
        handle = layer.self_attn.register_forward_hook(lambda _m, _a, output: caught.append(output[1]))
        allowed = torch.ones(length, length).tril().bool() & (seen[None] | torch.eye(length, dtype=torch.bool))
        mask = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
        where = positions[:, None] if len(positions) == 3 else positions
        rotary = self.decoder.rotary_emb(hidden, position_ids=where)
        try:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        finally:
            handle.remove()
        hidden = hidden if isinstance(hidden, Tensor) else hidden[0]
        return hidden, caught[0], rotary[0].reshape(-1, length, rotary[0].shape[-1])

    @contextmanager
    def watched(self, number: int) -> Iterator[None]:
        """Keep the layer's values and what its attention hands to the output projection: `[1, H, L, d]` each."""
        attn, caught = self.decoder.layers[number].self_attn, {}
        hooks = [
            attn.v_proj.register_forward_hook(lambda _m, _a, output: caught.update(values=output)),
            attn.o_proj.register_forward_pre_hook(lambda _m, args: caught.update(outputs=args[0])),
        ]
        yield
        for hook in hooks:
            hook.remove()
        values, outputs = (caught[name].unflatten(2, (-1, attn.head_dim)) for name in ("values", "outputs"))
        self.outputs = outputs.transpose(1, 2)
        self.values = values.transpose(1, 2).repeat_interleave(outputs.shape[2] // values.shape[2], dim=1)

    @torch.no_grad()
    def answer(self) -> Answer:
        """Greedy steps, each computed from the start."""
        logits, new, rotary = [], list[int](), list[Tensor]()
        first: Any = None
        for step in range(STEPS):
            hidden, told = self.step(step, new, rotary)
            first = told if first is None else first
            logits.append(self.model.lm_head(self.decoder.norm(hidden))[0, -1])
            new.append(int(logits[-1].argmax()))
        kept, lengths, visual = first
        return Answer(torch.stack(logits), kept, lengths, visual, rotary)

    def step(self, step: int, new: list[int], rotary: list[Tensor]) -> Any:
        count = len(self.ids)
        order = list(range(count + len(new)))  # labels of the columns; what is made later gets labels of its own
        embedded = self.decoder.embed_tokens(torch.tensor(new, dtype=torch.long))
        hidden = torch.cat([self.prompt.embeds, embedded])[None]
        after = self.prompt.positions.max() + 1 + torch.arange(len(new))
        positions = torch.cat([self.prompt.positions, after.expand(len(self.prompt.positions), -1)], dim=1)
        deep = [torch.cat([one, torch.zeros_like(embedded)]) for one in self.prompt.deep]
        seen = torch.ones(len(order), dtype=torch.bool)
        parts = [self.parts(len(image.tokens)) for image in self.shown]
        images = [Image(list(s.tokens), [True] * len(s.tokens)) for s in self.shown]
        kept, lengths, visual = {}, [], []
        if step == 0:
            self.before_decoder(images, parts)
        for layer in range(LAYERS):
            here = [n for n in range(len(images)) if layer in parts[n][2] or (layer == 0 and parts[n][0] is not None)]
            if step == 0 and layer > 0:
                at = (order, hidden, positions, seen)
                for number in here:
                    self.inside_decoder(layer, number, images[number], parts[number], at)
            for number in here:
                choice, image = self.choices[layer, number], images[number]
                self.drop(image, choice, order, seen)
                if choice.made is not None:
                    order, hidden, positions, seen, deep = self.insert(
                        image, choice, (order, hidden, positions, seen, deep)
                    )
            if here:
                renumbers = layer == 0 or any(parts[n][1].renumber_positions for n in here)
                if renumbers and self.which not in GRID_FAMILIES:
                    positions = (seen.long().cumsum(0) - 1).clamp(min=0)[None]
                kept[layer] = self.left(images)
            if step == 0:
                lengths.append(int(seen.sum()))
                visual.append(sum(sum(image.alive) for image in images))
            with self.watched(layer):
                hidden, self.weights, cos = self.run(layer, hidden, positions, seen)
            self.last_rows[layer] = dict(zip(order, self.weights[0, :, -1].unbind(1), strict=True))
            if layer < len(deep):
                hidden = hidden + deep[layer]
        rotary.append(cos[:, seen] if step == 0 else cos[:, -1:])
        return hidden, (kept, lengths, visual)

    @staticmethod
    def drop(image: Image, choice: Choice, order: list[int], seen: Tensor) -> None:
        keep = choice.keep + [False] * (len(image.alive) - len(choice.keep))
        image.last = max(order.index(label) for label, alive in zip(image.tokens, image.alive, strict=True) if alive)
        image.first = min(order.index(label) for label, alive in zip(image.tokens, image.alive, strict=True) if alive)
        image.alive = keep
        for label, stays in zip(image.tokens, keep, strict=True):
            seen[order.index(label)] = stays

    def insert(self, image: Image, choice: Choice, at: Any) -> Any:
        """New columns: the first `lead` before the image, the others after what was its last token."""
        order, hidden, positions, seen, deep = at
        made = len(choice.made)
        source = [image.first] * made
        if choice.made_from is not None:
            source = [order.index(image.tokens[place]) for place in choice.made_from]
        # but before it where the prompt ends with it
        after = image.last + (order[image.last] != len(self.ids) - 1)
        labels = [1000 + len(order) + n for n in range(made)]
        for place in reversed(range(made)):
            column = image.first if place < choice.lead else after
            old = source[place]
            order = [*order[:column], labels[place], *order[column:]]
            hidden = torch.cat([hidden[:, :column], choice.made[place][None, None], hidden[:, column:]], dim=1)
            positions = torch.cat([positions[:, :column], positions[:, old][:, None], positions[:, column:]], dim=1)
            seen = torch.cat([seen[:column], torch.ones(1, dtype=torch.bool), seen[column:]])
            deep = [torch.cat([one[:column], one[old][None], one[column:]]) for one in deep]
            source = [s + (s >= column) for s in source]
        image.tokens = image.tokens + labels
        image.alive = image.alive + [True] * made
        return order, hidden, positions, seen, deep

    def left(self, images: list[Image]) -> list[int]:
        """Which placeholders of the row are left, newlines among them."""
        gone = {
            label
            for shown, image in zip(self.shown, images, strict=True)
            for label, alive in zip(shown.tokens, image.alive, strict=False)
            if not alive
        }
        every = [column for shown in self.shown for column in shown.columns]
        return [place for place, column in enumerate(every) if column not in gone]


@functools.lru_cache(maxsize=1024)
def answer(which: str, pruner: Pruner, row: Row) -> Answer:
    """The row's answer, computed once: it does not depend on the batch that the row is in."""
    return BruteForce(which, pruner, row).answer()


# -- the cases --------------------------------------------------------------------------------------------------------

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "uniform": ("uniform", {}),
    "divprune": ("divprune", {}),
    "cdpruner": ("cdpruner", {"relevance": "embedding"}),
    "fastervlm": ("fastervlm", {}),
    "vispruner": ("vispruner", {}),
    "fastervlm received": ("fastervlm", {"importance": "received"}),
    "visionzip": ("visionzip", {}),
    "pool": ("pool", {}),
    "fastv": ("fastv", {}),
    "finepruner": ("finepruner", {"heads": 4}),
    "pdrop": ("pdrop", {}),
    "pdrop official": ("pdrop", {"variant": "official"}),
    "sparsevlm": ("sparsevlm", {}),
    "coreprune": ("coreprune", {}),
    "divprune+pdrop": ("divprune+pdrop", {"first": "75%"}),
}
"""Three stages: `pdrop`, `sparsevlm`. One: the others before and inside the decoder. The last has both."""

BATCHES: dict[str, tuple[Row, ...]] = {
    "one image": ((5, "a", 4),),
    "two images": ((3, "a", 2, "b", 3),),
    "mixed with text-only rows": ((5, "a", 4), (11,), (3, "a", 2, "b", 3)),
    "left-padded": ((5, "a", 4), (2, "b", 1), (3, "a", 2, "b", 3)),
}
FILMS: tuple[Row, ...] = ((2, "v", 3), (5, "a", 4))
ATTENTION = ("sdpa", "eager")


def batches_of(which: str) -> dict[str, tuple[Row, ...]]:
    """Those of the families that know films have a film, too."""
    return BATCHES | ({"with a film": FILMS} if FAMILIES[which].films else {})


@functools.cache
def pruner_of(label: str, budget: int | str = "50%") -> Pruner:
    name, parameters = METHODS[label]
    return fp.build_pruner(name, budget=budget, **parameters)


@dataclass
class Compared:
    """How far a batch is from its rows' answers: the largest difference of logits, and of cos of the positions."""

    logits: float
    positions: float


def compare(which: str, pruner: Pruner, rows: tuple[Row, ...], attention: str) -> Compared:
    """Run a batch under `pruner`, and hold it to the answers of its rows. Raises `AssertionError` on a difference in
    what was kept, in cache lengths or in counts; logits and positions are measured."""
    model, inputs, rotary = tiny_model(which, attention), family_prompts(which, *rows), list[Tensor]()

    def watch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        cos = kwargs["position_embeddings"][0]
        rotary.append(cos if cos.ndim == 4 else cos[None])

    handle = model.model.language_model.layers[-1].self_attn.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        result = fp.generate(model, pruner, inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True)
    finally:
        handle.remove()
    logits, found = torch.stack(result.logits, dim=1), Compared(0.0, 0.0)
    wanted = [answer(which, pruner, row) for row in rows]
    trace = result.trace
    for number, expected in enumerate(wanted):
        found.logits = max(found.logits, float((logits[number] - expected.logits).abs().max()))
        assert result.sequences[number].tolist() == expected.logits.argmax(-1).tolist(), (which, number)
        for layer, kept in trace.kept.items():
            known = [expected.kept[one] for one in sorted(expected.kept) if one <= layer]
            every = list(range(_placeholders(which, rows[number])))
            assert kept[number].tolist() == (known[-1] if known else every), (which, number, layer)
        assert set(expected.kept) <= set(trace.kept), (which, number)
        assert trace.tokens_entering[number] == expected.entering, (which, number)
        for step, cos in enumerate(expected.rotary):
            mine = rotary[step][:, number if rotary[step].shape[1] > 1 else 0]
            length = cos.shape[1]
            found.positions = max(found.positions, float((mine[:, mine.shape[1] - length :] - cos).abs().max()))
    assert trace.kv_lengths == [max(lengths) for lengths in zip(*(one.lengths for one in wanted), strict=True)]
    return found


def _placeholders(which: str, row: Row) -> int:
    ids = family_prompts(which, row)["input_ids"]
    return int(((ids == IMAGE) | (ids == VIDEO)).sum())


def main() -> None:
    """Run every case, and print a table: how many passed, of how many; the reason where a method is refused."""
    torch.set_num_threads(1)
    print("| family | method | cases passed | largest difference of logits | of positions |\n|---|---|---|---|---|")
    for which in FAMILIES:
        for label in METHODS:
            passed, logits, positions, refused = 0, 0.0, 0.0, ""
            cases = [(rows, attention) for rows in batches_of(which).values() for attention in ATTENTION]
            for rows, attention in cases:
                try:
                    found = compare(which, pruner_of(label), rows, attention)
                except FieldError as error:
                    refused = f"refused: {error}"
                    continue
                passed += max(found.logits, found.positions) <= TOLERANCE
                logits, positions = max(logits, found.logits), max(positions, found.positions)
            numbers = f"{passed} of {len(cases)} | {logits:.1e} | {positions:.1e}"
            print(f"| {which} | {label} | {numbers if not refused else refused + ' | | '} |", flush=True)


if __name__ == "__main__":
    main()
