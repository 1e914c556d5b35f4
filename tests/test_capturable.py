"""No way to choose tokens waits for the device or copies from the host: what a CUDA graph could not capture."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from conftest import VISUAL, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.heads import HEAD_STRATEGIES, consensus
from finepruner_lmms.heads.queries import known_queries
from finepruner_lmms.pruners import CORRECTORS, DecoderPruner, Selection, Stage, method_class
from finepruner_lmms.testing import HostSync, capture, choose_without_host_copy, no_host_sync, prefill_without_host_copy
from finepruner_lmms.testing.guards import _OneDevice
from finepruner_lmms.testing.ways import Way, every_way

WAYS = every_way()


def methods(way):
    """The names of its methods, without correctors."""
    return [name for name in way.name.split("+") if name not in CORRECTORS]


INSIDE = [way for way in WAYS if method_class(methods(way)[-1]).side == "decoder" or way.name.endswith("+random_tail")]


def built(way):
    """The method on the small model; a grid needs a budget of its own."""
    return way.build(9 if way.name.startswith(("pool", "downsample")) else 10, first=12)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.label)
def test_a_choice_neither_waits_nor_copies(way):
    choose_without_host_copy(built(way))


# a chain's inner method sees the same whatever stands before it
ONCE = [way for way in INSIDE if way.name.startswith("visionzip") or len(methods(way)) == 1]


@pytest.mark.parametrize("way", ONCE, ids=lambda way: way.label)
def test_a_prefill_with_its_drops_neither_waits_nor_copies(way):
    prefill_without_host_copy(built(way), (5, 7), 11, (2, 0))  # text behind the image, no image, nothing behind it


@pytest.mark.parametrize("name", sorted({way.name for way in ONCE}))
def test_a_prefill_of_equally_long_prompts_neither_waits_nor_copies(name):
    prefill_without_host_copy(built(Way(name, name, {})), (5, 7), (5, 7))


SIZES = {"visual": 16, "features": 8, "projected": 12, "heads": 4, "joint": 6, "width": 12, "words": 5, "layers": 6}


def again(choose):
    """A graph for a device without graphs: what is captured is called once more."""
    return SimpleNamespace(replay=choose)


@contextmanager
def nothing():
    yield


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.label)
def test_every_way_runs_as_it_is_captured_on_a_gpu(way, monkeypatch):
    monkeypatch.setattr(capture, "capture", again)
    monkeypatch.setattr(capture, "waiting_is_an_error", nothing)
    assert capture.capture_choice(built(way), 2, device="cpu", **SIZES)


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_a_graph_that_repeats_its_first_choice_is_noticed(name, monkeypatch):
    monkeypatch.setattr(capture, "capture", lambda choose: SimpleNamespace(replay=functools.partial(tuple, choose())))
    monkeypatch.setattr(capture, "waiting_is_an_error", nothing)
    assert not capture.capture_choice(fp.build_pruner(name, budget=10), 2, device="cpu", **SIZES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures on a GPU")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.label)
def test_every_way_can_be_captured(way):
    assert capture.capture_choice(built(way), 2, **SIZES)


def test_every_method_corrector_strategy_query_and_preset_is_among_the_ways():
    said = {value for way in WAYS for value in (*way.name.split("+"), *map(str, way.parameters.values()))}
    assert said >= {*fp.METHODS, *CORRECTORS, *HEAD_STRATEGIES, *consensus.PRESETS, *known_queries()} - {"vanilla"}
    assert len({way.label for way in WAYS}) == len(WAYS)


KEPT_FROM_BEFORE = torch.tensor([0.4, 0.3, 0.3])


def test_the_guard_notices_what_was_kept_on_the_host_from_before():
    values = torch.empty(3, device="meta")
    for copy in (
        lambda: KEPT_FROM_BEFORE.to(values.device),
        lambda: values.copy_(KEPT_FROM_BEFORE),
        lambda: values @ KEPT_FROM_BEFORE,
        lambda: values * KEPT_FROM_BEFORE[0],
        lambda: torch.cat([values, KEPT_FROM_BEFORE]),
    ):
        with pytest.raises(HostSync, match="on the host"), no_host_sync(), _OneDevice():
            copy()
    with no_host_sync(), _OneDevice():
        torch.where(values > 0.5, 2 * values, 1.0).masked_fill(values > 0, 3.0).clamp(0, 1)  # numbers are no copies


def test_the_guard_notices_operations_that_ask_inside():
    values = torch.rand(4, 4)
    for ask in (
        lambda: torch.linalg.svd(values),
        lambda: torch.linalg.inv(values),
        lambda: values[0].repeat_interleave(torch.ones(4, dtype=torch.long)),
        lambda: torch.unique(values),
        lambda: torch.argwhere(values > 0.5),
    ):
        with pytest.raises(HostSync, match="reads a value"), no_host_sync():
            ask()


def test_the_guard_notices_a_method_that_reads_in_the_prefill():
    class Asks(DecoderPruner):
        name = "asks"

        def stages(self, num_layers, num_visual_tokens):
            return (Stage(2, num_visual_tokens // 2),)

        def select(self, context, retained):
            scores = context.attention.mean(1)
            if scores.max() > 0.5:
                scores = 1 - scores
            return self.keep_best(scores, context, retained)

    class Copies(Asks):
        def select(self, context, retained):
            keep = torch.arange(VISUAL) < retained
            return Selection(keep.to(context.present.device).expand_as(context.present))

    for method in (Asks, Copies):
        with pytest.raises(HostSync, match=r"reads a value|on the host"):
            prefill_without_host_copy(method(), (5, 7))
    assert not tiny_llava().model.language_model.layers[1].self_attn._forward_pre_hooks
