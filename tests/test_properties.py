"""Whatever the sizes, budgets and values: exactly the promised number of different tokens, ascending."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import finepruner_lmms as fp
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners import DecoderContext, VisionPruner, build_pruner, method_class
from finepruner_lmms.pruners.attention_guided import AttentionGuided
from finepruner_lmms.pruners.registry import takes_budget
from finepruner_lmms.testing import ON_SMALL_MODELS
from finepruner_lmms.testing.samples import RandomFirstLayer

AVERAGING = ("pool", "downsample")  # they keep no token of the image as it is
BEFORE = [name for name in fp.METHODS if issubclass(method_class(name), VisionPruner) and takes_budget(name)]
CHOOSING = [name for name in BEFORE if name not in AVERAGING]
INSIDE = [name for name in fp.METHODS if method_class(name).side == "decoder"]
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def images(draw):
    """Encoded images with duplicates, constant rows and tokens of length zero among them."""
    batch, visual = draw(st.integers(1, 3)), draw(st.integers(2, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    kind = draw(st.sampled_from(["plain", "duplicates", "constant", "zero norm", "few values", "huge", "tiny"]))
    features = torch.randn(batch, visual, 6, generator=generator)
    attention = torch.rand(batch, 2, visual, generator=generator) / visual
    if kind == "duplicates":
        half = visual // 2
        features[:, half : 2 * half] = features[:, :half].clone()
        attention[..., half : 2 * half] = attention[..., :half].clone()
    elif kind == "constant":
        features[0], attention[0] = 0.5, 1 / visual
    elif kind == "zero norm":
        features[:, ::3] = 0
    elif kind == "few values":
        features, attention = features.sign(), (attention * visual).round() / visual
    elif kind in ("huge", "tiny"):
        features = features * (1e18 if kind == "huge" else 1e-18)
    return fp.VisionOutputs(
        features,
        features.repeat(1, 1, 2),
        cls_attention=attention,
        image_embeds=features,
        text_embeds=[torch.randn(2, 12, generator=generator) for _ in range(batch)],
        keys=features,
        cls_projected=features.repeat(1, 1, 2)[:, :1],
        projector=lambda tokens: tokens.repeat(1, 1, 2),
        received_attention=attention,
        early_received=attention.flip(-1),
        grid=(1, 1, visual),
        first_layer=RandomFirstLayer.draw(12, generator),
    )


@pytest.mark.parametrize("name", CHOOSING)
@FEW
@given(vision=images(), share=st.fractions(Fraction(1, 60), 1), data=st.data())
def test_exactly_the_promised_number(name, vision, share, data):
    visual = vision.num_visual_tokens
    budget = max(1, int(share * visual))
    parameters = {}
    if name == "vispruner":
        parameters["important_ratio"] = data.draw(st.floats(0, 1))
    if name == "mmtok":
        parameters["words"] = "all"
    if name in ("cdpruner", "eadp"):
        parameters["relevance"] = data.draw(st.sampled_from(["embedding", "none"]))
    pruner = build_pruner(name, budget=budget, **parameters)
    keep, reduced = pruner.select_visual(vision), pruner.reduce(vision)
    assert keep.shape == (len(vision.features), visual) and keep.dtype == torch.bool
    assert reduced.tokens.shape[1] == budget and bool(reduced.tokens.isfinite().all())
    made = {"visionzip": lambda: 1 + pruner.contextual(visual), "prunesid": lambda: 1}  # the CLS token, and merged ones
    expected = budget - made.get(name, lambda: 0)()
    assert keep.sum(1).tolist() == [expected] * len(keep)
    for row in range(len(keep)):
        part = {key: value[row : row + 1] for key, value in vision.tensors().items() if key != "text_embeds"}
        single = vision.replace(**part, text_embeds=vision.text_embeds[row : row + 1])
        assert torch.equal(pruner.select_visual(single)[0], keep[row])


@pytest.mark.parametrize("name", INSIDE)
@FEW
@given(
    batch=st.integers(1, 3),
    visual=st.integers(2, 50),
    share=st.fractions(0, 1),
    seed=st.integers(0, 10**6),
    rounded=st.booleans(),
    data=st.data(),
)
def test_exactly_the_promised_number_inside(name, batch, visual, share, seed, rounded, data):
    generator = torch.Generator().manual_seed(seed)
    words = data.draw(st.integers(0, 4))

    def attention(*shape):
        rows = torch.randn(*shape, visual + 3, generator=generator).mul(3).softmax(-1)[..., :visual]
        return (rows * 50).round() / 50 if rounded else rows

    shown = torch.ones(batch, visual, dtype=torch.bool)
    if batch > 1:
        shown[0] = False  # a row without an image
    combination = {}
    if issubclass(method_class(name), AttentionGuided):
        combination["rows"] = data.draw(st.sampled_from(["raw", "renormalised"]))
        combination["aggregate"] = data.draw(st.sampled_from(["mean", "max", "quota"]))
    pruner = build_pruner(name, **combination)
    context = DecoderContext(
        2,
        attention(batch, 8) * shown[:, None],
        shown,
        attention_in=lambda _: attention(batch, 8) * shown[:, None],
        next_attention=attention(batch, 8),
        text_attention=attention(batch, 8, words),
        text_present=torch.rand(batch, words, generator=generator) > 0.3,
        prefix_lengths=torch.full((batch,), 3),
        hidden=torch.randn(batch, visual, 4, generator=generator).round(),
        visual_embeds=torch.randn(batch, visual, 4, generator=generator),
        text_embeds=torch.randn(batch, words, 4, generator=generator),
        values=torch.randn(batch, 8, visual, 4, generator=generator).round(),
        text_output=torch.randn(batch, 8, max(words, 1), 4, generator=generator).round(),
    )
    retained = min(int(share * visual), visual - 1)
    chosen = pruner.select(context, retained)
    expected = [retained if any(row) else 0 for row in shown.tolist()]
    assert chosen.keep.sum(1).tolist() == expected
    assert chosen.merged is None or bool(chosen.merged[-1].isfinite().all())


@FEW
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 10**6), st.integers(1, 4))
def test_top_mask_is_a_stable_sort(size, count, seed, levels):
    scores = torch.randint(0, levels, (2, size), generator=torch.Generator().manual_seed(seed)).float()
    mask = top_mask(scores, min(count, size))
    for row in range(2):
        expected = sorted(range(size), key=lambda i: (-float(scores[row, i]), i))[:count]
        assert mask[row].nonzero().squeeze(1).tolist() == sorted(expected)


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(name, bad):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 9, 4, generator=generator)
    vision = fp.VisionOutputs(features, features, cls_attention=torch.rand(1, 2, 9), text_embeds=[torch.ones(1, 4)])
    for what in ("features", "projected", "cls_attention"):
        broken = getattr(vision, what).clone()
        broken[0, -1, 0] = bad
        parameters = ON_SMALL_MODELS.get(name, {})
        with pytest.raises(ValueError, match=f"{what}: holds NaN or infinite"):
            build_pruner(name, budget=4, **parameters).select_visual(vision.replace(**{what: broken}))
