"""Traces of a study: written while it runs, whole, small, and never in the way of a result."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from finepruner_lmms.benchmarks.limits import recorded
from finepruner_lmms.lmms.traced import from_record, to_record
from finepruner_lmms.matrix.records import Damage
from finepruner_lmms.matrix.traces import FILE, Stage, Traced, read_traces, write_traces


def made_up(doc_id: int = 7, tokens: int = 30) -> Traced:
    draw = np.random.default_rng(doc_id)
    first, second = draw.random(tokens) < 0.5, draw.random(tokens) < 0.2
    maps = draw.integers(0, 256, (3, 5, 6), dtype=np.uint8)
    stages = (
        Stage(2, first, merged=~first, heads=(4, 0, 9), head_scores=(0.25, 1.5), maps=maps, made=3),
        Stage(9, second),
    )
    return Traced(doc_id, (5, 6), tokens, stages, (30, 30, 12))


def same(one: Traced, other: Traced) -> bool:
    return to_record(one) == to_record(other)


def test_what_is_written_is_read_again(tmp_path):
    traces = [made_up(9), made_up(2), Traced(4, None, 13, (), (13, 13))]
    about = write_traces(tmp_path, traces)
    assert about.questions == 3 and about.bytes == (tmp_path / FILE).stat().st_size
    found = read_traces(tmp_path)
    assert list(found) == [2, 4, 9]
    for one in traces:
        again = found[one.doc_id]
        assert same(one, again)
        assert (again.grid, again.tokens, again.entering) == (one.grid, one.tokens, one.entering)
        for then, now in zip(one.stages, again.stages, strict=True):
            assert np.array_equal(then.kept, now.kept) and (then.heads, then.made) == (now.heads, now.made)
            assert (then.maps is None) == (now.maps is None) and (then.merged is None) == (now.merged is None)
    assert np.array_equal(found[9].stages[0].maps, traces[0].stages[0].maps)
    assert found[9].kept_before(1).all() and np.array_equal(found[9].kept_before(2), traces[0].stages[0].kept)
    assert np.array_equal(found[9].kept, traces[0].stages[1].kept)


def test_a_folder_without_traces_has_none(tmp_path):
    assert read_traces(tmp_path) == {} and read_traces(tmp_path / "not there") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b'{"doc_id": 1}\n'),
        gzip.compress(b"[1, 2]\n"),
        gzip.compress(json.dumps(to_record(made_up()) | {"tokens": 99}).encode() + b"\n"),
        gzip.compress(json.dumps(to_record(made_up())).encode() + b"\n")[:-9],
        gzip.compress(json.dumps(to_record(made_up()) | {"grid": [7, 7]}).encode() + b"\n"),
        gzip.compress(json.dumps(to_record(made_up()) | {"doc_id": "<script>"}).encode() + b"\n"),
    ],
)
def test_a_file_that_holds_something_else_is_damage(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(Damage, match=FILE):
        read_traces(tmp_path)


def test_a_record_of_other_sizes_is_refused():
    record = to_record(made_up())
    record["stages"][0]["maps"]["shape"] = [3, 6, 6]
    with pytest.raises(ValueError, match="maps"):
        from_record(record)


def test_the_recorded_questions_do_not_depend_on_order_and_more_add_to_fewer():
    numbers = list(range(0, 3000, 3))
    few, many = recorded(numbers, 20), recorded(numbers[::-1], 200)
    assert len(few) == 20 and len(many) == 200 and few < many <= set(numbers)
    assert recorded(numbers, 0) == set() and recorded(range(5), 200) == set(range(5))
    assert max(many) > 2500  # spread over all
