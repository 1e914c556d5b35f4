"""Checkpoints that bring code of their own: it is never run, and nobody is asked whether it should be."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.configuration import read_shape
from finepruner_lmms.checkpoints.fetch import DEMO
from finepruner_lmms.errors import FieldError

ROOT = Path(__file__).parents[1]
CODE = """
from pathlib import Path
Path({mark!r}).write_text("it ran")
class Own:
    def __init__(self, *_, **__): ...
    from_pretrained = classmethod(lambda cls, *_, **__: cls())
"""
EVERYTHING = {f"Auto{kind}": "own.Own" for kind in ("Config", "Model", "Processor", "ImageProcessor")}
EVERYTHING |= {"AutoModelForImageTextToText": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
NAMES = {
    "config.json": {"model_type": "own", "architectures": ["Own"]},
    "tokenizer_config.json": {"tokenizer_class": "Own"},
    "preprocessor_config.json": {"image_processor_type": "Own"},
    "processor_config.json": {"processor_class": "Own", "image_processor_type": "Own"},
}


def checkpoint(folder: Path, files: dict[str, dict], mark: Path) -> Path:
    """The demo's, but some files name code, which leaves a mark when it is run."""
    shutil.copytree(DEMO, folder)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    for file, entries in files.items():
        known = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        (folder / file).write_text(json.dumps(known | entries | {"auto_map": EVERYTHING}))
    return folder


def refused(read, folder: Path, file: str) -> None:
    with pytest.raises(FieldError, match=rf"{file}: refused, nothing was run: auto_map asks for code"):
        read(str(folder))


@pytest.mark.parametrize("named", [True, False], ids=["under its own name", "beside the standard one"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_checkpoint_with_code_is_refused_and_the_code_not_run(file, named, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    folder = checkpoint(tmp_path / "c", {file: NAMES[file] if named else {}}, tmp_path / "mark")
    refused(fp.load_model, folder, file)
    if file == "config.json":
        refused(read_shape, folder, file)
    assert not (tmp_path / "mark").exists()


def test_a_part_of_a_configuration_with_code_is_refused(tmp_path):
    raw = json.loads((DEMO / "config.json").read_text())
    raw["text_config"]["auto_map"] = EVERYTHING
    (tmp_path / "config.json").write_text(json.dumps(raw))
    refused(read_shape, tmp_path, "config.json")


def test_the_mark_would_be_left(tmp_path):
    from transformers import AutoConfig

    folder = checkpoint(tmp_path / "c", {"config.json": NAMES["config.json"]}, tmp_path / "mark")
    with pytest.raises(Exception):  # noqa: B017 - its class is none of transformers'
        AutoConfig.from_pretrained(folder, trust_remote_code=True).nothing  # noqa: B018
    assert (tmp_path / "mark").exists()


@pytest.mark.slow
def test_no_command_asks_on_the_terminal_or_runs_code(tmp_path):
    """On a terminal, where transformers would ask, and with `y` typed ahead."""
    folder = checkpoint(tmp_path / "c", NAMES, tmp_path / "mark")
    file = tmp_path / "m.yaml"
    text = f"name: m\nmodel: {{pretrained: {folder}}}\ndata: demo\ntasks: [pope]\nlimit: 2\nmethods: [vanilla]\n"
    file.write_text(text)
    for command in ("plan", "doctor", "run"):
        ours, theirs = pty.openpty()
        os.write(ours, b"y\n" * 20)
        done = subprocess.run(
            [sys.executable, str(ROOT / "run_matrix.py"), command, str(file)],
            stdin=theirs, capture_output=True, text=True, timeout=200, cwd=tmp_path,
        )  # fmt: skip
        os.close(ours), os.close(theirs)
        said = done.stdout + done.stderr
        status = 1 if command == "doctor" else 2  # it goes on, and looks at all else
        assert done.returncode == status and "config.json: refused, nothing was run: auto_map" in said, said
        assert "[y/N]" not in said and not (tmp_path / "mark").exists()
