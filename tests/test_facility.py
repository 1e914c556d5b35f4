"""Greedy coverage: exact picks, weights, masks and ties, and the methods that are made of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from references import covering, gains

import finepruner_lmms as fp
from finepruner_lmms.engine.keywords import keywords
from finepruner_lmms.ops.facility import cosines, cover, dense_cosines
from finepruner_lmms.ops.selection import index_to_mask
from finepruner_lmms.pruners.eadp import by_sharpest_words, smooth
from finepruner_lmms.pruners.mmtok import shares
from finepruner_lmms.testing import choose_without_host_copy, no_host_sync, vision_outputs


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(similarity, count, targets=None, candidates=None, present=None) -> list[int]:
    """Picks in order, for one row, as the definition says: who adds most is looked for among all who are left."""
    values = similarity.double().numpy()
    weights = torch.ones(similarity.shape[1]) if targets is None else targets
    factors = torch.ones(len(similarity)) if candidates is None else candidates
    left = [i for i in range(len(similarity)) if present is None or present[i]]
    picked: list[int] = []
    while len(picked) < count:
        covered = [max([0.0, *(values[i][t] for i in picked)]) for t in range(values.shape[1])]
        adds = {
            i: float(factors[i])
            * sum(float(w) * max(0.0, s - u) for w, s, u in zip(weights, values[i], covered, strict=True))
            for i in left
            if i not in picked
        }
        picked.append(max(adds, key=lambda i: (adds[i], -i)))
    return picked


@pytest.mark.parametrize("weighted", list(itertools.product((False, True), repeat=3)))
def test_picks_are_those_of_the_definition_in_their_order(weighted):
    similarity = drawn(3, 14, 9)
    targets = drawn(3, 9, seed=1).abs() if weighted[0] else None
    candidates = drawn(3, 14, seed=2).abs() if weighted[1] else None
    present = drawn(3, 14, seed=3) > -0.8 if weighted[2] else None
    picks = cover(similarity, 7, targets=targets, candidates=candidates, present=present)
    for row in range(3):
        own = [None if values is None else values[row] for values in (targets, candidates, present)]
        assert picks[row].tolist() == one_by_one(similarity[row], 7, *own)


def test_a_target_of_no_weight_is_none():
    similarity, weights = drawn(2, 12, 8), torch.ones(2, 8)
    weights[:, 5:] = 0
    assert torch.equal(cover(similarity, 6, targets=weights), cover(similarity[..., :5], 6))


def test_smaller_budgets_are_the_beginning_of_larger_ones():
    similarity = cosines(drawn(2, 40, 6))
    assert torch.equal(cover(similarity, 30)[:, :10], cover(similarity, 10))


def test_what_picks_add_never_grows_and_is_nearly_the_best_that_can_be():
    similarity = cosines(drawn(1, 11, 4))[0]

    def covered(chosen) -> float:
        return float(similarity[list(chosen)].amax(0).clamp_min(0).sum())

    picks = cover(similarity[None], 11)[0].tolist()
    added = [covered(picks[: n + 1]) - (covered(picks[:n]) if n else 0) for n in range(11)]
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(added)) and added[0] > added[3] > 0
    best = max(covered(chosen) for chosen in itertools.combinations(range(11), 4))
    assert (1 - 1 / 2.718281828) * best <= covered(picks[:4]) <= best + 1e-6


@pytest.mark.parametrize("size, place", [(33, 31), (70, 64), (576, 400)])
def test_a_copy_is_worth_nothing_and_ties_go_to_the_lower_index(size, place):
    tokens = drawn(1, size, 24)
    tokens[:, place] = tokens[:, 2]  # in another block of the product, where sums may be rounded in another way
    picks = cover(cosines(tokens), size)[0].tolist()
    assert sorted(picks) == list(range(size)) and picks.index(2) < picks.index(place)
    worthless = cover(torch.zeros(1, 5, 4), 5)
    assert worthless.tolist() == [[0, 1, 2, 3, 4]]


def test_in_half_precision_what_is_similar_is_compared_in_float32():
    values = drawn(2, 20, 16).bfloat16()
    assert torch.equal(cover(values, 9), cover(values.float(), 9))
    assert torch.equal(cosines(values), cosines(values.float()))


def test_a_first_pick_counts_also_where_it_is_unlike_the_rest():
    similarity = torch.tensor([[[1.0, -0.9, -0.9], [-0.9, 1.0, -0.5], [-0.9, -0.5, 1.0]]])
    worth = []

    def look(gained, covered, left):
        worth.append((gained, covered, left))
        return gained

    assert cover(similarity, 2, first=torch.tensor([[0]]), score=look).tolist() == [[0, 1]]
    gained, covered, left = worth[0]
    torch.testing.assert_close(covered, similarity[:, 0].double())
    torch.testing.assert_close(gained, torch.tensor([[0.0, 2.3, 2.3]], dtype=torch.float64))
    assert left.tolist() == [[False, True, True]]


def test_coverage_neither_waits_nor_copies():
    with no_host_sync():
        cover(drawn(2, 16, 9), 5, targets=torch.ones(2, 9), present=torch.ones(2, 16, dtype=torch.bool))
    for name in ("scope", "mmtok", "eadp"):
        choose_without_host_copy(fp.build_pruner(name, budget=5))


# -- the methods ------------------------------------------------------------------------------------------------------


def kept(name, vision, budget=12, **parameters):
    return fp.build_pruner(name, budget=budget, **parameters).select_visual(vision)


def test_scope_without_saliency_is_coverage_and_with_much_of_it_fastervlm():
    vision = vision_outputs()
    plain = index_to_mask(cover(cosines(vision.features), 12), 64)
    assert torch.equal(kept("scope", vision, alpha=0), plain)
    assert not torch.equal(kept("scope", vision), plain)
    assert torch.equal(kept("scope", vision, alpha=300), kept("fastervlm", vision))


def test_mmtok_picks_first_what_one_word_means():
    vision = vision_outputs(1)
    word = vision.projected[:, 41] * 2.5
    first = kept("mmtok", vision.replace(text_embeds=[word[0][None]]), 1, words="all")
    assert first.nonzero()[:, 1].tolist() == [41]
    without = kept("mmtok", vision.replace(text_embeds=[word[:0]]), words="all")
    seen = shares(vision.features, list(vision.features), 0.2).float()
    assert torch.equal(without, index_to_mask(cover(seen, 12), 64))


def test_each_target_shares_out_its_weight():
    vision = vision_outputs()
    found = shares(vision.projected, vision.text_embeds, 0.02)
    assert found.shape == (3, 64, 3) and found.dtype == torch.float64
    torch.testing.assert_close(found.sum(1)[0], torch.tensor([1.0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "question, words",
    [
        ("What is on the table?\nAnswer the question using a single word or phrase.", "on table"),
        ("<image>\nWhere are the two red cups", "two red cups"),
        ("What is it?", "What is it?"),
    ],
)
def test_keywords_are_what_can_be_seen(question, words):
    assert keywords(question) == words


def test_mmtok_reads_the_keywords_with_the_tokenizer_of_a_loaded_model():
    model, processor = fp.load_model("demo")
    image = torch.randint(0, 255, (80, 80, 3), generator=torch.Generator().manual_seed(0)).numpy().astype("uint8")
    from PIL import Image

    picture, pruner = Image.fromarray(image), fp.build_pruner("mmtok", budget=32)
    asked = [
        fp.answer(model, processor, picture, question, pruner, max_new_tokens=1).trace.kept[0][0].tolist()
        for question in ("What color is the circle?", "What color is a circle?", "What color is the star?")
    ]
    assert asked[0] == asked[1] != asked[2] and len(asked[0]) == 32


def test_mmtok_says_what_to_do_without_a_tokenizer():
    from finepruner_lmms.testing import prompts, tiny_llava

    pruner, inputs = fp.build_pruner("mmtok", budget=4), prompts((5, 7))
    with pytest.raises(ValueError, match=r"words: 'keywords' needs the model's tokenizer.*words=all"):
        fp.generate(tiny_llava(), pruner, inputs, questions=["w1"], max_new_tokens=1)
    with pytest.raises(ValueError, match="questions: 'mmtok' reads the question"):
        fp.generate(tiny_llava(), pruner, inputs, max_new_tokens=1)


def test_words_that_mean_one_patch_count_and_those_that_mean_all_do_not():
    similarity = torch.full((2, 6, 7), 0.5, dtype=torch.float64)
    similarity[:, :, 2] = torch.tensor([0.1, 0.9, 0.1, 0.1, 0.1, 0.1])
    there = torch.ones(2, 7, dtype=torch.bool)
    there[1] = False
    found = by_sharpest_words(similarity, there)
    torch.testing.assert_close(found[0], similarity[0, :, 2])
    assert found[1].tolist() == [0] * 6  # a row without words
    there[0, 2] = False  # padding
    torch.testing.assert_close(by_sharpest_words(similarity, there)[0], torch.full((6,), 0.5, dtype=torch.float64))


def test_eadp_smooths_each_frame_and_each_tile_by_itself():
    vision, values = vision_outputs(1), drawn(1, 64).double()
    bell = torch.tensor([-1.0, 0, 1]).double().square().div(-2).exp()
    padded = torch.nn.functional.pad(values.view(1, 1, 8, 8), (1, 1, 1, 1), mode="reflect")
    expected = torch.nn.functional.conv2d(padded, (bell[:, None] * bell / (bell[:, None] * bell).sum())[None, None])
    torch.testing.assert_close(smooth(values, vision), expected.view(1, 64))
    assert torch.equal(smooth(values, vision.replace(tiled=True)), values)
    two = smooth(values, vision.replace(grid=(2, 4, 8)))
    changed = values.clone()
    changed[:, 40:] = 0
    assert torch.equal(smooth(changed, vision.replace(grid=(2, 4, 8)))[:, :32], two[:, :32])
    assert torch.equal(smooth(values, vision.replace(grid=(1, 64, 1))), values)
    tiles = smooth(values, vision.replace(tiled=True, sheets=((1, 4, 8), (1, 8, 4))))
    assert torch.equal(tiles[:, :32], two[:, :32])
    assert torch.equal(tiles[:, 32:], smooth(values[:, 32:], vision.replace(grid=(1, 8, 4))))


def test_eadp_by_clip_reads_words_and_the_whole():
    vision = vision_outputs(2)
    texts = [drawn(length, 20, seed=length) for length in (7, 12)]
    seen = vision.replace(text_embeds=texts)
    found = kept("eadp", seen)
    for row in (0, 1):
        only = seen.of_rows([row])
        assert torch.equal(kept("eadp", only)[0], found[row])
    whole_alone = seen.replace(text_embeds=[text[-1:] for text in texts])
    assert torch.equal(kept("eadp", seen, alpha=1), kept("eadp", whole_alone, alpha=1))
    assert not torch.equal(kept("eadp", whole_alone), found)
    cosine, there = dense_cosines(vision.image_embeds, texts)
    assert cosine.shape == (2, 64, 12) and there.sum(1).tolist() == [7, 12]


def test_eadp_without_relevance_is_coverage():
    vision = vision_outputs()
    plain = index_to_mask(cover((1 + cosines(vision.projected)) / 2, 12), 64)
    assert torch.equal(kept("eadp", vision, relevance="none"), plain)
    assert not torch.equal(kept("eadp", vision, relevance="embedding"), plain)


def test_the_plain_reference_agrees_with_the_definition():
    similarity = drawn(9, 9).double()
    expected = sorted(one_by_one(similarity, 5))
    assert covering(lambda picked: gains(similarity.numpy(), picked), 5) == expected


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("scope", {"alpha": -1}, "alpha: got -1; expected a number of at least 0"),
        ("scope", {"alpha": float("inf")}, "alpha: got inf"),
        ("scope", {"importance": "attention"}, "importance: got 'attention'"),
        ("mmtok", {"words": "some"}, "words: got 'some'; known: keywords, all"),
        ("mmtok", {"text_temperature": 0}, "text_temperature: got 0; expected a number of at least 0.001"),
        ("eadp", {"alpha": 2}, "alpha: got 2; expected a number from 0 to 1"),
        ("eadp", {"beta": True}, "beta: got True"),
        ("eadp", {"relevance": "none", "clip": "x"}, "clip: got 'x'"),
    ],
)
def test_wrong_parameters_are_named(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        fp.build_pruner(name, budget=8, **parameters)
