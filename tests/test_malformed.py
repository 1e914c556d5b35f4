"""Sixty wrong matrix files and sixty wrong `model_args`: each one line that names place, field and way out."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from malformed_matrices import GOOD, MALFORMED
from typer.testing import CliRunner

from finepruner_lmms.cli import app
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


def test_there_are_enough():
    assert len(MALFORMED) >= 60


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
