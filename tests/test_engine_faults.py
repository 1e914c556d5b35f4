"""Calls that once gave wrong tokens without a word: each is right now, or refused."""

from __future__ import annotations

import copy
import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from conftest import PAD, VISUAL, prompts, tiny_llava
from test_engine import Pyramid
from transformers import DynamicCache, GenerationConfig

import finepruner_lmms as fp
from finepruner_lmms.engine import versions
from finepruner_lmms.engine.decoder_hooks import _Hooks
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.engine.versions import cache_of_output
from finepruner_lmms.pruners import DecoderContext, DecoderPruner, Selection, Stage, VisionPruner
from finepruner_lmms.pruners.base import Reduction

FASTV = fp.build_pruner("fastv", budget=8)
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}


def hooks_of(model):
    """Our hooks; transformers leaves some of its own on a model that was asked for hidden states."""
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return [hook for hook in hooks if "finepruner_lmms" in getattr(getattr(hook, "func", hook), "__module__", "")]


def greedy(model, inputs, cache, steps):
    """The logits of each step by plain forwards, so that several prompts can take turns."""
    mask, logits = inputs["attention_mask"], []
    outputs = model(**inputs, past_key_values=cache, use_cache=True)
    for _ in range(steps):
        logits.append(outputs.logits[:, -1])
        yield torch.stack(logits, dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        step = {"input_ids": logits[-1].argmax(-1)[:, None], "attention_mask": mask}
        outputs = model(**step, past_key_values=cache, use_cache=True)


# -- compiled models --------------------------------------------------------------------------------------------------


def compile_decoder(model):
    model.model.language_model.compile(backend="eager")


def compile_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


def compile_layer(model):
    model.model.language_model.layers[4].compile(backend="eager")


@pytest.mark.parametrize("compile_it", [compile_decoder, compile_forward, compile_layer])
def test_a_compiled_model_is_refused(compile_it):
    model, inputs = copy.deepcopy(tiny_llava()), prompts((5, 7))
    compile_it(model)
    with pytest.raises(ValueError, match=r"model: its \w+ is compiled.*torch\.compile"):
        fp.generate(model, FASTV, inputs, **OPTIONS)
    assert not hooks_of(model)


@pytest.mark.slow
def test_code_compiled_outside_of_the_model_is_pruned():
    """What was traced before knows no hooks; under attach it runs them."""
    model, inputs = copy.deepcopy(tiny_llava(layers=4)), prompts((5, 7))
    pruner = fp.build_pruner("fastv", budget=10)  # leaves 4 of 16 from layer 2 on
    compiled = torch.compile(model.forward, backend="eager")
    with torch.no_grad():
        plain = compiled(**inputs, use_cache=True).logits[:, -1]
        with fp.attach(model, pruner) as trace:
            pruned = compiled(**inputs, use_cache=True).logits[:, -1]
        after = compiled(**inputs, use_cache=True).logits[:, -1]
    expected = fp.generate(model, pruner, inputs, **OPTIONS)
    torch.testing.assert_close(pruned, expected.logits[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(plain, after) and trace.kept[2][0].tolist() == expected.trace.kept[2][0].tolist()


@pytest.mark.parametrize("part", ["decoder", "whole"])
def test_a_prefill_whose_hooks_do_not_run_is_refused(part):
    """However it comes about, such as by layers that are called by other code."""
    model, inputs = copy.deepcopy(tiny_llava()), prompts((5, 7))

    class PastTheHooks(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = [inner]

        def forward(self, *args, **kwargs):
            return self.inner[0].forward(*args, **kwargs)

    with fp.attach(model, FASTV), torch.no_grad():
        if part == "decoder":
            layers = model.model.language_model.layers
            layers[2] = PastTheHooks(layers[2])
        else:
            model.model = PastTheHooks(model.model)
        with pytest.raises(ValueError, match=r"model: .*compiled"):
            model(**inputs, use_cache=True)


# -- a prompt's state belongs to its cache ----------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", [FASTV, Pyramid(ragged=True)], ids=["fastv", "ragged"])
@pytest.mark.parametrize("other", [[(9, 3), 11, (1, 2)], [(2, 4), (5, 7)]], ids=["another-shape", "same-shape"])
def test_prompts_that_take_turns_get_their_own_tokens(pruner, other):
    model, a, b = tiny_llava(), prompts((5, 7), (2, 4)), prompts(*other, seed=4)
    with torch.no_grad():
        with fp.attach(model, pruner):
            alone_a = list(greedy(model, a, DynamicCache(), 4))[-1]
            alone_b = list(greedy(model, b, DynamicCache(), 4))[-1]
        with fp.attach(model, pruner):
            turns = itertools.zip_longest(greedy(model, a, DynamicCache(), 4), greedy(model, b, DynamicCache(), 4))
            *_, (together_a, together_b) = turns
    assert torch.equal(alone_a, together_a) and torch.equal(alone_b, together_b)


def test_an_image_in_a_cache_that_holds_text_is_refused():
    model, text = tiny_llava(), prompts(6)
    with fp.attach(model, FASTV), torch.no_grad():
        cache = cache_of_output(model(**text, use_cache=True))
        image = prompts((2, 3))
        mask = torch.ones(1, 6 + image["input_ids"].shape[1], dtype=torch.long)
        with pytest.raises(ValueError, match="holds tokens already"):
            model(**(image | {"attention_mask": mask}), past_key_values=cache, use_cache=True)


def test_text_after_text_goes_on():
    model = tiny_llava()
    ids = prompts(9)["input_ids"]
    with fp.attach(model, FASTV), torch.no_grad():
        whole = model(input_ids=ids, use_cache=True).logits[:, -1]
        cache = cache_of_output(model(input_ids=ids[:, :6], use_cache=True))
        parts = model(input_ids=ids[:, 6:], past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_a_cache_from_elsewhere_is_refused():
    model, inputs = tiny_llava(), prompts((5, 7))
    with torch.no_grad():
        cache = cache_of_output(model(**inputs, use_cache=True))
        with fp.attach(model, FASTV), pytest.raises(ValueError, match="not filled under this attach"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)


def test_a_cache_that_was_cropped_is_refused():
    model, inputs = tiny_llava(), prompts((5, 7))
    with fp.attach(model, FASTV), torch.no_grad():
        cache = cache_of_output(model(**inputs, use_cache=True))
        cache.crop(-1)
        with pytest.raises(ValueError, match="it was changed meanwhile"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)


def test_the_language_model_by_itself_is_refused():
    model = tiny_llava()
    with fp.attach(model, FASTV), torch.no_grad(), pytest.raises(ValueError, match="call the whole model"):
        model.model.language_model(inputs_embeds=torch.zeros(1, 4, 64), use_cache=True)


def test_embeddings_of_several_tokens_are_refused_as_ids_are():
    model, inputs = tiny_llava(), prompts((5, 7))
    with fp.attach(model, FASTV), torch.no_grad():
        cache = cache_of_output(model(**inputs, use_cache=True))
        with pytest.raises(ValueError, match="a forward of 2 tokens"):
            model(inputs_embeds=torch.zeros(1, 2, 64), past_key_values=cache, use_cache=True)


# -- ways of generating -----------------------------------------------------------------------------------------------

REFUSED = {
    "guidance_scale": {"guidance_scale": 2.0},
    "guidance_scale (config)": {"generation_config": GenerationConfig(guidance_scale=2.0, max_new_tokens=2)},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "custom_generate": {"custom_generate": lambda *_args, **_kwargs: None},
    "num_beam_groups": {"num_beam_groups": 2, "num_beams": 4},
    "token_healing": {"token_healing": True},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "assistant_early_exit": {"assistant_early_exit": 3},
    "vision_feature_layer": {"vision_feature_layer": -1},
    "use_cache": {"use_cache": False},
}


@pytest.mark.parametrize("how", ["generate", "attach"])
@pytest.mark.parametrize("name", REFUSED)
def test_ways_of_generating_that_run_other_forwards_are_refused(name, how):
    model, inputs, options = tiny_llava(), prompts((5, 7)), {"max_new_tokens": 2} | REFUSED[name]
    with pytest.raises(ValueError, match=f"^{name.split()[0]}: "):
        if how == "generate":
            fp.generate(model, FASTV, inputs, **options)
        else:
            with fp.attach(model, FASTV):
                model.generate(**inputs, **options)
    assert not hooks_of(model) and "generate" not in vars(model)


@pytest.mark.parametrize("name", REFUSED)
def test_settings_of_the_model_itself_are_refused_too(name):
    (key, value), *_ = REFUSED[name].items()
    if not hasattr(tiny_llava().generation_config, key):
        pytest.skip("an argument, not a setting")
    model = copy.deepcopy(tiny_llava())
    setattr(model.generation_config, key, value)
    with pytest.raises(ValueError, match=f"^{key}: "):
        fp.generate(model, FASTV, prompts((5, 7)), max_new_tokens=2)


def test_a_guidance_scale_of_one_is_no_guidance():
    model, inputs = tiny_llava(), prompts((5, 7))
    plain = fp.generate(model, FASTV, inputs, **OPTIONS)
    assert torch.equal(fp.generate(model, FASTV, inputs, guidance_scale=1.0, **OPTIONS).sequences, plain.sequences)


@pytest.mark.parametrize("wanted", [3, torch.tensor([4, 5])], ids=["count", "places"])
def test_a_prefill_that_reads_several_logits_is_refused(wanted):
    model, inputs = tiny_llava(), prompts((5, 7))
    with fp.attach(model, FASTV), torch.no_grad(), pytest.raises(ValueError, match=r"^logits_to_keep: "):
        model(**inputs, use_cache=True, logits_to_keep=wanted)


# -- beams ------------------------------------------------------------------------------------------------------------


def test_details_under_beams_are_those_of_the_rows():
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    pruner = fp.build_pruner("finepruner", budget=8, head_strategy="consensus")
    beams = fp.generate(model, pruner, inputs, max_new_tokens=2, num_beams=3, do_sample=False).trace
    plain = fp.generate(model, pruner, inputs, max_new_tokens=2, do_sample=False).trace
    assert len(beams.details[2].count) == 3
    for row in (0, 2):
        ours, theirs = beams.details[2].record(row), plain.details[2].record(row)
        assert (ours.heads, ours.consensus, ours.diversity) == (theirs.heads, theirs.consensus, theirs.diversity)


def test_details_that_know_no_rows_are_refused_under_beams():
    trace = Trace(1, 4, (True, True), details={1: torch.tensor([7, 8])})
    assert trace.drop_beams(2).details[1].tolist() == [7]
    with pytest.raises(ValueError, match="of_rows"):
        Trace(1, 4, (True, True), details={1: {"a": 1}}).drop_beams(2)


# -- the contract of a method -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Foreign(DecoderPruner):
    """A method from outside, as wrong as it is told to be."""

    name: ClassVar[str] = "foreign"
    where: tuple = (Stage(2, 4),)
    wrong: str = ""

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        return self.where

    def select(self, context: DecoderContext, retained: int) -> Selection:
        more = {"too many": 1, "too few": -1}.get(self.wrong, 0)
        good = self.keep_best(context.attention.mean(1), context, retained + more)
        keep, rows = good.keep, len(good.keep)
        match self.wrong:
            case "nothing":
                return None
            case "mask only":
                return keep
            case "shape":
                return Selection(keep[:, :-1])
            case "dtype":
                return Selection(keep.long())
            case "device":
                return Selection(keep.to("meta"))
            case "scores":
                return Selection(keep, good.scores[:, :-1])
            case "merged unasked":
                return Selection(keep, merged=torch.zeros(rows, 1, 64))
            case "merged width":
                return Selection(keep, merged=torch.zeros(rows, 1, 63), merged_from=torch.zeros(rows, 1).long())
            case "merged from nowhere":
                return Selection(keep, merged=torch.zeros(rows, 1, 64), merged_from=torch.full((rows, 1), 999))
        return good


ONE_MERGED = (Stage(2, 4, 1),)
BREACHES = [
    ("too many", (Stage(2, 4),), "kept more than the 4 visual tokens"),
    ("too few", (Stage(2, 4),), "kept fewer than the 4 visual tokens"),
    ("nothing", (Stage(2, 4),), "returned a NoneType; expected a Selection"),
    ("mask only", (Stage(2, 4),), "returned a Tensor; expected a Selection"),
    ("shape", (Stage(2, 4),), r"keep of shape \[1, 15\]; expected \[1, 16\]"),
    ("dtype", (Stage(2, 4),), "keep of type torch.int64; expected bool"),
    ("device", (Stage(2, 4),), "keep on meta; expected cpu"),
    ("scores", (Stage(2, 4),), r"scores of shape \[1, 15\]"),
    ("merged unasked", (Stage(2, 4),), "its Stage promises none"),
    ("merged missing", ONE_MERGED, "promised 1 merged tokens and gave none"),
    ("merged width", ONE_MERGED, r"merged of shape \[1, 1, 63\]; expected \[1, 1, 64\]"),
    ("merged from nowhere", ONE_MERGED, "positions of visual tokens that there are not"),
    ("stages", (Stage(0, 4),), "before decoder layer 0; possible are 1 to 5"),
    ("stages", (Stage(99, 4),), "before decoder layer 99; possible are 1 to 5"),
    ("stages", (Stage(3, 8), Stage(2, 4)), "ascending order"),
    ("stages", (Stage(2, 8), Stage(2, 4)), "give each layer once"),
    ("stages", (Stage(2, -1),), "at least 0"),
    ("stages", (Stage(2, 4.0),), "whole numbers"),
    ("stages", ((2, 4),), "expected a Stage"),
]


@pytest.mark.parametrize("wrong, where, message", BREACHES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_method_that_breaks_the_contract_is_refused(wrong, where, message):
    model, inputs = tiny_llava(), prompts((5, 7))
    with pytest.raises(ValueError, match=message) as found:
        fp.generate(model, Foreign(where=where, wrong=wrong), inputs, max_new_tokens=2)
    assert "'foreign'" in str(found.value) and not hooks_of(model)


def test_a_method_that_keeps_the_contract_is_not():
    trace = fp.generate(tiny_llava(), Foreign(), prompts((5, 7), 3, (1, 2)), max_new_tokens=2).trace
    assert [row[2] for row in trace.tokens_entering] == [4, 0, 4]


@dataclass(frozen=True, kw_only=True)
class ForeignVision(VisionPruner):
    """A vision-side method from outside."""

    name: ClassVar[str] = "foreign-vision"
    wrong: str = ""

    def choose(self, vision):
        keep = torch.zeros(vision.features.shape[:2], dtype=torch.bool)
        keep[:, : {"too many": 9, "too few": 7}.get(self.wrong, 8)] = True
        if self.wrong == "uneven":
            keep[0, 0] = False
        return keep.long() if self.wrong == "dtype" else keep


class ForeignTokens(ForeignVision):
    """One that makes its own tokens, and too few."""

    def reduce(self, vision):
        return Reduction(vision.projected[:, :5], self.choose(vision))


@pytest.mark.parametrize("wrong", ["too many", "too few", "uneven", "dtype", "tokens"])
def test_a_vision_side_method_that_breaks_the_contract_is_refused(wrong):
    kind = ForeignTokens if wrong == "tokens" else ForeignVision
    with pytest.raises(ValueError, match="'foreign-vision'"):
        fp.generate(tiny_llava(), kind(budget=8, wrong=wrong), prompts((5, 7), (2, 4)), max_new_tokens=2)


def test_hooks_are_gone_when_registering_stops_half_way(monkeypatch):
    model = tiny_llava()
    layers = model.model.language_model.layers

    def fail(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(layers[3], "register_forward_pre_hook", fail)
    with pytest.raises(ZeroDivisionError), fp.attach(model, FASTV):
        pass
    assert not hooks_of(model)
    monkeypatch.undo()
    fp.generate(model, FASTV, prompts((5, 7)), max_new_tokens=1)


def test_nan_of_an_earlier_prompt_is_not_forgotten():
    model, inputs = tiny_llava(), prompts((5, 7))
    poisoned = inputs | {"pixel_values": torch.full_like(inputs["pixel_values"], torch.nan)}
    with pytest.raises(ValueError, match="NaN"), fp.attach(model, FASTV), torch.no_grad():
        model(**poisoned, use_cache=True)
        model(**inputs, use_cache=True)


# -- devices, types, lengths ------------------------------------------------------------------------------------------

METHODS = ["fastv", "sparsevlm", "pdrop", "divprune", "visionzip", "cdpruner", "random", "divprune+fastv"]


def method(name):
    more = {"divprune+fastv": {"first": 12}, "cdpruner": {"relevance": "embedding"}}.get(name, {})
    return fp.build_pruner(name, budget=8, **more)


@pytest.mark.parametrize("name", METHODS)
def test_an_offloaded_model_answers_as_the_model_does(name):
    """Its weights are on `meta` between calls, so `model.device` says nothing."""
    inputs = prompts((5, 7), 11, (2, 4))
    expected = fp.generate(tiny_llava(), method(name), inputs, **OPTIONS)
    model = cpu_offload(copy.deepcopy(tiny_llava()), execution_device="cpu")
    assert model.device.type == "meta"
    found = fp.generate(model, method(name), inputs, **OPTIONS)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pruner", [FASTV, method("sparsevlm"), fp.build_pruner("pdrop", budget=8)], ids=str)
def test_what_is_computed_follows_the_layers_to_their_device(pruner):
    """The last layers stand on another device: torch's `meta`, which takes no part in a sum with the CPU."""
    model, inputs = copy.deepcopy(tiny_llava()), prompts((5, 7), (2, 4))
    decoder, first = model.model.language_model, pruner.stages(6, VISUAL)[0].layer
    away = [*decoder.layers[first:], decoder.norm, model.lm_head]
    for module in away:
        module.to("meta")
        add_hook_to_module(module, AlignDevicesHook(execution_device="meta"))
    with torch.no_grad():
        hooks = _Hooks(model, pruner, trace := Trace(), None)

        with ExitStack() as undo:
            hooks.register(undo)
            logits = model(**inputs, use_cache=True).logits
    for module in away:
        remove_hook_from_module(module)
    assert logits.device.type == "meta"
    assert trace.kv_lengths[-1] == 12 + pruner.schedule(6, VISUAL)[-1]


def test_gradients_may_be_on():
    model, inputs = copy.deepcopy(tiny_llava()), prompts((5, 7), (2, 4))
    for name in ("fastv", "sparsevlm"):
        with fp.attach(model, method(name)) as trace, torch.enable_grad():
            model(**inputs, use_cache=True).logits[:, -1].sum().backward()
        assert not any(score.requires_grad for _, score in trace.expected.values())
        assert trace.kept and model.model.language_model.layers[0].mlp.up_proj.weight.grad is not None


@pytest.mark.parametrize("name", METHODS)
def test_autocast_changes_no_score(name):
    """Everything that a method is given and computes is float32, whatever the model around it runs in."""
    model, inputs, seen = tiny_llava(), prompts((5, 7), (2, 4)), []
    pruner = method(name)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "_softmax", "linear"):
                seen.append(result.dtype)
            return result

    def watched(function):
        def call(*args, **kwargs):
            with Watch():
                return function(*args, **kwargs)

        return call

    before, inside = pruner.parts(VISUAL)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        for part, call in ((before, "reduce"), (inside, "select")):
            if part is not None:
                patch.setattr(type(part), call, watched(getattr(type(part), call)))
        result = fp.generate(model, pruner, inputs, **OPTIONS)
    assert set(seen) <= {torch.float32, torch.float64} and result.trace.kept
    if name not in ("random", "pdrop"):
        assert seen or name == "fastv"


def test_the_cls_row_is_float32_under_autocast():
    model, inputs = tiny_llava(), prompts((5, 7), (2, 4))
    plain = fp.encode_images(model, inputs["pixel_values"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fp.encode_images(model, inputs["pixel_values"])
    assert cast.cls_attention.dtype == cast.keys.dtype == torch.float32
    # the tower itself ran in bfloat16, so its own rounding remains: 8 bits of an attention of at most 1
    torch.testing.assert_close(cast.cls_attention, plain.cls_attention, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("name", ["divprune", "fastv", "divprune+fastv"])
def test_encoded_images_may_come_one_per_row(name):
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    expected = fp.generate(model, method(name), inputs, **OPTIONS)
    pixels = inputs["pixel_values"]
    inputs["vision"] = fp.encode_images(model, torch.stack([pixels[0], torch.zeros_like(pixels[0]), pixels[1]]))
    del inputs["pixel_values"]
    found = fp.generate(model, method(name), inputs, **OPTIONS)
    assert torch.equal(found.sequences, expected.sequences)
    for layer, kept in expected.trace.kept.items():
        assert [row.tolist() for row in kept] == [row.tolist() for row in found.trace.kept[layer]]


@pytest.mark.parametrize("key", ["pixel_values", "image_features", "vision"])
@pytest.mark.parametrize("name", ["fastv", "divprune"])
@pytest.mark.parametrize("count", [1, 2])
def test_images_that_no_row_shows_are_refused(name, key, count):
    model, inputs = tiny_llava(), prompts(5, 11)
    pixels = torch.zeros(count, 3, 16, 16)
    inputs[key] = {
        "pixel_values": pixels,
        "image_features": torch.zeros(count, VISUAL, 64),
        "vision": fp.encode_images(model, pixels),
    }[key]
    with pytest.raises(ValueError, match=f"^{key}: holds {count} images, but no row of input_ids shows one"):
        fp.generate(model, method(name), inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", ["divprune+pdrop", "divprune+fastv", "visionzip", "pdrop"])
def test_a_batch_of_text_alone_is_the_model_itself(name):
    model, inputs = tiny_llava(), prompts(5, 11)
    more = {"first": 12} if "+" in name else {}
    plain = model.generate(**inputs, return_dict_in_generate=True, **OPTIONS)
    found = fp.generate(model, fp.build_pruner(name, budget=10, **more), inputs, **OPTIONS)
    assert torch.equal(torch.stack(plain.logits), torch.stack(found.logits))
    assert found.trace.tokens_entering == [[0] * 6] * 2


@pytest.mark.parametrize("layer", [0, 1, 3, -1, -2, -4])
def test_any_layer_of_the_vision_tower_may_be_read(layer):
    """0 and -4 are the embeddings, which no attention made."""
    model, inputs = copy.deepcopy(tiny_llava()), prompts((5, 7))
    model.config.vision_feature_layer = layer
    vision = fp.encode_images(model, inputs["pixel_values"])
    tower = model.model.vision_tower
    states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(vision.features, states[layer][:, 1:])
    number = layer % 4
    fp.generate(model, method("divprune"), inputs, max_new_tokens=1)
    if not number:
        assert vision.cls_attention is None
        with pytest.raises(ValueError, match="cls_attention: "):
            fp.generate(model, fp.build_pruner("fastervlm", budget=8), inputs, max_new_tokens=1)
        return
    attn, blocks = tower.encoder.layers[number - 1].self_attn, tower.encoder.layers
    inside = blocks[number - 1].layer_norm1(states[number - 1])
    query, keys = (f(inside).unflatten(-1, (4, -1)).transpose(1, 2) for f in (attn.q_proj, attn.k_proj))
    expected = (query[:, :, :1] @ keys.transpose(2, 3) * attn.scale).softmax(-1)[:, :, 0, 1:]
    torch.testing.assert_close(vision.cls_attention, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [4, -5, [-2, -1]])
def test_a_layer_that_the_vision_tower_does_not_have_is_refused(layer):
    model, inputs = copy.deepcopy(tiny_llava()), prompts((5, 7))
    model.config.vision_feature_layer = layer
    with pytest.raises(ValueError, match=r"^vision_feature_layer: "):
        fp.encode_images(model, inputs["pixel_values"])


@pytest.mark.parametrize("name", ["fastv", "divprune", "visionzip", "divprune+fastv"])
def test_max_length_counts_the_prompt_that_was_given(name):
    model, inputs = tiny_llava(), prompts((5, 7), (2, 4))
    length = inputs["input_ids"].shape[1]
    options = {"do_sample": False}
    expected = fp.generate(model, method(name), inputs, max_new_tokens=3, **options).sequences
    for given in ({"max_length": length + 3}, {"generation_config": GenerationConfig(max_length=length + 3)}):
        assert torch.equal(fp.generate(model, method(name), inputs, **given, **options).sequences, expected)
    with pytest.raises(ValueError, match=f"^max_length: {length} leaves no room after a prompt of {length} tokens"):
        fp.generate(model, method(name), inputs, max_length=length, **options)


def test_min_length_counts_the_prompt_that_was_given():
    model, inputs = tiny_llava(), prompts((5, 7))
    length = inputs["input_ids"].shape[1]
    first = fp.generate(model, method("divprune"), inputs, max_new_tokens=1, do_sample=False).sequences
    ends = {"eos_token_id": int(first[0, 0]), "pad_token_id": PAD, "max_new_tokens": 6, "do_sample": False}
    assert fp.generate(model, method("divprune"), inputs, **ends).sequences.shape[1] == 1
    waited = fp.generate(model, method("divprune"), inputs, min_length=length + 4, **ends).sequences
    assert int(first[0, 0]) not in waited[0, :4].tolist() and waited.shape[1] >= 4


@pytest.mark.parametrize("name", ["fastv", "divprune", "divprune+fastv"])
def test_budgets_of_numpy_are_numbers(name):
    model, inputs = tiny_llava(), prompts((5, 7))
    more = {"first": np.int64(12)} if "+" in name else {}
    pruner = fp.build_pruner(name, budget=np.int64(8), **more)
    assert torch.equal(
        fp.generate(model, pruner, inputs, **OPTIONS).sequences,
        fp.generate(model, method(name), inputs, **OPTIONS).sequences,
    )


# -- versions of transformers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version, known", [("5.17.1", 0), ("5.18.0", 1), ("5.22.2", 1), ("5.24.3", 1), ("5.25.0", 0)])
def test_a_transformers_that_was_not_tested_is_said_once(version, known, recwarn):
    versions.warn_if_untested.cache_clear()
    versions.warn_if_untested(version)
    versions.warn_if_untested(version)
    said = [str(warning.message) for warning in recwarn if "was not tested" in str(warning.message)]
    assert len(said) == 1 - known and all(version in text and versions.NEWEST in text for text in said)


def test_the_cache_is_found_under_both_names():
    cache = DynamicCache()
    assert versions.find_cache({"cache": cache}) is cache and versions.find_cache({"past_key_values": cache}) is cache
    assert versions.find_cache({"cache": None, "past_key_values": cache}) is cache
    assert versions.find_cache({}) is None
