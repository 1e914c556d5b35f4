"""Cells of a study that are answered together: results, journals, failures and resuming, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lmms_eval.tasks import TaskManager
from studies import cell, method

from finepruner_lmms.data import task_folders
from finepruner_lmms.lmms import answering, together
from finepruner_lmms.lmms.identity import cell_identity
from finepruner_lmms.lmms.journal import Journal
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.lmms.recorder import Recorder
from finepruner_lmms.lmms.traced import from_record
from finepruner_lmms.matrix.evaluate import evaluate_cell, gather
from finepruner_lmms.matrix.plan import PlannedCell
from finepruner_lmms.matrix.sections import LaunchSection
from finepruner_lmms.matrix.worker import at_once
from finepruner_lmms.pruners.divprune import DivPrune

LIMIT = 6
METHODS = (
    method("vanilla"),
    method("fastv", 64),
    method("divprune", 64),
    method("finepruner", 64, heads=2, head_strategy="sum"),
    method("finepruner", 64, heads=4, head_strategy="max_attention"),
)


@pytest.fixture(scope="module")
def lm() -> LlavaFinePruner:
    return LlavaFinePruner(pretrained="demo", batch_size=4)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    folder = str(task_folders.folder("demo", limit=LIMIT))
    return TaskManager(include_path=folder, include_defaults=False, model_name="llava_finepruner")


def planned(lm, folder: Path, methods=METHODS) -> list[PlannedCell]:
    cells = []
    for row, of in enumerate(methods):
        _, pruner = lm.method(method=of.method, budget=of.budget, **of.parameters)
        identity = cell_identity(lm.answer_identity(pruner), "gqa", LIMIT, False, "")
        one = cell(f"cell{row}", "gqa", row, of, limit=LIMIT, identity=identity)
        cells.append(PlannedCell(**dict(one), path=folder / one.folder))
    return cells


def evaluate(lm, manager, one: PlannedCell, company):
    lm.monitor_to(one.path)
    lm.recorder = Recorder(4)
    attempt = one.path / "attempt"
    outcome, samples = evaluate_cell(lm, manager, one, attempt, one.path / "cache", company)
    selected = sorted(
        line for file in one.path.glob("selections-*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()
    )
    assert (outcome.cost["questions"], outcome.speed.questions, outcome.speed.attempts) == (LIMIT, LIMIT, 1)
    assert len(outcome.traces) == 4
    traces = {number: from_record(record) for number, record in outcome.traces.items()}
    kept = {
        number: [(stage.layer, stage.heads, stage.kept.tolist()) for stage in one.stages]
        for number, one in traces.items()
    }
    return outcome.scores, outcome.cost, samples, selected, kept


def evaluate_all(lm, manager, cells, at_a_time: int | None = None):
    found = []
    for group in at_once(cells, at_a_time):
        company = gather(lm, group, monitor=True)
        found += [evaluate(lm, manager, one, company) for one in group]
    return found


@pytest.fixture(scope="module")
def apart(lm, manager, tmp_path_factory) -> list:
    """What the cells give one after the other."""
    return evaluate_all(lm, manager, planned(lm, tmp_path_factory.mktemp("apart")), 1)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many methods each call of the engine answered with."""
    seen: list[int] = []

    def counted(module, name, of):
        real = getattr(module, name)

        def call(model, pruners, *arguments, **options):
            seen.append(of(pruners))
            return real(model, pruners, *arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(together, "answer_together", len)
    counted(answering, "generate", lambda _: 1)
    return seen


def test_cells_answered_together_give_what_they_give_apart(lm, manager, tmp_path, apart, calls):
    assert evaluate_all(lm, manager, planned(lm, tmp_path)) == apart
    assert calls == [5, 5]  # 6 questions in batches of 4, all cells at once; nothing is asked again


def test_groups_have_the_size_that_is_asked_for(lm, manager, tmp_path, apart, calls):
    assert evaluate_all(lm, manager, planned(lm, tmp_path), 3) == apart
    assert calls == [3, 3, 2, 2]


def test_little_memory_makes_small_groups(lm, manager, tmp_path, apart, calls, monkeypatch):
    monkeypatch.setattr(together, "free_bytes", lambda _: 1)
    assert evaluate_all(lm, manager, planned(lm, tmp_path)) == apart
    assert set(calls) == {1}


def test_memory_that_runs_out_halves_the_group(lm, manager, tmp_path, apart, calls, monkeypatch):

    real = together.answer_together

    def small(model, pruners, *arguments, **options):
        if len(pruners) > 2:
            calls.append(len(pruners))
            raise torch.OutOfMemoryError("no memory")
        return real(model, pruners, *arguments, **options)

    monkeypatch.setattr(together, "answer_together", small)
    assert evaluate_all(lm, manager, planned(lm, tmp_path)) == apart
    assert calls[:4] == [5, 2, 2, 1]


def test_a_cell_that_fails_in_a_group_fails_alone(lm, manager, tmp_path, apart, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("this method cannot choose")

    monkeypatch.setattr(DivPrune, "choose", fail)
    cells = planned(lm, tmp_path)
    company = gather(lm, cells, monitor=True)
    for place, one in enumerate(cells):
        if one.method.method == "divprune":
            with pytest.raises(ZeroDivisionError, match="cannot choose"):
                evaluate(lm, manager, one, company)
        else:
            assert evaluate(lm, manager, one, company) == apart[place]


def test_the_first_of_a_group_may_fail_and_the_others_keep_what_was_answered(
    lm, manager, tmp_path, apart, calls, monkeypatch
):
    def fail(*_):
        raise ZeroDivisionError("this method cannot choose")

    monkeypatch.setattr(DivPrune, "choose", fail)
    order = [2, 0, 1, 3, 4]
    cells = planned(lm, tmp_path, [METHODS[place] for place in order])
    company = gather(lm, cells, monitor=True)
    with pytest.raises(ZeroDivisionError):
        evaluate(lm, manager, cells[0], company)
    assert [evaluate(lm, manager, one, company) for one in cells[1:]] == [apart[place] for place in order[1:]]
    assert calls == [5, 4]  # the first batch was answered for all but the one that failed


class Killed(BaseException):
    """As a kill, but that the test goes on."""


def test_a_kill_loses_no_more_than_a_batch_of_any_cell(lm, manager, tmp_path, apart, calls, monkeypatch):
    cells, real = planned(lm, tmp_path), together.answer_together

    def killed_in_the_second(*arguments, **options):
        if calls:
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(together, "answer_together", killed_in_the_second)
        with pytest.raises(Killed):
            evaluate(lm, manager, cells[0], gather(lm, cells, monitor=True))
    for journal in tmp_path.glob("*/cache/answers-rank0.jsonl"):
        with journal.open("a") as file:
            file.write('{"key": "cut o')  # as a kill leaves it
    assert evaluate_all(lm, manager, cells) == apart
    assert calls == [5, 5]  # one batch before the kill, the other after it


def test_a_cell_left_alone_goes_on_with_what_the_group_had_answered(lm, manager, tmp_path, apart, calls):
    cells = planned(lm, tmp_path)
    evaluate(lm, manager, cells[0], gather(lm, cells, monitor=True))
    assert evaluate(lm, manager, cells[3], None) == apart[3]
    assert calls == [5, 5]


def test_a_cell_that_would_be_computed_otherwise_than_planned_is_not_answered_for(lm, manager, tmp_path, calls):
    cells = planned(lm, tmp_path)
    other = cells[1].identity.model_copy(update={"dtype": "float16"})
    cells[1] = cells[1].model_copy(update={"identity": other})
    evaluate(lm, manager, cells[0], gather(lm, cells, monitor=True))
    assert calls == [4, 4] and not (cells[1].path / "cache").exists()


def test_answers_that_are_drawn_are_given_one_cell_after_the_other(lm, manager, tmp_path, calls, monkeypatch):
    real = lm._decoding.of
    monkeypatch.setattr(
        lm._decoding, "of", lambda *arguments: real(*arguments) | {"do_sample": True, "temperature": 0.7}
    )
    cells = planned(lm, tmp_path)[:2]
    company = gather(lm, cells, monitor=False)
    for one in cells:
        evaluate(lm, manager, one, company)
    assert calls == [1, 1, 1, 1]
    again = Journal(cells[0].path / "cache", lm.answer_identity(lm.method(method="vanilla")[1]).text(), lm.origin)
    assert again.known == {}  # another attempt draws anew


@pytest.mark.parametrize(
    "written, cells, deaths, most",
    [("auto", 63, 0, None), ("auto", 63, 1, 31), ("off", 63, 0, 1), (False, 9, 0, 1), (True, 9, 0, None), (8, 63, 0, 8),
     (8, 63, 2, 2), (8, 63, 9, 1)],
)  # fmt: skip
def test_fan_out_says_how_many_cells_at_once_and_fewer_after_a_death(written, cells, deaths, most):
    assert LaunchSection.model_validate({"fan_out": written}).at_once(cells, deaths) == most


@pytest.mark.parametrize("written", [0, -1, "some", 1.5])
def test_fan_out_that_is_no_number_of_cells_is_refused(written):
    with pytest.raises(ValueError, match="fan_out"):
        LaunchSection.model_validate({"fan_out": written})


def test_a_few_cells_on_a_gpu_are_left_to_their_recordings():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert "fewer than 4" in together.too_few(gpu, 3)
    assert together.too_few(gpu, 4) is None
    assert together.too_few(cpu, 2) is None
