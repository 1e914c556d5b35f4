"""Query strategies against going through the rows one by one, and in a model against eager attention."""

from __future__ import annotations

import math

import pytest
import torch
from brute_force import best
from conftest import IMAGE, VISUAL, alone, prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.heads.queries import Words, known_queries, query_weights
from finepruner_lmms.testing import decoder_context


def plain(name: str, rows: torch.Tensor, prefix: int) -> torch.Tensor:
    """`rows` `[T, H, V]` of one sample's words, T at least 1."""
    count, mass = len(rows), [float(row.sum()) for row in rows]

    def rising(newest: int) -> list[float]:
        return [0.5 + 0.5 * place / max(newest - 1, 1) for place in range(newest)]

    def recent() -> torch.Tensor:
        weights = rising(min(5, count))
        return sum(w * row for w, row in zip(weights, rows[-len(weights) :], strict=True)) / sum(weights)

    def attentive() -> torch.Tensor:
        weights = [math.exp(m) for m in mass]
        return sum(w * row for w, row in zip(weights, rows, strict=True)) / (sum(weights) + prefix)

    if name == "last":
        return rows[-1]
    if name == "last_n_tokens":
        return rows[-3:].mean(0)
    if name == "last_5_tokens":
        return rows[-5:].mean(0)
    if name == "text_tokens_only":
        return rows.mean(0)
    if name == "weighted_recent":
        return recent()
    if name == "system_and_text":
        return rows.sum(0) / (count + prefix)
    if name == "attention_weighted":
        return attentive()
    if name == "max_attention_token":
        return rows[mass.index(max(mass))]
    if name == "adaptive_by_length":
        return rows.mean(0) if count <= 3 else recent() if count <= 10 else attentive()
    if name == "adaptive_text_visual":
        if count <= 5:
            return rows[-3:].mean(0)
        return sum(w * row for w, row in zip(rising(count), rows, strict=True))
    raise AssertionError(name)


@pytest.mark.parametrize("name", known_queries())
def test_equals_going_through_the_rows(name):
    generator = torch.Generator().manual_seed(0)
    size = 14
    text = torch.rand(6, 3, size, 7, generator=generator) / 7
    lengths = [1, 2, 4, 6, 14, 0]
    present = torch.arange(size) >= size - torch.tensor(lengths)[:, None]
    prefix = torch.tensor([5, 0, 35, 2, 9, 3])
    last = torch.where(present[:, -1, None, None], text[:, :, -1], torch.rand(6, 3, 7, generator=generator))
    words = Words(present, prefix, lambda: text.sum((1, 3)))
    weights = None if name == "last" else query_weights(name, words)
    found = last if weights is None else words.or_last(torch.einsum("bhtv,bt->bhv", text, weights.float()), last)
    for row, length in enumerate(lengths):
        if length:
            rows = text[row, :, size - length :].transpose(0, 1)
            torch.testing.assert_close(found[row], plain(name, rows, int(prefix[row])), rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(found[row], last[row])


@pytest.mark.parametrize("name", known_queries())
def test_without_text_the_last_token_asks(name):
    """In rows whose prompt ends with the image, alone and beside others, the choice is that of `query="last"`."""
    model = tiny_llava()
    pruner, plain_ = (fp.build_pruner("finepruner", budget=8, heads=3, query=query) for query in (name, "last"))
    for rows in (((5, 0),), ((5, 0), (3, 0)), ((5, 0), (2, 4), 9)):
        inputs = prompts(*rows)
        found, last = (fp.generate(model, one, inputs, max_new_tokens=1).trace for one in (pruner, plain_))
        for row, (_, words) in enumerate(row for row in rows if isinstance(row, tuple)):
            if not words:
                assert found.kept[2][row].tolist() == last.kept[2][row].tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", known_queries())
def test_in_a_model(name):
    """In a mixed batch, the kept tokens are those that eager attention and plain arithmetic would keep."""
    model, inputs = tiny_llava(), prompts((5, 12), 9, (2, 4), (7, 1))
    pruner = fp.build_pruner("finepruner", budget=8, heads=3, head_strategy="variance", query=name)
    trace = fp.generate(model, pruner, inputs, max_new_tokens=1).trace
    retained = pruner.schedule(6, VISUAL)[-1]
    for row in (0, 2, 3):
        single = alone(inputs, row)
        visual = (single["input_ids"][0] == IMAGE).nonzero().squeeze(1)
        attention = tiny_llava("eager")(**single, output_attentions=True).attentions[1][0]
        rows = attention[:, int(visual[-1]) + 1 :][..., visual].transpose(0, 1)
        asked = plain(name, rows, int(visual[0]))
        heads = sorted(best(asked.var(-1), list(range(8)), 3))
        assert trace.kept[2][row].tolist() == best(asked[heads].mean(0), list(range(VISUAL)), retained)


def test_queries_differ_and_are_checked():
    context = decoder_context()
    kept = {
        name: fp.build_pruner("finepruner", heads=4, query=name).select(context, 6).keep.tolist()
        for name in known_queries()
    }
    assert kept["text_tokens_only"] == kept["system_and_text"] != kept["last"]
    with pytest.raises(ValueError, match=r"query: got 'first'.*known: last, adaptive_by_length"):
        fp.build_pruner("finepruner", query="first")
    with pytest.raises(ValueError, match="query: got 'weighted_recent'; guide='sparsevlm' asks by its raters"):
        fp.build_pruner("finepruner", query="weighted_recent", guide="sparsevlm")
