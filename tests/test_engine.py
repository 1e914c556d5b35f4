"""The engine against brute force, and what it must leave alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from brute_force import answer, best
from conftest import IMAGE, VISUAL, alone, prompts, rounding, tiny_llava
from transformers import DynamicCache

import finepruner_lmms as fp
from finepruner_lmms.engine.fan_out import answer_together
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners import DecoderContext, DecoderPruner, Selection, Stage
from finepruner_lmms.testing.guards import prefill_without_host_copy, prefill_without_host_sync

STEPS = 6
BATCHES = {
    "one": [(5, 7)],
    "left-padded": [(5, 7), (2, 4), (9, 3)],
    "with-text-only": [(5, 7), 11, (2, 4)],
    "text-longest": [(3, 2), 30],
}


@dataclass(frozen=True, kw_only=True)
class Pyramid(DecoderPruner):
    """Three drops by the mean row; with `ragged`, a row keeps fewer the larger its last head's attention is."""

    name: ClassVar[str] = "pyramid"
    fills_budget: ClassVar[bool] = False
    ragged: bool = False

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        return (Stage(1, 9), Stage(3, 6), Stage(4, 2))

    def select(self, context: DecoderContext, retained: int) -> Selection:
        chosen = self.keep_best(context.attention.mean(1), context, retained)
        if not self.ragged:
            return chosen
        spare = context.attention[:, -1].argmax(1) % 2 == 1
        fewer = self.keep_best(context.attention.mean(1), context, retained - 1)
        return Selection(torch.where(spare[:, None], fewer.keep, chosen.keep), chosen.scores)


class Renumbered(Pyramid):
    """The same, with positions numbered anew after each drop."""

    name: ClassVar[str] = "renumbered"
    renumber_positions: ClassVar[bool] = True


def choose_by(pruner):
    """The same choice in plain Python."""

    def choose(_layer, attention, alive, count):
        if pruner.name == "finepruner":
            heads = sorted(range(len(attention)), key=lambda h: (-float(attention[h].sum()), h))[: pruner.heads]
            attention = attention[sorted(heads)]
        if getattr(pruner, "ragged", False):
            count -= alive[int(attention[-1][alive].argmax())] % 2
        if pruner.name in ("fastv", "finepruner") and pruner.rows == "renormalised":
            attention = attention / attention.sum(-1, keepdim=True)
        scores = attention.amax(0) if getattr(pruner, "aggregate", "mean") == "max" else attention.mean(0)
        return best(scores, alive, count)

    return choose


PRUNERS = {
    "one-stage": fp.build_pruner("fastv", budget="50%"),
    "late": fp.build_pruner("fastv", budget=12, layer=4),
    "heads": fp.build_pruner("finepruner", budget=8, heads=3),
    "equal-voices": fp.build_pruner("fastv", budget=8, rows="renormalised", aggregate="max"),
    "nothing-left": fp.build_pruner("fastv", budget="16.6666666666666666667%", layer=1),
    "three-stages": Pyramid(),
    "three-stages-ragged": Pyramid(ragged=True),
    "three-stages-renumbered": Renumbered(ragged=True),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("which", PRUNERS)
def test_equals_brute_force(which, batch, attention):
    model, pruner, inputs = tiny_llava(attention), PRUNERS[which], prompts(*BATCHES[batch])
    result = fp.generate(model, pruner, inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True)
    logits = torch.stack(result.logits, dim=1)
    stages = {stage.layer: stage.retained for stage in pruner.stages(6, VISUAL)}
    for row in range(len(logits)):
        expected, kept = answer(
            model, alone(inputs, row), stages, choose_by(pruner), STEPS, renumber=pruner.renumber_positions
        )
        torch.testing.assert_close(logits[row], expected, **rounding())
        assert result.sequences[row].tolist() == expected.argmax(-1).tolist()
        for layer, tokens in kept.items():
            assert result.trace.kept[layer][row].tolist() == tokens
        if not kept:
            assert all(len(result.trace.kept[layer][row]) == 0 for layer in stages if layer in result.trace.kept)


def test_the_ragged_cases_are_ragged():
    inputs = prompts(*[(4, 3 + i) for i in range(6)])
    kept = fp.generate(tiny_llava(), Pyramid(ragged=True), inputs, max_new_tokens=1).trace.kept[1]
    assert len({len(row) for row in kept}) == 2


@pytest.mark.parametrize("rows", [[(5, 7), (2, 4)], [(5, 7), 11]], ids=["images", "mixed"])
@pytest.mark.parametrize("name", ["vanilla", "random", "uniform", "fastv", "finepruner"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_budget_of_all_tokens_is_the_untouched_model(name, attention, rows):
    model, inputs = tiny_llava(attention), prompts(*rows)
    plain = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    for budget in (None, VISUAL, "100%"):
        result = fp.generate(
            model,
            fp.build_pruner(name, budget=budget),
            inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
        )
        assert torch.equal(torch.stack(plain.logits), torch.stack(result.logits))
        assert torch.equal(plain.sequences[:, inputs["input_ids"].shape[1] :], result.sequences)
        assert result.trace.kv_lengths == [inputs["input_ids"].shape[1]] * 6


def test_all_heads_is_fastv_exactly():
    model, inputs = tiny_llava(), prompts((5, 7), (2, 4))
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True}
    fastv = fp.generate(model, fp.build_pruner("fastv", budget=8), inputs, **options)
    all_heads = fp.generate(model, fp.build_pruner("finepruner", budget=8, heads=8), inputs, **options)
    assert torch.equal(torch.stack(fastv.logits), torch.stack(all_heads.logits))
    assert sorted(all_heads.trace.heads[0].tolist()) == list(range(8))


@pytest.mark.parametrize("name", ["random", "uniform"])
def test_vision_side_equals_a_prompt_built_by_hand(name):
    model, inputs = tiny_llava(), prompts((5, 7), 40, (2, 4))
    result = fp.generate(
        model, fp.build_pruner(name, budget=5), inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True
    )
    assert [len(row) for row in result.trace.kept[0]] == [5, 0, 5]
    assert result.trace.tokens_entering == [[5] * 6, [0] * 6, [5] * 6]
    assert result.trace.kv_lengths == [40] * 6
    for row in (0, 1, 2):
        single = alone(inputs, row)
        ids, embeds = single["input_ids"], model.get_input_embeddings()(single["input_ids"])
        if row != 1:
            features = model.get_image_features(single["pixel_values"]).pooler_output[0]
            text = ids[0] != IMAGE
            place = int((~text).nonzero()[0])
            embeds = torch.cat([embeds[0, :place], features[result.trace.kept[0][row]], embeds[0, place + VISUAL :]])[
                None
            ]
        by_hand = model.generate(
            inputs_embeds=embeds,
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = torch.stack([step[row] for step in result.logits])
        torch.testing.assert_close(logits, torch.stack(by_hand.logits)[:, 0], **rounding())


@pytest.mark.parametrize("name", ["random", "fastv", "finepruner"])
def test_a_batch_gives_each_row_what_it_gets_alone(name):
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4), (8, 1))
    pruner = fp.build_pruner(name, budget=8)
    together = fp.generate(model, pruner, inputs, max_new_tokens=3, do_sample=False, output_logits=True)
    for row in range(4):
        single = fp.generate(model, pruner, alone(inputs, row), max_new_tokens=3, do_sample=False, output_logits=True)
        for layer, kept in single.trace.kept.items():
            assert torch.equal(kept[0], together.trace.kept[layer][row])
        torch.testing.assert_close(
            torch.stack([s[row] for s in together.logits]),
            torch.stack([s[0] for s in single.logits]),
            **rounding(),
        )


def test_random_draws_differ_by_seed_image_and_question():
    model, inputs = tiny_llava(), prompts((5, 7))
    other_question, other_image = dict(inputs), dict(inputs)
    other_question["input_ids"] = inputs["input_ids"].clone()
    other_question["input_ids"][0, 0] += 1
    other_image["pixel_values"] = inputs["pixel_values"] + 1

    def draw(asked, seed=0):
        pruner = fp.build_pruner("random", budget=8, seed=seed)
        return fp.generate(model, pruner, asked, max_new_tokens=1).trace.kept[0][0].tolist()

    first = draw(inputs)
    assert draw(inputs) == first
    assert first not in (draw(inputs, seed=1), draw(other_question), draw(other_image))


def test_dropped_tokens_are_gone():
    """Noise on a dropped token at the pruning layer changes nothing; on a kept one, it does."""
    model, inputs = tiny_llava(), prompts((5, 7))
    pruner = fp.build_pruner("fastv", budget=8)
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with fp.attach(model, pruner) as trace:
        clean = torch.stack(model.generate(**inputs, **options).logits)
    kept = trace.kept[2][0].tolist()

    def with_noise(token):
        def disturb(_module, _args, output):
            if output.shape[1] > 1:
                output = output.clone()
                output[:, 5 + token] += 100.0
            return output

        handle = model.model.language_model.layers[1].register_forward_hook(disturb)
        try:
            with fp.attach(model, pruner):
                return torch.stack(model.generate(**inputs, **options).logits)
        finally:
            handle.remove()

    dropped = next(token for token in range(VISUAL) if token not in kept)
    assert torch.equal(clean, with_noise(dropped))
    assert not torch.allclose(clean, with_noise(kept[0]))


def test_caches_are_short_and_each_layer_runs_once():
    model, inputs = tiny_llava(), prompts((5, 7), (2, 4))
    pruner = fp.build_pruner("fastv", budget=8)
    calls = []
    handles = [
        layer.self_attn.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(model.model.language_model.layers)
    ]
    cache = DynamicCache(config=model.config.text_config)
    with fp.attach(model, pruner) as trace:
        model.generate(**inputs, max_new_tokens=4, do_sample=False, past_key_values=cache)
    for handle in handles:
        handle.remove()
    assert calls == list(range(6)) * 4
    schedule = pruner.schedule(6, VISUAL)
    assert trace.tokens_entering == [schedule, schedule]
    text = inputs["input_ids"].shape[1] - VISUAL
    assert trace.kv_lengths == [text + tokens for tokens in schedule]
    assert [cache.get_seq_length(i) for i in range(6)] == [text + tokens + 3 for tokens in schedule]


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_left_on_the_model():
    model, inputs = tiny_llava(), prompts((5, 7))
    before = set(vars(model)), hooks_of(model)
    with fp.attach(model, fp.build_pruner("fastv", budget=8)) as trace:
        assert hooks_of(model) > before[1]
        model.generate(**inputs, max_new_tokens=2)
        with pytest.raises(RuntimeError, match="attached"), fp.attach(model, fp.build_pruner("fastv", budget=8)):
            pass
    assert trace.kept[2][0].numel() and (set(vars(model)), hooks_of(model)) == before
    with pytest.raises(ZeroDivisionError), fp.attach(model, fp.build_pruner("fastv", budget=8)):
        raise ZeroDivisionError
    assert (set(vars(model)), hooks_of(model)) == before
    with pytest.raises(ValueError, match="budget"), fp.attach(model, fp.build_pruner("fastv", budget=1)):
        pass
    assert hooks_of(model) == before[1]


def test_a_plain_forward_is_pruned_too():
    model, inputs = tiny_llava(), prompts((5, 7))
    with fp.attach(model, fp.build_pruner("fastv", budget=8)) as trace, torch.no_grad():
        logits = model(**inputs, use_cache=True).logits[:, -1]
    generated = fp.generate(model, fp.build_pruner("fastv", budget=8), inputs, max_new_tokens=1, output_logits=True)
    torch.testing.assert_close(logits, generated.logits[0], **rounding())
    assert trace.kept[2][0].tolist() == generated.trace.kept[2][0].tolist()


BEAMED = {
    "uniform": {},
    "visionzip": {},
    "fastv": {},
    "sparsevlm": {},
    "pdrop": {"variant": "official"},
    "divprune+fastv": {"first": 12},
}


@pytest.mark.parametrize("name", BEAMED)
def test_beam_search(name):
    """Beams of one sample share what was kept; a batch of beams equals each sample's beams alone."""
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    pruner = fp.build_pruner(name, budget=8, **BEAMED[name])
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    together = fp.generate(model, pruner, inputs, **options)
    assert len(together.sequences) == 3 and all(len(rows) == 3 for rows in together.trace.kept.values())
    for row in range(3):
        single = fp.generate(model, pruner, alone(inputs, row), **options)
        assert together.sequences[row].tolist() == single.sequences[0].tolist()
    greedy = fp.generate(model, pruner, inputs, max_new_tokens=5, do_sample=False)
    for layer, kept in greedy.trace.kept.items():
        assert all(torch.equal(a, b) for a, b in zip(kept, together.trace.kept[layer], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_run_and_score_in_float32(dtype):
    import copy

    model, inputs = copy.deepcopy(tiny_llava()).to(dtype), prompts((5, 7))
    seen = []

    class Look(Pyramid):
        def select(self, context, retained):
            seen.append(context.attention.dtype)
            return super().select(context, retained)

    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    result = fp.generate(model, Look(), inputs, max_new_tokens=2)
    assert set(seen) == {torch.float32} and result.trace.tokens_entering[0] == [16, 9, 9, 6, 2, 2]


def bad_calls():
    good = prompts((5, 7), (2, 4))
    right_padded = {k: v.flip(1) if v.ndim == 2 else v for k, v in good.items()}
    short = good | {"input_ids": good["input_ids"].clone()}
    short["input_ids"][0, 5] = 7
    yield "use_cache", good, {"use_cache": False}
    yield "cache_implementation", good, {"cache_implementation": "static"}
    yield "prefill_chunk_size", good, {"prefill_chunk_size": 4}
    yield "prompt_lookup_num_tokens", good, {"prompt_lookup_num_tokens": 2}
    yield "assistant_model", good, {"assistant_model": tiny_llava()}
    yield "labels", good, {"labels": good["input_ids"]}
    yield "padded on the right", right_padded, {}
    yield "15 image placeholders", short, {}
    yield "pixel_values: holds 1 images", good | {"pixel_values": good["pixel_values"][:1]}, {}
    yield "no images", {k: v for k, v in good.items() if k != "pixel_values"}, {}
    yield "unknown key 'pixels'", good | {"pixels": None}, {}
    yield "questions", good, {"questions": ["one"]}
    yield "give the images once", good | {"image_features": torch.zeros(2, VISUAL, 64)}, {}


@pytest.mark.parametrize(
    "message, inputs, options", bad_calls(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_cannot_be_pruned_is_refused(message, inputs, options):
    model = tiny_llava()
    before = hooks_of(model)
    with pytest.raises(ValueError, match=message):
        fp.generate(model, fp.build_pruner("fastv", budget=8), inputs, **({"max_new_tokens": 2} | options))
    assert hooks_of(model) == before


def test_vision_side_methods_need_the_vision_tower():
    inputs = prompts((5, 7))
    inputs.pop("pixel_values")
    with pytest.raises(ValueError, match="pixel_values"):
        fp.generate(
            tiny_llava(), fp.build_pruner("random", budget=8), inputs | {"image_features": torch.zeros(1, 16, 64)}
        )
    with (
        pytest.raises(ValueError, match=r"finepruner_lmms\.generate"),
        fp.attach(tiny_llava(), fp.build_pruner("random", budget=8)),
    ):
        pass


def test_forwards_under_attach_are_refused_where_pruning_would_be_wrong():
    model, inputs = tiny_llava(), prompts((5, 7))
    with fp.attach(model, fp.build_pruner("fastv", budget=8)), torch.no_grad():
        with pytest.raises(ValueError, match="use_cache"):
            model(**inputs, use_cache=False)
        with pytest.raises(ValueError, match="labels"):
            model(**inputs, labels=inputs["input_ids"])
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="chunked prefill"):
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)


def test_scores_that_are_not_finite_raise():
    import copy

    model, inputs = copy.deepcopy(tiny_llava()), prompts((5, 7))
    with torch.no_grad():
        model.model.language_model.layers[1].self_attn.q_proj.weight[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        fp.generate(model, fp.build_pruner("fastv", budget=8), inputs, max_new_tokens=1)


class Identity(Pyramid):
    """Stages that drop nothing, by the way that drops."""

    name: ClassVar[str] = "identity"

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        return (Stage(1, num_visual_tokens), Stage(3, num_visual_tokens))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gathering_everything_changes_nothing(attention):
    model, inputs = tiny_llava(attention), prompts((5, 7))
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True}
    plain = fp.generate(model, fp.build_pruner("vanilla"), inputs, **options)
    gathered = fp.generate(model, Identity(), inputs, **options)
    # equal up to rounding only: with a mask, PyTorch may choose another attention kernel, which adds in another order
    torch.testing.assert_close(torch.stack(plain.logits), torch.stack(gathered.logits), **rounding())


@pytest.mark.parametrize("batch", BATCHES)
def test_every_row_that_a_method_may_read_is_what_eager_attention_computes(batch):
    """The last token's in every layer up to the next one, and those of all words behind the image."""
    model, inputs, seen, earlier = tiny_llava(), prompts(*BATCHES[batch]), [], []

    class Look(Pyramid):
        def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
            return (Stage(3, 4),)

        def reads_layers(self, layer: int) -> tuple[int, ...]:
            return (0, 1, 2)

        def select(self, context: DecoderContext, retained: int) -> Selection:
            names = ("attention", "next_attention", "text_attention", "text_present", "hidden", "prefix_lengths")
            seen.append({name: getattr(context, name) for name in (*names, "visual_embeds", "text_embeds")})
            earlier.append([context.attention_in(layer) for layer in self.reads_layers(3)])
            return super().select(context, retained)

    fp.generate(model, Look(), inputs, max_new_tokens=1)
    (found,) = seen
    for row in range(len(inputs["input_ids"])):
        single = alone(inputs, row)
        visual = (single["input_ids"][0] == IMAGE).nonzero().squeeze(1)
        if not len(visual):
            assert not found["attention"][row].any() and not found["text_attention"][row].any()
            continue
        eager = tiny_llava("eager")
        outputs = eager(**single, output_attentions=True, output_hidden_states=True)
        words = single["input_ids"].shape[1] - int(visual[-1]) - 1
        near = rounding(layers=3)
        for layer, rows in enumerate(earlier[0]):
            torch.testing.assert_close(rows[row], outputs.attentions[layer][0, :, -1, visual], **near)
        torch.testing.assert_close(found["attention"][row], outputs.attentions[2][0, :, -1, visual], **near)
        torch.testing.assert_close(found["next_attention"][row], outputs.attentions[3][0, :, -1, visual], **near)
        behind = outputs.attentions[2][0, :, -words:][..., visual]
        torch.testing.assert_close(found["text_attention"][row][:, -words:], behind, **near)
        assert int(found["text_present"][row].sum()) == words and bool(found["text_present"][row][-words:].all())
        assert int(found["prefix_lengths"][row]) == int(visual[0])
        torch.testing.assert_close(found["hidden"][row], outputs.hidden_states[3][0, visual], **rounding(3, size=25))
        embeds = outputs.hidden_states[0][0]
        torch.testing.assert_close(found["visual_embeds"][row], embeds[visual], **near)
        torch.testing.assert_close(found["text_embeds"][row][-words:], embeds[-words:])


def test_layers_get_no_position_ids_behind_a_drop():
    """Gaps in positions would be read as several packed prompts by flash attention; rotary embeddings say it all."""
    model, inputs, positions = tiny_llava(), prompts((5, 7)), []

    def look(_module, _args, kwargs):
        positions.append(kwargs["position_ids"])

    with fp.attach(model, fp.build_pruner("fastv", budget=8)):
        handle = model.model.language_model.layers[4].register_forward_pre_hook(look, with_kwargs=True)
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        handle.remove()
    assert positions == [None] * 3


@dataclass(frozen=True, kw_only=True)
class Several(Pyramid):
    """Three drops, each by the rows of all layers so far; `reads` names fewer."""

    name: ClassVar[str] = "several"
    fills_budget: ClassVar[bool] = True
    reads: int = 0

    def reads_layers(self, layer: int) -> tuple[int, ...]:
        return tuple(range(self.reads, layer))

    def select(self, context: DecoderContext, retained: int) -> Selection:
        rows = torch.stack([context.attention_in(layer) for layer in range(context.layer)])
        return self.keep_best(rows.mean((0, 2)), context, retained)


@pytest.mark.parametrize("made", [0, 2])
@pytest.mark.parametrize("batch", BATCHES)
def test_rows_of_layers_before_an_earlier_drop_are_those_that_were_seen_there(batch, made):
    """What was dropped or made since is 0; the rest is what the layer's own attention was at the drop behind it."""
    model, inputs, seen = tiny_llava(), prompts(*BATCHES[batch]), {}

    class Look(Several):
        def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
            return tuple(stage._replace(merged=made) for stage in super().stages(num_layers, num_visual_tokens))

        def select(self, context: DecoderContext, retained: int) -> Selection:
            for layer in range(context.layer):
                rows = context.attention_in(layer)
                known = seen.setdefault(layer, rows)
                known = torch.nn.functional.pad(known, (0, rows.shape[2] - known.shape[2]))
                assert torch.equal(rows, known * context.present[:, None])
                assert bool(rows.any()) == bool(context.present.any())
            chosen = super().select(context, retained)
            if not made:
                return chosen
            return replace(chosen, merged=context.hidden[:, :made], merged_from=chosen.keep.long()[:, :made])

    fp.generate(model, Look(), inputs, max_new_tokens=1)
    assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", BATCHES)
def test_rows_of_several_layers_are_the_same_in_every_way_to_run(batch):
    """Alone and batched, on buffers of fixed size, and together with methods that share some of the way."""
    model, inputs = tiny_llava(), prompts(*BATCHES[batch])
    options = {"max_new_tokens": STEPS, "do_sample": False}
    usual = fp.generate(model, Several(), inputs, **options)
    fixed = fp.generate(model, Several(), inputs, execution="graphs", **options)
    others = [fp.build_pruner("fastv", budget=12), fp.build_pruner("random", budget=9), Pyramid(), Several()]
    together = answer_together(model, others, inputs, max_new_tokens=STEPS).outcomes[-1]
    assert not isinstance(together, Exception)
    for other in (fixed, together):
        assert torch.equal(other.sequences, usual.sequences)
        for layer, rows in usual.trace.kept.items():
            assert all(map(torch.equal, rows, other.trace.kept[layer]))
    for row in range(len(inputs["input_ids"])):
        single = fp.generate(model, Several(), alone(inputs, row), **options)
        for layer, rows in single.trace.kept.items():
            assert torch.equal(rows[0], usual.trace.kept[layer][row])
    for way in (
        lambda pruner: fp.generate(model, pruner, inputs, execution="graphs", **options),
        lambda pruner: fp.generate(model, pruner, inputs, **options),
    ):
        if usual.trace.kept:
            with pytest.raises(FieldError, match="attention of layer 0 was not asked for"):
                way(Several(reads=1))


def test_nothing_is_copied_to_or_read_from_the_device_for_rows_of_several_layers():
    prefill_without_host_copy(Several(), (5, 7), 11, (2, 0))
    with prefill_without_host_sync(tiny_llava()):
        fp.generate(tiny_llava(), Several(), prompts((5, 7), (2, 4)), max_new_tokens=2, do_sample=False)


def test_rows_of_later_layers_are_refused():
    class Ahead(Several):
        def reads_layers(self, layer: int) -> tuple[int, ...]:
            return (layer,)

    with pytest.raises(FieldError, match="reads the attention of layer 1 before layer 1; possible are 0 to 0"):
        fp.generate(tiny_llava(), Ahead(), prompts((5, 7)), max_new_tokens=1)


def test_every_row_that_is_computed_again_is_counted():
    assert Several().scored_layers(6, VISUAL) == (0, 0, 1, 2, 0, 1, 2, 3)
    assert fp.build_pruner("fastv", budget=12, layer=4).scored_layers(6, VISUAL) == (3,)
    assert fp.build_pruner("random", budget=12).scored_layers(6, VISUAL) == ()
    assert fp.build_pruner("divprune+fastv", budget=10, first=12).scored_layers(6, VISUAL) == (1,)
