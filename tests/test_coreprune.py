"""CoRePrune's second stage: what deleting a set of tokens does to attention outputs, and the order of rescue."""

from __future__ import annotations

import pytest
import torch

import finepruner_lmms as fp
from finepruner_lmms.pruners.coreprune import Damage, receivers
from finepruner_lmms.testing import decoder_context


@pytest.fixture
def damage() -> Damage:
    context = decoder_context()
    rows = receivers(context.text_present, 5)
    return Damage(context.text_attention, context.values, context.text_output, rows)


def everything() -> torch.Tensor:
    return torch.ones(3, 24, dtype=torch.bool)


def test_the_schedule_is_the_published_one_behind_128_tokens():
    """128 tokens through layers 0 to 7 and 64 from there on are 80 on average."""
    pruner = fp.build_pruner("divprune+coreprune", budget=80, first=128)
    assert pruner.schedule(32, 576) == [128] * 8 + [64] * 24
    honest = fp.build_pruner("divprune+coreprune", budget=64, first=128).schedule(32, 576)
    assert honest == [128] * 8 + [43] * 24
    with pytest.raises(ValueError, match="reachable: 144 to 576"):
        fp.build_pruner("coreprune", budget=64).schedule(32, 576)
    assert fp.build_pruner("coreprune", budget=200, layer=2).schedule(32, 576)[:3] == [576, 576, 175]


def test_one_token_alone_moves_the_output_by_its_share_of_the_rest(damage):
    """For a single token the formula is a / (1 - a) · ‖V - Y‖."""
    only = torch.zeros(3, 24, dtype=torch.bool)
    only[:, 7] = True
    a, away = damage.attention[..., 7], damage.values[:, :, None, 7] - damage.outputs
    alone = a / (1 - a) * away.norm(dim=-1)
    torch.testing.assert_close(damage.of(only), (alone * damage.shares[..., 0]).sum((1, 2)), rtol=1e-10, atol=0)


def test_nothing_deleted_does_nothing(damage):
    assert damage.of(~everything()).tolist() == [0, 0, 0]


def test_what_one_token_undoes_is_what_is_left_without_it(damage):
    deleted = everything()
    deleted[:, ::3] = False
    left = damage.with_one_back(deleted)
    for token in deleted[0].nonzero().squeeze(1).tolist():
        fewer = deleted.clone()
        fewer[:, token] = False
        torch.testing.assert_close(left[:, token], damage.of(fewer), rtol=1e-9, atol=1e-12)


def test_the_last_of_a_set_undoes_all_of_it(damage):
    """A difference of large sums, where float32 would leave a thousandth of what was there."""
    only = torch.zeros(3, 24, dtype=torch.bool)
    only[:, 4] = True
    assert bool((damage.with_one_back(only)[:, 4] <= 1e-7 * damage.of(only)).all())


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
