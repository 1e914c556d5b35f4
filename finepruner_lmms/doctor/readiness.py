"""Whether the data of a task and a checkpoint are ready to be used; nothing is downloaded, and no table read whole."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finepruner_lmms.benchmarks.submission import SERVED, TEST
from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.data.hub import in_cache, offline
from finepruner_lmms.data.manifest import check_files, check_task, read_manifest
from finepruner_lmms.data.verify import check_table, first_image, footer, lacking_weights
from finepruner_lmms.doctor.check import Check

if TYPE_CHECKING:
    from finepruner_lmms.judge.settings import Judge
    from finepruner_lmms.pruners import Pruner

_PATIENCE = 3.0  # seconds for a judge to take the connection
_DEMO = ("demo", "demo-tuning")
_WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def missing_data(data: str, tasks: Sequence[str], submission: bool = False) -> list[str]:
    """Why tasks cannot be run on `data`, a line a task that cannot; empty if all can. Only sizes are looked at.

    With `submission`, those that a server scores need the questions of their test split instead.
    """
    problems = []
    for name in tasks:
        if data == "hub":
            if offline() and not hub_copies(name):
                problems.append(
                    f"data: {name}: {FACTS[name].repo} was never loaded here, and the network is switched off "
                    "(HF_HUB_OFFLINE); prepare a data root where there is a network, and give it as data"
                )
        elif data not in _DEMO and submission and name in SERVED:
            if not any((folder := Path(data) / name / TEST).glob("*.parquet")):
                problems.append(f"data: {folder} holds no .parquet files; put the questions of the test split there")
        elif data not in _DEMO:
            try:
                check_task(Path(data), name, tuple(table.folder for table in FACTS[name].tables))
            except DataError as error:
                problems.append(str(error))
    return problems


def task_checks(data: str, name: str, submission: bool = False) -> Iterator[Check]:
    """The data of one task: there, of the right size and shape, and the first image can be decoded."""
    topic, facts = f"{name} data", FACTS[name]
    if problems := missing_data(data, [name], submission):
        text, _, fix = problems[0].partition("; ")
        yield Check(topic, "missing", text, fix)
    elif data in _DEMO:
        yield Check(topic, "ok", "the miniature; made when first asked for")
    elif data == "hub":
        if copies := hub_copies(name):
            yield Check(topic, "ok", f"{facts.repo} was loaded before: {copies[0]}")
        else:
            fix = f"finepruner prepare --data ROOT --tasks {name} fetches only the split that is evaluated"
            yield Check(topic, "warning", f"{facts.repo} is fetched at the first run, with all its splits", fix)
    elif submission and name in SERVED:
        yield _test_check(Path(data) / name / TEST, topic)
    else:
        yield from _root_checks(Path(data), name)


def _root_checks(root: Path, name: str) -> Iterator[Check]:
    facts, folder = FACTS[name], root / name
    repair = f"finepruner prepare --data {root} --tasks {name}"
    for table in facts.tables:
        topic = f"{name} data" + (f" ({table.folder})" if table.folder else "")
        files = sorted((folder / table.folder).glob("*.parquet"))
        try:
            rows = sum(check_table(files, table, f"{name}/{table.folder}".rstrip("/")).values())
            sizes = [first_image(files[0], column) for column in table.images]
        except DataError as error:
            yield Check(topic, "missing", str(error), repair)
            continue
        picture = "".join(f", first image {width}x{height}" for width, height in sizes)
        text = f"{rows:,} rows in {len(files)} file{'s' * (len(files) > 1)}{picture}"
        if rows == table.rows:
            yield Check(topic, "ok", text)
        else:
            fix = "right for a part of the benchmark or a newer version; a score on it is not that of the whole"
            yield Check(topic, "warning", f"{text}; {table.rows:,} expected ({facts.source})", fix)


def _test_check(folder: Path, topic: str) -> Check:
    """The questions of a submission; how many there must be is not known here."""
    try:
        rows = sum(footer(path)[0] for path in folder.glob("*.parquet"))
    except DataError as error:
        return Check(topic, "missing", str(error), "put the file there anew")
    return Check(topic, "ok", f"{rows:,} questions of the test split")


def judge_check(judge: Judge | None) -> Check:
    """Who will judge MM-Vet: as the matrix file says, or the environment of a plain lmms-eval run. Nobody is asked."""
    from finepruner_lmms.judge.settings import JudgeServer, from_environment

    topic = "mmvet judge"
    try:
        judge = from_environment() if judge is None else judge
        key = judge.key() if isinstance(judge, JudgeServer) else None
    except ValueError as error:  # a matrix file without a judge is refused, so that this is about plain lmms-eval
        text, _, fix = str(error).partition("; ")
        return Check(topic, "warning", text, f"{fix}; in a matrix file: `judge: ...`")
    if not isinstance(judge, JudgeServer):
        return Check(topic, "ok", "answers are judged later" if judge == "later" else "string match")
    about = f"{judge.model} at {judge.url}" + ("" if key else f", without a key ({judge.key_env} is not set)")
    url = urlsplit(judge.url)
    try:
        with socket.create_connection((url.hostname, url.port or {"http": 80, "https": 443}[url.scheme]), _PATIENCE):
            return Check(topic, "ok", about)
    except OSError as error:
        fix = "start the server, or judge afterwards: answers are kept"
        return Check(topic, "warning", f"{about}: does not answer ({error})", fix)


def checkpoint_checks(pretrained: str, attention: str) -> Iterator[Check]:
    """Configuration readable, weights there, attention implementation usable. No weights are read."""
    from finepruner_lmms.checkpoints.load import read_config, resolve
    from finepruner_lmms.engine.geometry import Geometry

    folder = Path(resolve(pretrained))
    try:
        geometry = Geometry.of(read_config(pretrained))
        if folder.is_dir() and (manifest := read_manifest(folder)) is not None:
            check_files(folder, manifest)
    except ValueError as error:
        fix = "finepruner prepare --data ROOT --checkpoint OWNER/NAME, then pretrained: ROOT/checkpoints/OWNER/NAME"
        yield Check("checkpoint", "missing", str(error), fix)
        return
    about = f"{geometry.num_layers} layers, {geometry.num_visual_tokens} visual tokens"
    yield _weights(pretrained, folder, about)
    yield _attention(attention)


def clip_checks(pruners: Sequence[Pruner], pretrained: str) -> Iterator[Check]:
    """The CLIP checkpoints by which methods read the question."""
    from finepruner_lmms.checkpoints.load import read_config
    from finepruner_lmms.engine.clip import clip_checkpoint
    from finepruner_lmms.engine.geometry import Geometry

    named, config = set(), read_config(pretrained)
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
            return Check(topic, "missing", str(error), "fetch it anew: finepruner prepare --checkpoint")
        if not files or lacking:
            text = f"{folder} lacks its weights{': ' + ', '.join(lacking) if lacking else ''}"
            return Check(topic, "missing", text, "copy it anew, or fetch it: finepruner prepare --checkpoint")
        return Check(topic, "ok", f"{given}: {about}, {sum(path.stat().st_size for path in files) / 1e9:.2f} GB")
    if any(in_cache(given, name) for name in _WEIGHT_FILES):
        return Check(topic, "ok", f"{given}: {about}, in the hub cache")
    fix = f"finepruner prepare --data ROOT --checkpoint {given}"
    if offline():
        return Check(topic, "missing", f"{given}: its weights are not here, and the network is switched off", fix)
    return Check(topic, "warning", f"{given}: {about}; its weights are fetched at the first run", fix)


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


def datasets_cache() -> Path:
    """Where lmms-eval keeps the Arrow copies of tables (on a network file system it may choose a local disk)."""
    if named := os.environ.get("LMMS_EVAL_DATASETS_CACHE", "").strip():
        return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.path.expandvars(os.environ.get("HF_DATASETS_CACHE", f"{home}/datasets"))).expanduser()


def hub_copies(name: str) -> list[Path]:
    """The folders in which `datasets` has a benchmark from the hub for use without network; empty unless all of it."""
    from datasets.naming import camelcase_to_snakecase

    facts, found = FACTS[name], []
    owner, _, repo = facts.repo.partition("/")
    for table in facts.tables:
        config = table.folder or facts.config or "default"
        folder = datasets_cache() / f"{owner}___{camelcase_to_snakecase(repo)}" / config
        copies = sorted(path.parent for path in folder.glob("*/*/dataset_info.json"))
        if not copies:
            return []
        found.append(copies[-1])
    return found
