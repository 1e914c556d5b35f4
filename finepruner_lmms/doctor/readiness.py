"""Whether the data of a task and a checkpoint are ready to be used; nothing is downloaded, no image column read."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.data.hub import in_cache, offline
from finepruner_lmms.data.manifest import check_files, read_manifest
from finepruner_lmms.data.ready import Examined, examine, hub_copies, missing_data
from finepruner_lmms.data.verify import lacking_weights
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.doctor.check import Check
from finepruner_lmms.errors import FieldError, first_line

if TYPE_CHECKING:
    from finepruner_lmms.judge.settings import Judge
    from finepruner_lmms.pruners import Pruner

ROOT = "data"
"""The data root of commands that are proposed where none was named."""
_PATIENCE = 3.0  # seconds for a judge to take the connection
_WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def task_checks(data: str, name: str, submission: bool = False) -> Iterator[Check]:
    """The data of one task: there, of the right size, shape and content, and the first image can be decoded."""
    topic, facts = f"{name} data", FACTS[name]
    if problems := missing_data(data, [name], submission):
        yield from _missing(topic, problems)
    elif data in MINIATURES:
        yield Check(topic, "ok", "the miniature; made when first asked for")
    elif data == "hub":
        if copies := hub_copies(name):
            yield Check(topic, "ok", f"{facts.repo} was loaded before: {copies[0]}")
        else:
            fix = f"to fetch only the split that is evaluated, and then write `data: {ROOT}`"
            command = f"finepruner prepare --data {ROOT} --tasks {name}"
            text = f"{facts.repo} is fetched at the first run, with all its splits"
            yield Check(topic, "warning", text, fix, command)
    else:
        repair = f"finepruner prepare --data {shlex.quote(data)} --tasks {name}"
        for found in examine(Path(data), name, submission):
            place = f"{topic} ({found.table.folder})" if found.table.folder else topic
            if found.problems:
                yield from _missing(place, found.problems, repair)
            else:
                yield _table_check(place, found, facts.source)


def _missing(topic: str, problems: Sequence[DataError], repair: str = "") -> Iterator[Check]:
    for error in problems:
        yield Check(topic, "missing", error.problem, error.fix, "" if error.fix else repair)


def _table_check(topic: str, found: Examined, source: str) -> Check:
    text = f"{found.rows:,} rows in {found.files} file{'s' * (found.files > 1)}"
    if found.picture is not None:
        text += ", first image {}x{}".format(*found.picture)
    if found.table.rows in (None, found.rows):
        return Check(topic, "ok", text)
    fix = "right for a part of the benchmark or a newer version; a score on it is not that of the whole"
    return Check(topic, "warning", f"{text}; {found.table.rows:,} expected ({source})", fix)


def judge_check(judge: Judge | None) -> Check:
    """Who will judge MM-Vet: as the matrix file says, or the environment of a plain lmms-eval run. Nobody is asked."""
    from finepruner_lmms.judge.settings import JudgeServer, from_environment, show_variable

    topic = "mmvet judge"
    try:
        judge = from_environment() if judge is None else judge
        key = judge.key() if isinstance(judge, JudgeServer) else None
    except FieldError as error:  # a matrix file without a judge is refused, so that this is about plain lmms-eval
        fixes = [fix for fix in (error.fix, "in a matrix file: `judge: ...`") if fix]
        return Check(topic, "warning", f"{error.field}: {error.problem}", "; ".join(fixes))
    if not isinstance(judge, JudgeServer):
        return Check(topic, "ok", "answers are judged later" if judge == "later" else "string match")
    about = f"{judge.model} at {judge.url}" + (
        "" if key else f", without a key ({show_variable(judge.key_env)} is not set)"
    )
    url = urlsplit(judge.url)
    try:
        with socket.create_connection((url.hostname, url.port or {"http": 80, "https": 443}[url.scheme]), _PATIENCE):
            return Check(topic, "ok", about)
    except OSError as error:
        fix = "start the server, or judge afterwards: answers are kept"
        return Check(topic, "warning", f"{about}: does not answer ({error})", fix)


def checkpoint_checks(pretrained: str, attention: str) -> Iterator[Check]:
    """Configuration readable, weights there, attention implementation usable. No weights are read."""
    from finepruner_lmms.checkpoints.configuration import read_shape
    from finepruner_lmms.checkpoints.fetch import resolve
    from finepruner_lmms.engine.geometry import Geometry

    folder = Path(resolve(pretrained))
    try:
        geometry = Geometry.of(read_shape(pretrained))
        if folder.is_dir() and (manifest := read_manifest(folder)) is not None:
            check_files(folder, manifest)
    except (ValueError, OSError) as error:
        yield Check("checkpoint", "missing", first_line(error), *_fetch(pretrained, "pretrained"))
        return
    most = "up to " if geometry.varies else ""
    about = f"{geometry.num_layers} layers, {most}{geometry.num_visual_tokens} visual tokens"
    yield _weights(pretrained, folder, about)
    yield _attention(attention)


def clip_checks(pruners: Sequence[Pruner], pretrained: str) -> Iterator[Check]:
    """The CLIP checkpoints by which methods read the question."""
    from finepruner_lmms.checkpoints.configuration import read_shape
    from finepruner_lmms.engine.clip_names import clip_checkpoint
    from finepruner_lmms.engine.geometry import Geometry

    named, config = set(), read_shape(pretrained)
    for pruner in pruners:
        before, _ = pruner.parts(Geometry.of(config).num_visual_tokens)
        if before is not None and before.reads_question == "clip":
            named.add(clip_checkpoint(config, getattr(before, "clip", None)))
    for name in sorted(named):
        yield _weights(name, Path(name), f"CLIP {name}", "clip checkpoint")


def _weights(given: str, folder: Path, about: str, topic: str = "checkpoint") -> Check:
    if folder.is_dir():
        files = [path for form in ("*.safetensors", "*.bin") for path in folder.glob(form)]
        try:
            lacking = lacking_weights(folder)
        except DataError as error:
            return Check(topic, "missing", str(error), "copy it anew")
        if not files or lacking:
            text = f"{folder} lacks its weights{': ' + ', '.join(lacking) if lacking else ''}"
            return Check(topic, "missing", text, "copy it anew")
        return Check(topic, "ok", f"{given}: {about}, {sum(path.stat().st_size for path in files) / 1e9:.2f} GB")
    field = "clip" if topic.startswith("clip") else "pretrained"
    if any(in_cache(given, name) for name in _WEIGHT_FILES):
        return Check(topic, "ok", f"{given}: {about}, in the hub cache")
    if offline():
        text = f"{given}: its weights are not here, and the network is switched off"
        return Check(topic, "missing", text, *_fetch(given, field))
    return Check(topic, "warning", f"{given}: {about}; its weights are fetched at the first run", *_fetch(given, field))


def _fetch(given: str, field: str) -> tuple[str, str]:
    """What to do, and what to type, about a checkpoint that is not here."""
    if Path(given).exists():
        return "", ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        return "give a checkpoint's folder, or its name on the hub (owner/name)", ""
    fix = f"where there is a network, and then write `{field}: {ROOT}/checkpoints/{given}`"
    return fix, f"finepruner prepare --data {ROOT} --checkpoint {given}"


def _attention(name: str) -> Check:
    from transformers import utils

    usable = {
        "flash_attention_2": "is_flash_attn_2_available",
        "flash_attention_3": "is_flash_attn_3_available",
        "flex_attention": "is_torch_flex_attn_available",
    }
    test = getattr(utils, usable.get(name, ""), None)
    if test is None or test():
        return Check("attention", "ok", name)
    return Check("attention", "missing", f"{name} cannot be used here", "attn_implementation: sdpa")
