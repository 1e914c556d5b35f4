"""Traces of a study: written while it runs, whole, small, and never in the way of a result."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import VISUAL, prompts, tiny_llava
from PIL import Image
from test_trace import CountWaits

import finepruner_lmms as fp
from finepruner_lmms.asking.inputs import Prompt
from finepruner_lmms.benchmarks.limits import recorded
from finepruner_lmms.engine.families.family import ImageSpan, View
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.journal import Answer, Journal, Origin, read_journal
from finepruner_lmms.lmms.meter import BatchTime
from finepruner_lmms.lmms.recorder import VARIABLE, Recorder, _maps, records
from finepruner_lmms.lmms.traced import from_record, to_record
from finepruner_lmms.matrix.cells import expand
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.records import Damage, Result, load
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.traces import FILE, Stage, Traced, read_traces, write_traces
from finepruner_lmms.testing.families import tiny_model
from finepruner_lmms.testing.tiny_checkpoints import tiny_processor


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


TILES = (View(2, 2), View(1, 3, (0.0, 0.0, 1.0, 0.5), 1), View(1, 3, (0.0, 0.5, 1.0, 1.0), 1))


def test_tiles_are_written_with_their_places_and_read_again():
    one = Traced(3, None, 12, (Stage(2, np.arange(12) % 2 == 0),), (10, 10, 6), TILES, (7, 11))
    again = from_record(json.loads(json.dumps(to_record(one))))
    assert (again.views, again.separators, again.grid) == (TILES, (7, 11), None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"views": [[2, 2, 0, 0, 1, 1, 0]]},
        {"separators": [7]},
        {"separators": [7, 7]},
        {"separators": [7, 99]},
        {"views": [[2, 2, 0, 0, 2, 1, 0], [2, 3, 0, 0, 1, 1, 1]]},
        {"views": [[2, 2, 0, 0, 1, 1, 0], [2, 3, 0, 0, 1, float("nan"), 1]]},
        {"views": [[1, 1, 0, 0, 1, 1, 0]] * 300},
        {"views": "<script>"},
    ],
    ids=["too few", "a newline less", "a newline twice", "no token", "outside", "nan", "too many", "no views"],
)
def test_tiles_that_are_not_those_of_the_tokens_are_refused(wrong):
    record = to_record(Traced(3, None, 12, (), (10,), TILES, (7, 11)))
    with pytest.raises(ValueError):
        from_record(record | wrong)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl"])
def test_a_picture_in_tiles_is_recorded_where_its_tokens_stand(name):
    """The stages are those of the trace, the places those that `show` draws, the map what guided, from both sheets."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 48, 3), dtype=np.uint8)
    pruner = fp.build_pruner("fastv", budget="50%", layer=1)
    answer = fp.answer(tiny_model(name), tiny_processor(name), Image.fromarray(noise), "?", pruner, max_new_tokens=1)
    batch = [SimpleNamespace(doc_id=5, prompt=answer.prompt)]
    one = from_record(records(batch, answer.trace, [0])[0])
    (picture,) = answer.pictures
    assert (one.views, one.separators, one.tokens) == (picture.views, picture.separators, picture.length)
    assert one.grid is None and len({view.sheet for view in one.views}) == 2
    (stage,) = one.stages
    assert np.flatnonzero(stage.kept).tolist() == answer.trace.kept[1][0].tolist()
    own = np.delete(stage.kept, one.separators)
    assert own.sum() == answer.trace.tokens_entering[0][1] and stage.maps.shape == (1, 12, 12)
    values = np.delete(answer.trace.guides[1][0, 0].numpy(), one.separators)
    seen = np.zeros((48, 96))  # pixels: each of both sheets drawn by itself, then both together
    first = 0
    for view in one.views:
        left, top, right, bottom = (round(side * size) for side, size in zip(view.box, (96, 48) * 2, strict=True))
        for row in range(view.rows):
            for column in range(view.columns):
                y, x = (top + (bottom - top) * row / view.rows, left + (right - left) * column / view.columns)
                height, width = (bottom - top) / view.rows, (right - left) / view.columns
                there = (np.abs(np.arange(48) + 0.5 - y - height / 2) < height / 2)[:, None]
                seen += values[first] * (there & (np.abs(np.arange(96) + 0.5 - x - width / 2) < width / 2))
                first += 1
    assert first == len(values)
    expected = seen.reshape(12, 4, 12, 8).mean((1, 3))
    assert np.abs(stage.maps[0] - 255 * expected / expected.max()).max() <= 0.51


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
    ids=["no gzip", "no trace", "a list", "other size", "cut off", "other grid", "other document"],
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


# -- what is recorded of a call ---------------------------------------------------------------------------------------

PARAMETERS = {
    "finepruner": {"heads": 3},
    "finepruner by consensus": {"head_strategy": "consensus"},
    "fastv": {},
    "pdrop": {},
    "sparsevlm": {},
    "visionzip": {},
    "pool": {},
    "divprune+finepruner": {"first": 14, "heads": 3},
    "visionzip+sparsevlm": {"first": 14},
}
SPAN = ImageSpan(VISUAL, grid=(1, 4, 4))


def called(label: str, execution: str = "eager") -> tuple[list, Trace]:
    """Four rows, of which the second shows no image, and the records of the others."""
    rows, budget = ((5, 7), 11, (2, 4), (8, 1)), 8
    pruner = fp.build_pruner(label.split()[0], budget=budget, **PARAMETERS[label])
    trace = fp.generate(tiny_llava(), pruner, prompts(*rows), max_new_tokens=1, execution=execution).trace
    batch = [SimpleNamespace(doc_id=10 + row, prompt=Prompt([], "", spans=(SPAN,) * (row != 1))) for row in range(4)]
    return [from_record(record) for record in records(batch, trace, range(4)).values()], trace


@pytest.mark.parametrize("execution", ["eager", "graphs"])
@pytest.mark.parametrize("label", PARAMETERS)
def test_records_say_what_the_trace_says(label, execution):
    found, trace = called(label, execution)
    assert [one.doc_id for one in found] == [10, 12, 13]
    for one, row in zip(found, (0, 2, 3), strict=True):
        assert (one.grid, one.tokens, list(one.entering)) == ((4, 4), VISUAL, trace.tokens_entering[row])
        assert [stage.layer for stage in one.stages] == sorted(trace.kept)
        for stage in one.stages:
            assert np.flatnonzero(stage.kept).tolist() == trace.kept[stage.layer][row].tolist()
            assert stage.made == trace.made[stage.layer][row]
            assert stage.kept.sum() + stage.made == one.entering[stage.layer]
            if stage.layer in trace.merged:
                assert np.flatnonzero(stage.merged).tolist() == trace.merged[stage.layer][row].tolist()


def test_a_method_that_averages_keeps_none_as_it_was_and_merges_all():
    (one, *_), trace = called("pool")
    (stage,) = one.stages
    assert not stage.kept.any() and stage.merged.all() and stage.made == 8
    assert [kept.tolist() for kept in trace.kept[0]] == [[], [], [], []]
    assert repr(trace) == "Trace(4 rows, 3 with an image; 16 visual tokens; layer 0: kept 0, made 8)"


def test_merged_tokens_are_those_that_are_gone_and_went_into_new_ones():
    (one, *_), _ = called("visionzip")
    assert np.array_equal(one.stages[0].merged, ~one.stages[0].kept)
    (one, *_), _ = called("sparsevlm")
    before = np.ones(VISUAL, dtype=bool)
    for stage in one.stages:
        assert not (stage.merged & stage.kept).any() and not (stage.merged & ~before).any()
        before = stage.kept
    assert one.stages[0].merged.any() and one.stages[0].made >= 1


@pytest.mark.parametrize("label", ["finepruner", "fastv", "divprune+finepruner"])
def test_the_tokens_that_were_kept_are_those_that_the_maps_say(label):
    """In terms of the image's own tokens, also where a method before the model had shortened it."""
    _, trace = called(label)
    for row in (0, 2, 3):
        guided = trace.guides[2][row, :, :VISUAL].mean(0)
        kept = trace.kept[2][row]
        assert sorted(guided.topk(len(kept)).indices.tolist()) == kept.tolist() and len(kept)
        if 0 in trace.kept:
            gone = sorted(set(range(VISUAL)) - set(trace.kept[0][row].tolist()))
            assert len(gone) == 2 and not guided[gone].any()


def test_maps_are_means_of_at_most_twelve_by_twelve_of_at_most_eight_heads():
    draw = np.random.default_rng(1)
    guides = draw.random((9, 24 * 30)).astype(np.float32)
    maps = _maps(guides, (View(24, 30),), tuple(range(9)))
    assert maps.shape == (8, 12, 12) and maps.dtype == np.uint8 and (maps.max(axis=(1, 2)) == 255).all()
    square = guides[0].reshape(24, 30)
    edges = [column * 30 // 12 for column in range(13)]
    means = np.array([
        [square[2 * row : 2 * row + 2, edges[column] : edges[column + 1]].mean() for column in range(12)]
        for row in range(12)
    ])  # fmt: skip
    assert np.abs(maps[0] - 255 * means / means.max()).max() <= 0.51
    assert _maps(guides[:3], (View(24, 30),), (4,)).shape == (1, 12, 12)  # as many as heads were chosen
    assert _maps(guides, (View(24, 30),), ()) is None
    small = _maps(np.array([[-3.0, -1.0, float("-inf"), -2.0]], dtype=np.float32), (View(2, 2),), None)
    assert small.tolist() == [[[0, 255], [0, 128]]]  # ranks, of which less is less, and what was not to be chosen


def test_nothing_is_read_from_the_device_unless_a_question_of_the_batch_is_recorded():
    pruner = fp.build_pruner("finepruner", budget=8, heads=3)
    trace = fp.generate(tiny_llava(), pruner, prompts((5, 7)), max_new_tokens=1).trace
    batch = [SimpleNamespace(doc_id=1, prompt=Prompt([], "", spans=(SPAN,)))]
    with CountWaits() as counter:
        assert records(batch, trace, []) == {}
    assert counter.waits == 0
    with CountWaits() as counter:
        assert records(batch, trace, [0])
    assert 0 < counter.waits <= 6


# -- settings ---------------------------------------------------------------------------------------------------------


def test_a_plain_run_records_what_the_environment_says(monkeypatch):
    assert Recorder.of_environment() == Recorder(0)
    for recorder in (Recorder(200), Recorder(7, 50), Recorder(0)):
        monkeypatch.setenv(VARIABLE, recorder.as_variable())
        assert Recorder.of_environment() == recorder
    monkeypatch.setenv(VARIABLE, "many")
    with pytest.raises(FieldError, match="expected a number"):
        Recorder.of_environment()


def test_what_is_recorded_is_of_the_questions_that_are_asked():
    documents = [{}] * 50
    assert Recorder(200).numbers({"a": documents}) == {("a", number) for number in range(50)}
    assert Recorder(200, 5).numbers({"a": documents}) == {("a", number) for number in range(5)}
    few = Recorder(10).numbers({"a": documents, "b": documents})
    assert len(few) == 20 and {number for task, number in few if task == "a"} == recorded(range(50), 10)
    assert Recorder(0).numbers({"a": documents}) == frozenset()


# -- as a part of a cell ----------------------------------------------------------------------------------------------


def test_traces_that_are_not_those_of_the_result_are_damage_and_the_result_stays(tmp_path):
    about = write_traces(tmp_path, [made_up(3)])
    spec = {"id": "a", "spec": {"task": "gqa"}, "answered": 1, "expected": 1, "traces": about.model_dump()}
    write_result(tmp_path, spec, [{"doc_id": 3, "image": "a", "target": "yes", "answer": "yes", "score": 1.0}])
    assert list(read_traces(tmp_path)) == [3]
    write_traces(tmp_path, [made_up(4)])
    with pytest.raises(Damage, match=r"traces.jsonl.gz was changed after the result was written"):
        read_traces(tmp_path)
    result = load(Result, tmp_path / "result.json")
    assert result.traces == about and result.answered == 1


def test_what_is_recorded_makes_no_other_cells(tmp_path):
    ids, counts = [], []
    for line in ("", "record: {questions: 0}\n", "record: {questions: 7}\n"):
        file = tmp_path / "study.yaml"
        file.write_text(f"name: s\nmodel: {{pretrained: demo}}\ndata: demo\ntasks: [gqa]\nmethods: [vanilla]\n{line}")
        matrix = load_matrix(file)
        ids.append([cell.id for cell in expand(matrix)])
        counts.append(matrix.file.record.questions)
    assert ids[0] == ids[1] == ids[2] and counts == [200, 0, 7]


def test_the_journal_keeps_what_was_recorded_with_the_answer(tmp_path):
    time = BatchTime(1, 3, 0.5, 0.2, "eager")
    origin = Origin("s", 0, 1, "a processor")
    first = Answer("yes", 600, 2, 24, (30, 30, 12), to_record(made_up(5)))
    Journal(tmp_path, "owner", origin).add(["a"], [first], time)
    again = Journal(tmp_path, "owner", origin)  # a later attempt, which asks only for what is missing
    again.add(["a", "b"], [Answer("no", 600, 2, 24, ()), Answer("no", 600, 2, 24, ())], time)
    written = read_journal(tmp_path, "owner")
    assert len(written.answers) == 2 and list(written.traces) == [5]
    assert same(from_record(written.traces[5]), made_up(5))
