"""CoRePrune's second stage: what deleting a set of tokens does to attention outputs, and the order of rescue."""

from __future__ import annotations

import pytest
import torch

import finepruner_lmms as fp
from finepruner_lmms.ops import row_slices
from finepruner_lmms.pruners.coreprune import Damage, receivers
from finepruner_lmms.testing import decoder_context
from finepruner_lmms.testing.samples import one_row


@pytest.fixture
def damage() -> Damage:
    context = decoder_context()
    rows = receivers(context.text_present, 5)
    return Damage(context.text_attention, context.values, context.text_output, rows)


def without(damage: Damage, deleted: list[int]) -> torch.Tensor:
    """`[B]`, by the definition: Σ a·(V - Y) over the deleted tokens, divided by what is left of the row."""
    a = damage.attention[..., deleted]
    moved = a @ damage.values[:, :, deleted] - a.sum(-1, keepdim=True) * damage.outputs
    distance = moved.norm(dim=-1, keepdim=True) / (1 - a.sum(-1, keepdim=True))
    return (distance * damage.shares).sum((1, 2, 3))


def bring_back(damage: Damage, *tokens: int) -> None:
    back = torch.zeros(3, 24, dtype=torch.bool)
    back[:, list(tokens)] = True
    damage.bring_back(back, len(tokens))


def test_the_schedule_is_the_published_one_behind_128_tokens():
    """128 tokens through layers 0 to 7 and 64 from there on are 80 on average."""
    pruner = fp.build_pruner("divprune+coreprune", budget=80, first=128)
    assert pruner.schedule(32, 576) == [128] * 8 + [64] * 24
    honest = fp.build_pruner("divprune+coreprune", budget=64, first=128).schedule(32, 576)
    assert honest == [128] * 8 + [43] * 24
    with pytest.raises(ValueError, match="reachable: 144 to 576"):
        fp.build_pruner("coreprune", budget=64).schedule(32, 576)
    assert fp.build_pruner("coreprune", budget=200, layer=2).schedule(32, 576)[:3] == [576, 576, 175]


def test_what_one_token_undoes_is_what_is_left_without_it(damage):
    deleted = list(range(24))
    for back in ([], [0, 3, 6, 9], [1], [22, 5]):
        bring_back(damage, *back)
        deleted = [token for token in deleted if token not in back]
        torch.testing.assert_close(damage.of_deleted(), without(damage, deleted), rtol=1e-9, atol=0)
        left = damage.with_one_back()
        for token in deleted:
            fewer = [other for other in deleted if other != token]
            torch.testing.assert_close(left[:, token], without(damage, fewer), rtol=1e-9, atol=1e-12)


def test_the_last_of_a_set_undoes_all_of_it(damage):
    """A difference of large sums, where float32 would leave a thousandth of what was there."""
    everything = damage.of_deleted()
    bring_back(damage, *(token for token in range(24) if token != 4))
    torch.testing.assert_close(damage.of_deleted(), without(damage, [4]), rtol=1e-9, atol=0)
    assert bool((damage.with_one_back()[:, 4] <= 1e-7 * everything).all())
    bring_back(damage, 4)
    assert bool((damage.of_deleted() <= 1e-12 * everything).all())


def test_rows_that_bring_back_fewer_are_not_touched_by_the_rest(damage):
    back = torch.zeros(3, 24, dtype=torch.bool)
    back[0, [2, 5]], back[1, 7] = True, True
    damage.bring_back(back, 2)
    for row in range(3):
        deleted = (~back[row]).nonzero().squeeze(1).tolist()
        torch.testing.assert_close(damage.of_deleted()[row], without(damage, deleted)[row], rtol=1e-9, atol=0)


def test_a_choice_does_not_depend_on_the_rows_beside_it(monkeypatch):
    """A batch may be taken in parts; the whole, rows one by one and each alone choose the same."""
    context, pruner = decoder_context(), fp.build_pruner("coreprune")
    together = pruner.select(context, 12)
    monkeypatch.setattr(row_slices, "_CPU", 1)
    apart = pruner.select(context, 12)
    assert torch.equal(apart.keep, together.keep)
    torch.testing.assert_close(apart.scores, together.scores)
    for row in range(3):
        assert torch.equal(pruner.select(one_row(context, row), 12).keep[0], together.keep[row])


@pytest.mark.parametrize("rescued", [1, 4, 30])
def test_as_many_are_rescued_at_a_time_as_asked(rescued):
    """All at once is a ranking by what each alone undoes of losing everything; in steps it is another choice."""
    context = decoder_context()
    chosen = fp.build_pruner("coreprune", rescued=rescued).select(context, 12)
    ranked = chosen.scores.argsort(dim=1, descending=True, stable=True)
    first = torch.zeros_like(chosen.keep).scatter(1, ranked[:, : min(rescued, 12)], True)
    assert bool(chosen.keep[first].all())
    assert chosen.keep.sum(1).tolist() == [12] * 3
    if rescued == 30:
        assert torch.equal(chosen.keep, first)
    else:
        assert not torch.equal(chosen.keep, fp.build_pruner("coreprune", rescued=30).select(context, 12).keep)


def test_without_text_the_last_token_receives():
    words = torch.tensor([[False, True, True], [False, False, False]])
    assert receivers(words, 3).tolist() == [[False, True, True], [False, False, True]]
    assert receivers(words[:, :0], 1).tolist() == [[True], [True]]


@pytest.mark.parametrize("parameters", [{"rescued": 0}, {"layer": 0}, {"layer": 1.5}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        fp.build_pruner("coreprune", budget=64, **parameters)
