"""Positions of tokens in a batch."""

from __future__ import annotations

import pytest
import torch

from finepruner_lmms.engine.prompt_layout import drop_visual, find_padding, left_compact, read_layout, shorten_prompt

V = 9  # the placeholder
IDS = torch.tensor([[1, 2, V, V, V, 3, 4], [0, 0, 5, V, V, V, 6], [7, 8, 7, 8, 7, 8, 7]])
MASK = (IDS != 0).long()


def test_read():
    layout = read_layout(IDS, MASK, V, 3)
    assert layout.lengths == (7, 5, 7) and layout.has_image == (True, True, False) and layout.padded
    assert layout.columns[:2].tolist() == [[2, 3, 4], [3, 4, 5]]
    assert layout.present.tolist() == [[True] * 3, [True] * 3, [False] * 3]


def test_left_compact_keeps_order_and_pads_left():
    keep = torch.tensor([[True, False, True, True], [False, False, True, False]])
    index, valid = left_compact(keep, 3)
    assert index[0].tolist() == [0, 2, 3] and valid.tolist() == [[True] * 3, [False, False, True]]
    assert index[1, -1] == 2


def test_drop_twice():
    layout = read_layout(IDS, MASK, V, 3)
    index, second = drop_visual(layout, torch.tensor([[True, False, True], [False, True, True], [True] * 3]), 2)
    assert IDS.gather(1, index)[second.valid].tolist() == [1, 2, V, V, 3, 4, 5, V, V, 6, 7, 8, 7, 8, 7, 8, 7]
    assert second.lengths == (6, 4, 7) and second.visual_counts == (2, 2, 0)
    assert second.columns[0, [0, 2]].tolist() == [3, 4] and second.columns[1, [1, 2]].tolist() == [4, 5]
    index, third = drop_visual(second, torch.tensor([[True] * 3, [False, False, True], [True] * 3]), 2)
    assert third.valid.sum(1).tolist() == [6, 3, 7] and third.present.tolist()[1] == [False, False, True]


def test_shorten():
    layout = read_layout(IDS, MASK, V, 3)
    ids, mask = shorten_prompt(IDS[:2], read_layout(IDS[:2], MASK[:2], V, 3), 1, padding_id=0)
    assert ids.tolist() == [[1, 2, V, 3, 4], [0, 0, 5, V, 6]] and mask.tolist() == [[1] * 5, [0, 0, 1, 1, 1]]
    assert layout.width == 7


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        ([[1, V, V, V, 0]], [[1, 1, 1, 1, 0]], "row 0 is padded on the right"),
        ([[1, 0, V, V, V]], [[1, 0, 1, 1, 1]], "row 0 is padded on the right or inside"),
        ([[1, V, V, 2, 3]], [[1] * 5], "row 0 holds 2 image placeholders, but an image of this model has 3"),
        ([[V, V, V, 1, V, V, V]], [[1] * 7], "row 0 holds 6"),
        ([[1, V, V, V]], [[1, 1]], "attention_mask: shape"),
    ],
)
def test_refuses(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        read_layout(torch.tensor(ids), torch.tensor(mask), V, 3)


def test_the_last_column_is_required_where_the_prompt_ends_with_the_image():
    ids = torch.tensor([[1, 2, V, V, V], [0, 0, V, V, V], [1, V, V, V, 3]])
    layout = read_layout(ids, (ids != 0).long(), V, 3)
    assert layout.ends_with_image == (True, True, False)
    assert layout.required().tolist() == [[False, False, True]] * 2 + [[False] * 3]
    assert read_layout(IDS, MASK, V, 3).required() is None
    keep = layout.required()  # nothing is left but what has to stay
    index, left = drop_visual(layout, keep, 0)
    assert ids.gather(1, index)[left.valid].tolist() == [1, 2, V, V, 1, 3]
    assert left.lengths == (3, 1, 2) and left.visual_counts == (1, 1, 0)


def test_merged_tokens_stand_before_the_token_that_has_to_stay_last():
    ids = torch.tensor([[1, V, V, V], [V, V, V, 2]])
    layout = read_layout(ids, None, V, 3)
    index, left = drop_visual(layout, torch.tensor([[True, False, True], [True, False, True]]), 2, merged=1)
    assert index.tolist() == [[0, 1, 4, 3], [0, 2, 4, 3]]  # 4 is the merged one
    assert left.columns[0, [0, 2, 3]].tolist() == [1, 3, 2] and left.columns[1, [0, 2, 3]].tolist() == [0, 1, 2]
    assert left.required().tolist() == [[False, False, True, False], [False] * 4]


def test_padding_without_a_mask():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 3]])
    assert find_padding(ids, 0).tolist() == [[0, 0, 1, 1], [1] * 4]
    assert find_padding(ids[1:], None).tolist() == [[1] * 4]
    assert find_padding(ids[1:], 0, (0,)).tolist() == [[1] * 4]
    with pytest.raises(ValueError, match=r"attention_mask: missing.* no pad_token_id; pass the tokenizer's"):
        find_padding(ids, None)
    with pytest.raises(ValueError, match=r"attention_mask: missing.*holds 0, which pads and ends answers"):
        find_padding(ids, 0, (0, 2))
