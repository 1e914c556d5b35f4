"""Measure a study of guides at equal budgets: `python -m head_study.equal STUDY.yaml --out FOLDER`, from `scripts/`.

Each model's heads are profiled on tuning scenes, then every choice is judged on tuning and on test scenes. Some scenes
at a time are one file; what is there is not done again, and a method, budget or layer that the study names later is
asked alone. On several GPUs or cores, start it several times at once, each with its `--share`.
`python -m head_study.report STUDY.yaml --out FOLDER` writes the tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms.errors import FieldError
from head_study.chunks import measure, rehearse
from head_study.parts import Agenda, read_part
from head_study.profiling import profile
from head_study.study import SPLITS, Study, read_study
from head_study.worlds import VISUAL


def part_file(out: Path, model: str, split: str, scenes: range) -> Path:
    """Where the answers to some scenes are."""
    return out / model / f"{split}-{scenes.start:05d}-{scenes.stop:05d}.npz"


def profile_file(out: Path, model: str, criterion: str) -> Path:
    """Where a model's profile is."""
    return out / model / f"profile-{criterion}.json"


def profile_files(out: Path, model: str, study: Study) -> dict[str, Path]:
    """Where a model's profiles are, by criterion."""
    return {one: profile_file(out, model, one) for one in study.profiles}


def share(text: str) -> tuple[int, int]:
    """`1/4` as which of how many, counted from 0. `FieldError` for what is none."""
    own, _, of = text.partition("/")
    if not (own.isdecimal() and of.isdecimal() and 1 <= int(own) <= int(of)):
        raise FieldError("--share", f"got {text!r}; expected which of how many, such as 1/4", value=text)
    return int(own) - 1, int(of)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", default="1/1", help="1/4: the first of four processes that work at once")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study = read_study(arguments.study)
    own, of = share(arguments.share)
    for name, pretrained in study.models.items():
        run(study, name, pretrained, arguments.out, own, of, arguments.device)


def run(study: Study, name: str, pretrained: str, out: Path, own: int, of: int, device: str) -> None:
    """Every `of`-th part from `own` on, of one model."""
    (out / name).mkdir(parents=True, exist_ok=True)
    model, processor = fp.load_model(pretrained, dtype="float32", device=device)
    _check(study, model, {})  # what cannot reach its budget says so before hours of work
    profiles = profile_files(out, name, study)
    for criterion, file in profiles.items():
        profile(model, processor, study, criterion, pretrained, file)
    _check(study, model, profiles)
    rehearse(model, processor, study, profiles)
    depth = len(model.model.language_model.layers)
    work = [(split, scenes) for split in SPLITS for scenes in study.parts(split)]
    for split, scenes in work[own::of]:
        file = part_file(out, name, split, scenes)
        there = read_part(file, study.identity) if file.exists() else None
        agenda = there.agenda(study, depth, profiles) if there else Agenda.whole(study, depth, profiles)
        if agenda:
            began = time.perf_counter()
            part = measure(model, processor, study, split, scenes, profiles, agenda)
            (there.joined(part) if there else part).save(file, study.identity)
            choices, questions = part.right.shape
            print(f"{file}: {choices} choices, {questions} questions, {time.perf_counter() - began:.0f} s", flush=True)


def _check(study: Study, model: Any, profiles: Mapping[str, Path]) -> None:
    depth = len(model.model.language_model.layers)
    for *_, pruner in study.pruners(profiles):
        pruner.schedule(depth, VISUAL)
    study.drops(depth)


if __name__ == "__main__":
    main()
