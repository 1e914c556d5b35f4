"""What every method has to hold on every family: for tests, ours and those of whoever writes a method or a family.

    import pytest
    from finepruner_lmms.pruners.registry import takes_budget
from finepruner_lmms.testing.families import FAMILIES
    from finepruner_lmms.testing.family_checks import FAMILY_CHECKS

    @pytest.mark.parametrize("check", FAMILY_CHECKS, ids=lambda check: check.__name__)
    @pytest.mark.parametrize("which", FAMILIES)
    def test_my_method(which, check):
        check("my_method", which)

A method that a family refuses (`FieldError`) passes: `refusal` tells why.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.registry import takes_budget
from finepruner_lmms.testing.families import LAYERS, Row, family_prompts, tiny_model
from finepruner_lmms.testing.samples import ON_SMALL_MODELS

ROWS: tuple[Row, ...] = ((5, "a", 4), (7,), (2, "a", 1, "b", 3))
_OPTIONS: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "output_logits": True}


def _build(name: str, budget: str = "50%") -> Any:
    given = {"budget": budget} if takes_budget(name) else {}
    return fp.build_pruner(name, **given, **ON_SMALL_MODELS.get(name, {}))


@functools.lru_cache(maxsize=64)
def _run(name: str, which: str, rows: tuple[Row, ...] = ROWS, **of_model: Any) -> Any:
    return fp.generate(tiny_model(which, **of_model), _build(name), family_prompts(which, *rows), **_OPTIONS)


@functools.lru_cache(maxsize=1024)
def refusal(name: str, which: str) -> FieldError | None:
    """Why a family refuses a method, or None where the method runs on it."""
    try:
        _run(name, which)
    except FieldError as error:
        return error
    return None


@functools.cache
def _size(which: str, picture: str) -> int:
    """N of a picture: what enters the first layer where a method works inside."""
    pruner, inputs = fp.build_pruner("fastv", budget="99.9%"), family_prompts(which, (2, picture, 2))
    return int(fp.generate(tiny_model(which), pruner, inputs, max_new_tokens=1).trace.tokens_entering[0][0])


def check_alone(name: str, which: str) -> None:
    """A row gets in a batch of any mix what it gets alone: the same tokens, and logits within 1e-4."""
    if refusal(name, which) is not None:
        return
    together = _run(name, which)
    for number, row in enumerate(ROWS):
        single = _run(name, which, (row,))
        for layer, kept in single.trace.kept.items():
            assert torch.equal(kept[0], together.trace.kept[layer][number]), (layer, row)
        ours, alone = (torch.stack(result.logits or ()) for result in (together, single))
        torch.testing.assert_close(ours[:, number], alone[:, 0], rtol=1e-4, atol=1e-4)


def check_entering(name: str, which: str) -> None:
    """What enters the layers is the schedule of each image, added up over the images of a row."""
    if refusal(name, which) is not None:
        return
    pruner, sizes = _build(name), {one: _size(which, one) for one in ("a", "b")}
    if which == "llava_onevision":  # in a row of several images, each is one tile of 3 × 3
        rows: tuple[Row, ...] = ((5, "a", 4), (7,), (2, "b", 3))
    else:
        rows = ROWS
    for row, entering in zip(rows, _run(name, which, rows).trace.tokens_entering, strict=True):
        schedules = [pruner.schedule(LAYERS, sizes[part]) for part in row if isinstance(part, str)]
        assert entering == [sum(counts[layer] for counts in schedules) for layer in range(LAYERS)], row


def check_bfloat16(name: str, which: str) -> None:
    """A model in bfloat16 runs, and what enters its layers is the same."""
    if refusal(name, which) is not None:
        return
    result = _run(name, which, dtype=torch.bfloat16)
    assert all(bool(step.isfinite().all()) for step in result.logits or ())
    assert result.trace.tokens_entering == _run(name, which).trace.tokens_entering


FAMILY_CHECKS = (check_alone, check_entering, check_bfloat16)
