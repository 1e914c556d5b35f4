"""Every family against brute force, method by method, and what must hold of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from family_brute_force import (
    ATTENTION,
    GRID_FAMILIES,
    METHODS,
    STEPS,
    TOLERANCE,
    answer,
    batches_of,
    compare,
    pruner_of,
)

import finepruner_lmms as fp
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners import DecoderContext, DecoderPruner, Selection, Stage
from finepruner_lmms.testing.families import FAMILIES, LAYERS, family_prompts, tiny_model

OPTIONS = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True}
MAIN = [which for which in FAMILIES if "-" not in which]  # the others differ in their decoders alone
INSIDE = [label for label, (name, _) in METHODS.items() if fp.build_pruner(name).side == "decoder"]


def plain(which, inputs, attention="sdpa"):
    """The logits of the untouched model, `[B, steps, V]`."""
    output = tiny_model(which, attention).generate(**inputs, return_dict_in_generate=True, **OPTIONS)
    return torch.stack(output.logits, dim=1)


def logits_of(result):
    return torch.stack(result.logits, dim=1)


# -- brute force ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", INSIDE)
@pytest.mark.parametrize("which", MAIN)
def test_a_method_inside_the_decoder_equals_brute_force(which, label):
    for name, rows in batches_of(which).items():
        for attention in ATTENTION:
            found = compare(which, pruner_of(label), rows, attention)
            assert found.logits <= TOLERANCE and found.positions <= 1e-6, (name, attention)


NO_CLS = {"llava_onevision", "qwen2_5_vl", "qwen3_vl"}
REFUSED = {
    **{(which, label): "cls_attention" for which in NO_CLS for label in ("fastervlm", "vispruner")},
    ("llava_onevision", "visionzip"): "cls_attention",
    ("internvl", "visionzip"): "cls_projected",
    **{(which, "visionzip"): "cls_attention" for which in GRID_FAMILIES},
    **{(which, "pool"): "pool needs a square grid" for which in MAIN if which != "llava"},
}
"""What does not run on the pictures of `testing.families`, and a part of the reason that is given."""
BEFORE = [label for label in METHODS if label not in INSIDE]


@pytest.mark.parametrize("label", BEFORE)
@pytest.mark.parametrize("which", MAIN)
def test_a_method_before_the_decoder_equals_brute_force_or_is_refused(which, label):
    if (which, label) in REFUSED:
        for rows in list(batches_of(which).values())[:1]:
            with pytest.raises(FieldError, match=REFUSED[which, label]):
                compare(which, pruner_of(label), rows, "sdpa")
        return
    for name, rows in batches_of(which).items():
        # both ways for one method; for the others they take turns, since the choice is made before the decoder
        for attention in ATTENTION if label == "divprune" else ATTENTION[:: 1 if "row" in name else -1][:1]:
            found = compare(which, pruner_of(label), rows, attention)
            assert found.logits <= TOLERANCE and found.positions <= 1e-6, (name, attention)


@pytest.mark.parametrize("label", ["fastv", "pdrop official", "sparsevlm"])
@pytest.mark.parametrize("which", [which for which in FAMILIES if which not in MAIN])
def test_the_other_decoders_of_a_family_equal_brute_force(which, label):
    for rows in (rows for name, rows in batches_of(which).items() if name.startswith(("mixed", "with"))):
        for attention in ATTENTION:
            assert compare(which, pruner_of(label), rows, attention).logits <= TOLERANCE


@pytest.mark.parametrize("which", ["llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_rows_of_several_layers_equal_brute_force(which):
    """Behind a drop at the entrance, in images of several sizes and rows without one."""
    several = {"first": "75%", "layer": 3, "heads": 4, "score_layers": "0+1"}
    pruner = fp.build_pruner("divprune+finepruner", budget="50%", **several)
    rows = batches_of(which)["mixed with text-only rows"]
    assert compare(which, pruner, rows, "sdpa").logits <= TOLERANCE


ODD_ROWS = {
    "films and images": ((2, "v", 1, "a", 3), (1, "b", 2, "v", 2), (4,)),
    "two films": ((2, "v", 1, "v", 3), (1, "a", 2)),
    "no text between": ((2, "a", "b", 3), (3, "b", 2)),
    "begins with an image": (("a", 3), (2, "b", 5)),
    "three images": ((2, "a", 1, "b", 1, "a", 2), (3, "b", 5)),
    "long text": ((2, "a", 70), (90,)),
}


@pytest.mark.parametrize("name", ODD_ROWS)
@pytest.mark.parametrize("which", MAIN)
def test_rows_of_any_make_equal_brute_force(which, name):
    rows = ODD_ROWS[name]
    if "film" in name and not FAMILIES[which].films:
        pytest.skip("knows no films")
    for label in ("sparsevlm", "divprune+pdrop"):
        assert compare(which, pruner_of(label), rows, "sdpa").logits <= TOLERANCE


@pytest.mark.parametrize("which", ["llava", "llava_next", "llava_onevision"])
@pytest.mark.parametrize("label", ["fastv", "sparsevlm"])
def test_a_prompt_that_ends_with_its_image_equals_brute_force(which, label):
    assert compare(which, pruner_of(label), ((4, "a"), (2, "b", 3)), "sdpa").logits <= TOLERANCE


@pytest.mark.parametrize("which", MAIN)
def test_a_count_is_per_image_and_one_of_n_or_more_keeps_all_of_it(which):
    """Between the sizes of the two pictures, where they differ: one of them stays whole, the other does not."""
    rows = ((3, "a", 2, "b", 3), (2, "b", 4))
    sizes = sorted({len_of(which, "a"), len_of(which, "b")})
    pruner = fp.build_pruner("fastv", budget=sizes[0])
    assert compare(which, pruner, rows, "sdpa").logits <= TOLERANCE
    wanted = answer(which, pruner, rows[0]).kept
    assert bool(wanted) == (len(set(sizes)) > 1 and which != "llava_onevision")  # its several images are alike


def len_of(which, name):
    """N of a picture."""
    trace = fp.generate(
        tiny_model(which), fp.build_pruner("fastv", budget="99%"), family_prompts(which, (2, name, 2)), max_new_tokens=1
    ).trace
    return trace.tokens_entering[0][0]


# -- gathering everything changes nothing -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Everything(DecoderPruner):
    """Gathers all tokens at three layers, and so drops none."""

    name: ClassVar[str] = "everything"

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        return tuple(Stage(layer, num_visual_tokens) for layer in (1, 3, 4))

    def select(self, context: DecoderContext, retained: int) -> Selection:
        return Selection(context.present.clone())


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("which", FAMILIES)
def test_gathering_everything_is_bit_identical(which, attention):
    for rows in [rows for name, rows in batches_of(which).items() if name.startswith(("mixed", "with"))]:
        inputs = family_prompts(which, *rows)
        result = fp.generate(tiny_model(which, attention), Everything(budget="99%"), inputs, **OPTIONS)
        assert sorted(result.trace.kept) == [1, 3, 4]
        assert torch.equal(logits_of(result), plain(which, inputs, attention))


@pytest.mark.parametrize("name", ["fastv", "divprune"])
@pytest.mark.parametrize("which", FAMILIES)
def test_a_budget_of_all_tokens_is_the_untouched_model(which, name):
    inputs = family_prompts(which, (5, "a", 4), (11,), (3, "a", 2, "b", 3))
    expected = plain(which, inputs)
    for budget in ("100%", 16 if which == "llava" else 1000):  # a count above N is refused where N is always the same
        result = fp.generate(tiny_model(which), fp.build_pruner(name, budget=budget), inputs, **OPTIONS)
        assert torch.equal(logits_of(result), expected)


# -- the model's own generate, and turns ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", MAIN)
def test_attach_works_with_the_models_own_generate(which):
    inputs, pruner = family_prompts(which, (5, "a", 4), (3, "a", 2, "b", 3)), pruner_of("pdrop")
    expected = fp.generate(tiny_model(which), pruner, inputs, **OPTIONS)
    model = tiny_model(which)
    with fp.attach(model, pruner) as trace:
        output = model.generate(**inputs, return_dict_in_generate=True, **OPTIONS)
    assert torch.equal(torch.stack(output.logits, dim=1), logits_of(expected))
    assert trace.tokens_entering == expected.trace.tokens_entering
    assert torch.equal(plain(which, inputs), plain(which, inputs))  # and nothing of it is left


@pytest.mark.parametrize("which", MAIN)
def test_a_prompt_with_earlier_turns_is_one_prompt(which):
    """A question about an image, an answer, another image and another question."""
    assert compare(which, pruner_of("fastv"), ((3, "b", 4, 6, 2, "a", 5),), "sdpa").logits <= TOLERANCE


@pytest.mark.parametrize("which", MAIN)
def test_going_on_with_a_pruned_cache_is_refused(which):
    model, inputs = tiny_model(which), family_prompts(which, (5, "a", 4))
    with fp.attach(model, pruner_of("fastv")):
        first = model.generate(**inputs, return_dict_in_generate=True, **OPTIONS)
        more = torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], dim=1)
        with pytest.raises(
            ValueError, match=r"chunked prefill, assisted decoding and continued prompts|past_key_values"
        ):
            model.generate(
                input_ids=more, attention_mask=torch.ones_like(more), past_key_values=first.past_key_values, **OPTIONS
            )


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", sorted(GRID_FAMILIES))
def test_places_in_a_grid_are_not_numbered_anew(which):
    inputs = family_prompts(which, (5, "a", 4))
    with pytest.raises(FieldError, match="have places in a grid, which cannot be numbered anew"):
        fp.generate(tiny_model(which), fp.build_pruner("fastv", budget="50%", positions="renumbered"), inputs)


@pytest.mark.parametrize("which", MAIN)
def test_pictures_that_the_prompt_does_not_show_are_refused(which):
    inputs, more = (
        family_prompts(which, (5, "a", 4), (2, "b", 3)),
        family_prompts(which, (2, "b", 3), (3, "a", 2, "b", 3)),
    )
    about = {name: value for name, value in more.items() if name not in ("input_ids", "attention_mask")}
    about |= {name: value for name, value in inputs.items() if name == "mm_token_type_ids"}
    with pytest.raises(ValueError, match=r"pixel_values|input_ids|inputs"):
        fp.generate(tiny_model(which), pruner_of("fastv"), inputs | about, max_new_tokens=1)


def test_all_families_have_six_layers_of_grouped_heads():
    """What the cases above rest on: three stages fit, and query heads share keys in groups of three."""
    for which in FAMILIES:
        text = tiny_model(which).config.get_text_config()
        assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (LAYERS, 9, 3)
