"""Rows that show several images: each image is pruned as one, and a batch changes nothing."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from conftest import IMAGE, PAD, VISUAL, rounding, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.engine.versions import copies_images

OPTIONS = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
SHOWN = (2, 1, 0, 2, 1)
METHODS = {
    "fastv": {},
    "pdrop": {"variant": "official"},
    "sparsevlm": {},
    "finepruner": {"head_strategy": "consensus"},
    "random": {},
    "fastervlm": {},
    "visionzip": {},
    "uniform": {},
    "cdpruner": {"relevance": "embedding"},
    "divprune+sparsevlm": {"first": "80%"},
    "visionzip+fastv": {"first": "70%"},
}


@functools.cache
def rows() -> list[torch.Tensor]:
    """Two images with text between, one, none, two side by side, and one that ends its prompt."""
    generator = torch.Generator().manual_seed(3)

    def row(*parts: int | str) -> torch.Tensor:
        words = [torch.randint(2, 98, (part,), generator=generator) for part in parts if isinstance(part, int)]
        return torch.cat([torch.full((VISUAL,), IMAGE) if part == "image" else words.pop(0) for part in parts])

    return [row(4, "image", 3, "image", 5), row(3, "image", 6), row(7), row(2, "image", "image", 2), row(3, "image")]


@functools.cache
def pixels() -> torch.Tensor:
    return torch.randn(sum(SHOWN), 3, 16, 16, generator=torch.Generator().manual_seed(4))


def batch(*which: int) -> dict[str, torch.Tensor]:
    width = max(len(rows()[row]) for row in which)
    ids = torch.stack([torch.nn.functional.pad(rows()[row], (width - len(rows()[row]), 0), value=PAD) for row in which])
    first = [sum(SHOWN[:row]) for row in which]
    images = [image for row, start in zip(which, first, strict=True) for image in range(start, start + SHOWN[row])]
    given = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    return given | ({"pixel_values": pixels()[images]} if images else {})


def encoded(*which: int) -> dict[str, Any]:
    """`batch` of images that went through the tower once, all together."""
    inputs = batch(*which)
    if inputs.pop("pixel_values", None) is None:
        return inputs
    first = [sum(SHOWN[:row]) for row in which]
    images = [image for row, start in zip(which, first, strict=True) for image in range(start, start + SHOWN[row])]
    return inputs | {"vision": fp.encode_images(tiny_llava(), pixels()).of_rows(images)}


def stacked(found: fp.Generation) -> torch.Tensor:
    return torch.stack(found.logits, dim=1)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_gets_in_a_batch_what_it_gets_alone(name):
    model, pruner = tiny_llava(), fp.build_pruner(name, budget="50%", **METHODS[name])
    # a tower rounds by its batch, and cdpruner's late picks may hang on the last bit: encoded once for both
    inputs = encoded if name == "cdpruner" else batch
    together = fp.generate(model, pruner, inputs(0, 1, 2, 3, 4), **OPTIONS)
    for row in range(5):
        alone = fp.generate(model, pruner, inputs(row), **OPTIONS)
        torch.testing.assert_close(stacked(alone)[0], stacked(together)[row], **rounding())
        if SHOWN[row]:
            for layer, kept in together.trace.kept.items():
                assert alone.trace.kept[layer][0].tolist() == kept[row].tolist()
        assert alone.trace.tokens_entering[0] == together.trace.tokens_entering[row]


@pytest.mark.parametrize("name", ["fastv", "sparsevlm", "random"])
def test_budgets_are_per_image(name):
    found = fp.generate(tiny_llava(), fp.build_pruner(name, budget=8), batch(0, 1, 2, 3), **OPTIONS).trace
    one, two = found.tokens_entering[1], found.tokens_entering[0]
    assert one == fp.build_pruner(name, budget=8).schedule(6, VISUAL)
    assert two == found.tokens_entering[3] == [2 * count for count in one] and found.tokens_entering[2] == [0] * 6
    for layer in (layer for layer in found.kept if name != "sparsevlm"):
        assert sum(place < VISUAL for place in found.kept[layer][0].tolist()) == one[layer]


@pytest.mark.parametrize("name", ["tops", "visualheads"])
def test_what_has_nothing_to_drop_before_the_model_drops_inside(name):
    pruner = fp.build_pruner(name, budget=12)
    assert pruner.parts(VISUAL)[0] is None
    two, one = fp.generate(tiny_llava(), pruner, batch(0, 1), max_new_tokens=1).trace.tokens_entering
    assert one == pruner.schedule(6, VISUAL) and two == [2 * count for count in one] and len(set(one)) > 1


@pytest.mark.parametrize("name", ["vanilla", "fastv", "divprune", "random"])
def test_a_budget_of_all_tokens_is_the_untouched_model(name):
    model, inputs = tiny_llava(), batch(0, 1, 2, 3)
    plain = model.generate(**inputs, return_dict_in_generate=True, **OPTIONS)
    found = fp.generate(model, fp.build_pruner(name, budget=None), inputs, **OPTIONS)
    assert torch.equal(torch.stack(plain.logits, dim=1), stacked(found))


def test_heads_are_told_by_image_where_a_row_shows_several():
    pruner = fp.build_pruner("finepruner", budget=8, heads=3)
    several = fp.generate(tiny_llava(), pruner, batch(0, 1, 2), **OPTIONS).trace
    assert several.heads.shape == (3, 3) and (several.heads >= 0).all()  # two images and one
    again = fp.generate(tiny_llava(), pruner, batch(1), **OPTIONS).trace
    assert again.heads[0].tolist() == several.heads[2].tolist()


@pytest.mark.parametrize("name", ["fastv", "divprune"])
def test_beams_are_copies_of_a_sample(name):
    pruner = fp.build_pruner(name, budget=8)
    if not copies_images():
        with pytest.raises(ValueError, match=r"num_beams: transformers 5.1\d.\d gives beams .* take transformers 5.20"):
            fp.generate(tiny_llava(), pruner, batch(0, 1, 2), max_new_tokens=4, num_beams=3)
        return
    found = fp.generate(tiny_llava(), pruner, batch(0, 1, 2), max_new_tokens=4, num_beams=3)
    assert len(found.sequences) == 3 and len(found.trace.has_image) == 3
    greedy = fp.generate(tiny_llava(), pruner, batch(0, 1, 2), max_new_tokens=1)
    assert [row.tolist() for row in next(iter(found.trace.kept.values()))] == [
        row.tolist() for row in next(iter(greedy.trace.kept.values()))
    ]


def test_placeholders_that_are_no_whole_images_are_refused():
    inputs = batch(0)
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, 5] = 7
    with pytest.raises(ValueError, match=r"input_ids: holds \d+ image placeholders in a row"):
        fp.generate(tiny_llava(), fp.build_pruner("fastv", budget=8), inputs, **OPTIONS)


def test_images_that_are_missing_are_named():
    inputs = batch(0)
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match=r"inputs: the prompt shows more images than the 1 that are given"):
        fp.generate(tiny_llava(), fp.build_pruner("divprune", budget=8), inputs, **OPTIONS)
