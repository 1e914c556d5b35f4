"""Sixty wrong matrix files and sixty wrong `model_args`: each one line that names place, field and way out."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import malformed_arguments
import pytest
from malformed_matrices import GOOD, MALFORMED
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.data.task_folders import overrides_dir
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms import command_line
from finepruner_lmms.lmms.command_line import read_arguments
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.matrix.config import load_matrix

SECONDS = 20
"""Each takes some milliseconds; what multiplies without a bound would take for ever."""


def write(folder: Path, old: str, new: str | bytes) -> Path:
    assert GOOD.count(old) == 1, old
    new = new if isinstance(new, bytes) else new.encode()
    (folder / "m.yaml").write_bytes(GOOD.encode().replace(old.encode(), new))
    return folder / "m.yaml"


def test_the_matrix_that_they_are_made_of_is_right(tmp_path):
    assert len(load_matrix(write(tmp_path, "limit: 8", "limit: 16")).rows) == 3


def test_there_are_sixty_of_each():
    assert len(MALFORMED) >= 60 and len({text for text, *_ in malformed_arguments.MALFORMED}) >= 60


@pytest.mark.parametrize("name", MALFORMED)
def test_a_wrong_matrix_is_one_line_with_its_place_and_field(name, tmp_path):
    old, new, place, field, words = MALFORMED[name]
    file, begun = write(tmp_path, old, new), time.monotonic()
    done = CliRunner().invoke(app, ["plan", str(file)])
    assert time.monotonic() - begun < SECONDS
    assert (done.exit_code, done.stdout) == (2, ""), done
    assert re.fullmatch(r"[^\n]+\n", done.stderr), done.stderr
    assert done.stderr.startswith(f"{file}:{place}"), done.stderr
    where, _, said = done.stderr.removeprefix(f"{file}:").partition(": ")
    assert re.fullmatch(r"\d+:\d+", where), done.stderr
    assert said.startswith(f"{field}: ") if field else True, done.stderr
    assert words in said, done.stderr
    assert said.isprintable() or said.rstrip("\n").isprintable()


def test_several_mistakes_are_a_line_each_and_very_many_are_counted(tmp_path):
    file = write(tmp_path, "- vanilla", "- vanila")
    file.write_text(file.read_text().replace("mme]", "mne]").replace("limit: 8", "limit: 1"))
    done = CliRunner().invoke(app, ["plan", str(file)])
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [
        f"{file}:{place}" for place in ("4:15", "7:5")
    ]
    done = CliRunner().invoke(app, ["plan", str(write(tmp_path, "[192, 64]", str(list(range(-500, 0)))))])
    lines = done.stderr.splitlines()
    assert len(lines) == 51 and lines[-1] == f"{file}: and 450 more mistakes"


# -- model_args -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, field, words", malformed_arguments.MALFORMED)
def test_a_wrong_model_argument_is_one_line_with_its_field(text, field, words):
    with pytest.raises(FieldError) as error:
        ModelArguments.parse(read_arguments(text, {"batch_size": "1", "device": None}))
    assert error.value.field == field
    said = str(error.value)
    assert said.startswith(f"{field}: ") and words in said and said.isprintable() and len(said) < 1500, said


def test_options_of_lmms_eval_and_model_args_say_one_thing():
    def read(text: str, **options: object) -> ModelArguments:
        return ModelArguments.parse(read_arguments(text, options))

    assert read("batch_size=8", batch_size="1", max_batch_size=None).batch_size == 8  # lmms-eval says 1 of itself
    assert read("batch_size=8", batch_size="8").batch_size == read("", batch_size="8").batch_size == 8
    with pytest.raises(FieldError, match=r"^batch_size: got 8 in --model_args, but --batch_size says '4'; give one of"):
        read("batch_size=8", batch_size="4")
    with pytest.raises(FieldError, match=r"^device: got 'cpu' in --model_args, but --device says 'cuda'"):
        read("device=cpu", device="cuda")


def test_whoever_calls_lmms_eval_as_a_library_gets_the_error(monkeypatch, capsys):
    with pytest.raises(FieldError, match=r"^method: unknown method"):
        LlavaFinePruner.create_from_arg_string("pretrained=demo,method=fastvv")
    monkeypatch.setattr(command_line, "_is_command_line", lambda: True)
    with pytest.raises(SystemExit) as end:
        LlavaFinePruner.create_from_arg_string("pretrained=demo,method=fastvv")
    assert end.value.code == 2
    assert re.fullmatch("method: unknown method 'fastvv'[^\n]+\n", capsys.readouterr().err)


@pytest.mark.slow
def test_lmms_eval_itself_ends_with_one_line_and_status_two():
    """Over a value that only the checkpoint can refuse."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_finepruner", "--tasks", "fp_pope"]
    command += ["--include_path", str(overrides_dir())]
    command += ["--model_args", "pretrained=demo,method=finepruner,budget=64,heads=9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)  # as long where much else is done
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = "heads: got 9; the layers of this model have 8 query"
    assert sum(one.startswith(line) for one in done.stderr.splitlines()) == 1, done.stderr
