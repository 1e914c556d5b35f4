"""Measured speeds: from batches of several processes to the cost columns of the leaderboard."""

from __future__ import annotations

import csv
import io

import pytest
import torch
from studies import VANILLA, cell, method, study
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.lmms.journal import Answer, Batch, Origin, Written
from finepruner_lmms.lmms.meter import BatchTime, ImageUse, Meter, lmms_eval_metrics
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.records import Conditions, Damage, Result, Speed, parse
from finepruner_lmms.matrix.report.costs import render_costs
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.speed import measured
from finepruner_lmms.matrix.store import Store

H100 = Conditions(device="NVIDIA H100", dtype="bfloat16", processes=1, batch_size=16, execution="graphs")
ROWS = [VANILLA, method("fastv", 64)]


def batches(rank: int, first: list[float | None], wall: float = 1.0, session: str = "a", **changes) -> list[Batch]:
    """Of two rows each, which took 0.1 s after their first token; there are two processes."""
    origin = Origin(session, rank, 2, "NVIDIA H100")
    values = {"steps": 5, "execution": "graphs", "wall": wall, "most": 2, "asked": 2} | changes
    return [Batch(origin, BatchTime(rows=2, seconds=(f or 0.0) + 0.1, first_token=f, **values)) for f in first]


def written(*those: list[Batch], questions: int = 6) -> Written:
    answer = Answer("yes", 600, 2, 24, (576, 64))
    return Written({str(n): answer for n in range(questions)}, tuple(batch for some in those for batch in some))


def test_processes_work_side_by_side():
    """Questions add up, the slowest process says how long it took, the fullest device how much memory."""
    first = batches(0, [0.1, 0.2], 2.0, peak_bytes=7, waiting=0.5, images=ImageUse(2, 1))
    second = batches(1, [0.3], 2.0, peak_bytes=9, waiting=0.5, images=ImageUse(1, 0))
    speed = measured(written(first, second), "bfloat16")
    assert speed is not None
    assert (speed.questions, speed.batches, speed.seconds, speed.attempts) == (6, 3, 4.0, 1)
    assert speed.questions_per_second == pytest.approx(6 / 4)
    assert speed.model_questions_per_second == pytest.approx(6 / (0.2 + 0.3))
    assert speed.first_token_p50 == pytest.approx(0.2) and speed.first_token_p95 == pytest.approx(0.29)
    assert speed.seconds_per_token == pytest.approx(0.1 / 4)  # the first of five tokens is the prefill's
    assert (speed.peak_bytes, speed.waiting) == (9, pytest.approx(1.5 / 6))
    assert speed.image_hits == pytest.approx(3 / 5)
    assert speed.conditions == H100.model_copy(update={"processes": 2, "batch_size": 2})


def test_attempts_come_one_after_the_other():
    speed = measured(written(batches(0, [0.1, 0.1]), batches(1, [0.1]), batches(0, [0.1], session="b")), "bfloat16")
    assert speed is not None and (speed.attempts, speed.seconds) == (2, 2.0 + 1.0)
    assert speed.questions_per_second == pytest.approx(8 / 3)


def test_a_batch_size_that_did_not_fit_is_named():
    speed = measured(written(batches(0, [0.1], asked=16), batches(0, [0.1], asked=16, most=8)), "bfloat16")
    assert speed is not None and speed.conditions.batch_size == 2
    assert "batch 2 (memory ran out with 16)" in str(speed.conditions)


def test_what_was_not_measured_is_none():
    assert measured(Written({}, ()), "float32") is None
    speed = measured(written(batches(0, [0.1, None], steps=1)), "float32")
    assert speed is not None
    assert speed.first_token_p50 is None and speed.seconds_per_token is None
    assert speed.peak_bytes is None and speed.waiting is None


def test_the_meter_counts_a_question_that_is_asked_twice_once():
    """lmms-eval asks the last question again where a process has fewer than others."""
    meter = Meter(torch.device("cpu"))
    assert meter.spent() is None
    for numbers in ((0, 1), (2, 2)):
        meter.add(BatchTime(2, 3, 0.5, 0.2, "eager"), [("pope", number) for number in numbers])
    lap = meter.lap()
    found = meter.spent()
    assert found is not None and (found.questions, found.seconds, found.peak_bytes) == (3, lap, None) and lap > 0
    assert lmms_eval_metrics(found, 1) == pytest.approx({"rank": 1, "total_requests": 4, "ttft": 0.2, "tpot": 0.15})
    meter.start()
    assert meter.spent() is None


def result(speed: Speed | None, answered: int = 8) -> dict:
    found = {"metrics": {"exact_match,none": 0.5}, "percent": 50.0, "standard_error": 2.0, "answered": answered}
    found |= {"expected": answered, "seconds": 1.0, "spec": {"task": "gqa"}}
    return found | ({} if speed is None else {"speed": speed.model_dump()})


def speed_of(questions: int = 8, conditions: Conditions = H100, **changes) -> Speed:
    values = {"questions": questions, "batches": 4, "seconds": 2.0, "questions_per_second": 4.0,
              "model_questions_per_second": 5.0, "first_token_p50": 0.0125, "first_token_p95": 0.02,
              "seconds_per_token": 0.0082, "peak_bytes": 3 * 2**30, "conditions": conditions}  # fmt: skip
    return Speed(**(values | changes))


def board_of(tmp_path, *speeds: Speed | None):
    """A leaderboard of vanilla and fastv on GQA, with these speeds."""
    store, cells = Store(tmp_path), []
    for number, speed in enumerate(speeds):
        cells.append(cell(f"gqa{number}", "gqa", number, ROWS[number]))
        begin_attempt(store.cell_dir(cells[-1]), "1")
        samples = [{"doc_id": n, "image": f"i{n}", "target": "a", "answer": "a", "score": 1.0} for n in range(8)]
        write_result(store.cell_dir(cells[-1]), {"id": cells[-1].id} | result(speed), samples)
    store.save_study(study(ROWS[: len(speeds)], cells))
    return leaderboard(store)


def test_every_format_shows_speed_beside_flops(tmp_path):
    board = board_of(tmp_path, speed_of(), speed_of())
    for form in ("text", "markdown", "latex"):
        text = render_costs(board, form)
        assert all(part in text for part in ("TTFT p50", "questions/s", "12.5 ms", "4.00", "3.00 GiB", "NVIDIA H100"))
        assert "waiting" not in text.split("TTFT: ")[0]  # nobody measured it
    assert "Not measured in the same" not in render_costs(board, "text")
    row = next(csv.DictReader(io.StringIO(render_costs(board, "csv"))))
    assert float(row["first_token_p50"]) == 0.0125 and float(row["peak_bytes"]) == 3 * 2**30
    assert (row["measured_questions"], row["conditions"]) == ("8", str(H100))
    assert float(row["questions_per_second"]) == 4 and float(row["model_questions_per_second"]) == pytest.approx(5)
    shown = CliRunner().invoke(app, ["table", str(tmp_path), "--costs"])
    assert shown.exit_code == 0 and "12.5 ms" in shown.output


def test_rows_that_ran_in_other_conditions_are_named(tmp_path):
    other = H100.model_copy(update={"batch_size": 1, "execution": "eager"})
    text = render_costs(board_of(tmp_path, speed_of(), speed_of(conditions=other)), "text")
    assert "Not measured in the same conditions" in text
    assert "NVIDIA H100, bfloat16, batch 16, graphs: vanilla" in text
    assert "NVIDIA H100, bfloat16, batch 1, eager: fastv 64" in text


def test_rows_that_found_other_shares_of_their_images_encoded_are_not_compared_silently(tmp_path):
    first, later = (speed_of(image_hits=share) for share in (0.2, 1.0))
    text = render_costs(board_of(tmp_path / "a", first, later), "markdown")
    assert "20 %" in text and "questions/s is not the methods' doing alone" in text
    assert "doing alone" not in render_costs(board_of(tmp_path / "b", later, later), "markdown")


def test_a_resumed_cell_says_over_how_many_questions_it_was_measured(tmp_path):
    text = render_costs(board_of(tmp_path, speed_of(), speed_of(questions=3)), "text")
    assert "fastv 64, GQA: measured over 3 of 8 questions" in text and "vanilla, GQA" not in text


def test_cells_answered_at_once_have_no_time_of_their_own(tmp_path):
    together = H100.model_copy(update={"together": 5})
    board = board_of(tmp_path, speed_of(), speed_of(conditions=together))
    row = list(csv.DictReader(io.StringIO(render_costs(board, "csv"))))[1]
    assert row["questions_per_second"] == row["first_token_p50"] == "" and float(row["peak_bytes"]) == 3 * 2**30
    assert "5 cells at once" in render_costs(board, "markdown")


def test_results_without_speed_have_no_columns_of_it(tmp_path):
    text = render_costs(board_of(tmp_path, None, None), "text")
    assert "TTFT" not in text and "Measured on" not in text


def test_a_speed_that_is_no_number_is_named():
    broken = result(speed_of()) | {"schema_version": 2, "id": "x", "samples_bytes": 1}
    broken["speed"]["questions_per_second"] = "fast"
    with pytest.raises(Damage, match=r"speed\.questions_per_second is 'fast'"):
        parse(Result, broken, "result.json")
