# ruff: noqa: E501 - a kind of damage a line
"""A small study with true figures, written as a worker writes it, and what can happen to the files of its directory."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies import IDENTITY, cell, method, study

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.judge import mmvet
from finepruner_lmms.matrix.attempts import begin_attempt, write_error
from finepruner_lmms.matrix.judged import assign
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.results import write_answered, write_result
from finepruner_lmms.matrix.store import Store

ROWS = [method("vanilla"), method("fastv", 64), method("uniform", 64)]
TASKS = ("pope", "gqa", "mmvet")


def _cells() -> dict[str, Cell]:
    made = {}
    for task in TASKS:
        for number, row in enumerate(ROWS):
            identity = IDENTITY.model_copy(update={"settings": f"{task}-{number}"})
            made[f"{row.method}-{task}"] = cell(
                identity.id, task, number, row, slug=f"{task}-{row.method}", identity=identity
            )
    return made


CELLS = _cells()
T, OTHER, J, FAILED = CELLS["fastv-gqa"], CELLS["vanilla-gqa"], CELLS["fastv-mmvet"], CELLS["uniform-pope"]
MISSING = [FAILED, CELLS["uniform-gqa"], CELLS["uniform-mmvet"]]
DONE = [one for one in CELLS.values() if one not in MISSING]


def planned() -> Study:
    return assign(study(ROWS, list(CELLS.values())), "exact")


COST = {"questions": 6, "text_tokens": 55.0, "visual_tokens": 64.0, "final_visual_tokens": 30.0}
COST |= {"macs_2": 4.75e8, "macs_3": 5.45e8, "kv_bytes": 1463808.0}


def samples_of(one: Cell) -> list[dict[str, Any]]:
    """Six questions; the more of them right, the smaller the row's number."""
    lines = []
    for number in range(6):
        right = number > one.row * 2 or number == 0
        answer = "yes" if right else "nope"
        if one.task == "pope":
            entry: Any = {"question_id": number, "score": float(right), "prediction": "yes" if right else "no"}
            entry |= {"ground_truth": "yes", "category": ["random", "popular"][number % 2]}
        elif one.task == "mmvet":
            entry = {"question_id": f"v{number}", "question": "?", "gt_answer": "yes", "pred_answer": answer}
            entry |= {"capabilities": ["rec", "rec,ocr"][number % 2]}
        else:
            entry = float(right)
        line = {"doc_id": number, "image": f"i{number // 2}", "target": "yes \u2028 \x85", "answer": answer}
        lines.append(line | {"score": entry})
    return lines


def finish(folder: Path, one: Cell) -> None:
    """What a worker, and where there is one the judge, does for a cell."""
    benchmark, lines = BENCHMARKS[one.task], samples_of(one)
    begin_attempt(folder, "1")
    about = {"id": one.id, "spec": one.spec(), "seconds": 1.5, "answered": 6, "expected": 6, "cost": COST}
    metrics = {}
    if benchmark.judged:
        write_answered(folder, about, lines)
        lines = [line | {"score": line["score"] | {"score": mmvet.exact(line["score"])}} for line in lines]
        metrics = mmvet.totals([line["score"] for line in lines])
        metrics.pop("total")
        about |= {"judge": {"name": "exact"}}
    logged = [line | {benchmark.metric.partition(",")[0]: line["score"]} for line in lines]
    metrics = {benchmark.metric: benchmark.value(logged)} | metrics
    error = benchmark.standard_error(logged, {line["doc_id"]: line["image"] for line in lines})
    write_result(
        folder, about | {"metrics": metrics, "percent": benchmark.percent(logged), "standard_error": error}, lines
    )


def make_store(root: Path) -> Store:
    store = Store(root)
    store.save_study(planned())
    for one in DONE:
        finish(store.cell_dir(one), one)
    begin_attempt(store.cell_dir(FAILED), "1")
    write_error(store.cell_dir(FAILED), "ValueError", "no such picture")
    for kind in ("a", "b"):
        entry = {"task": "fp_gqa", "doc_id": 0, "layer": 1, "heads": [1, 2], "kind": kind}
        (store.cell_dir(T) / "selections-rank0.jsonl").write_text(json.dumps(entry) + "\n")
    launch = store.root / "launches" / "1"
    launch.mkdir(parents=True)
    for name in ("plan.json", "events.jsonl", "log.txt"):
        (launch / name).write_text("{}\n")
    return store


# -- kinds of damage --------------------------------------------------------------------------------------------------

Place = Callable[[Path], Path]


@dataclass(frozen=True)
class Kind:
    """`harms` are the cells that it makes not done, named by a text with `says` in it."""

    name: str
    do: Callable[[Path], None]
    harms: tuple[Cell, ...] = ()
    says: str = ""


def folder(root: Path, one: Cell) -> Path:
    return root / "cells" / one.folder


def at(one: Cell, name: str) -> Place:
    return lambda root: folder(root, one) / name


def in_root(name: str) -> Place:
    return lambda root: root / name


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    make(path)


def _unreadable(path: Path) -> None:
    path.chmod(0)


def _same_time(path: Path, content: bytes) -> None:
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


NOISE = random.Random(0).randbytes(4096)
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "NUL": lambda content: b"\0" * len(content),
    "random bytes": lambda content: (NOISE * (1 + len(content) // 4096))[: len(content)],
    "Latin-1": lambda content: b'{"a": "\xe9"}',
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "a list": lambda content: b"[]",
    "a text": lambda content: b'"text"',
    "null": lambda content: b"null",
    "an empty object": lambda content: b"{}",
    "deep lists": lambda content: b"[" * 200_000,
    "deep objects": lambda content: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a long number": lambda content: b'{"id": ' + b"9" * 5000 + b"}",
    "a text behind it": lambda content: content + b"{}",
}
OBJECTS: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a fifo": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
}


def content(place: Place, how: str, harms: tuple[Cell, ...], says: str) -> Kind:
    def do(root: Path) -> None:
        path = place(root)
        path.write_bytes(BYTES[how](path.read_bytes()))

    return Kind(f"{place(Path('/')).name}: {how}", do, harms, says)


def thing(place: Place, how: str, harms: tuple[Cell, ...], says: str) -> Kind:
    return Kind(
        f"{place(Path('/')).name}: {how} in its place", lambda root: _replace(place(root), OBJECTS[how]), harms, says
    )


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """With a checksum that is right, as a forger who reads this package makes it."""
    try:
        from finepruner_lmms.matrix.results import checksum
    except ImportError:
        return value
    return value | {"checksum": checksum(value)}


def edit(
    name: str, change: Callable[[dict[str, Any]], Any], says: str, seal: bool = False, of: Cell = T, file: str = "result.json",
    harms: tuple[Cell, ...] | None = None,
) -> Kind:  # fmt: skip
    def do(root: Path) -> None:
        path = folder(root, of) / file
        value = json.loads(path.read_text())
        changed = change(value) or value
        path.write_text(json.dumps(sealed(changed) if seal else changed, ensure_ascii=False, indent=1))

    return Kind(f"{file}: {name}", do, (of,) if harms is None else harms, says)


def text(name: str, change: Callable[[str], str], says: str, of: Cell = T, file: str = "result.json") -> Kind:
    def do(root: Path) -> None:
        path = folder(root, of) / file
        before = path.read_text()
        after = change(before)
        assert after != before
        path.write_text(after)

    return Kind(f"{file}: {name}", do, (of,), says)


def forged_lines(name: str, change: Callable[[list[dict[str, Any]]], Any], says: str, of: Cell = T) -> Kind:
    """The samples changed, and size, sha256 and checksum in the result made to fit."""

    def do(root: Path) -> None:
        import hashlib

        samples, result = folder(root, of) / "samples.jsonl", folder(root, of) / "result.json"
        lines = [json.loads(line) for line in samples.read_text().split("\n") if line]
        lines = change(lines) or lines
        written = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines).encode()
        samples.write_bytes(written)
        about = json.loads(result.read_text())
        about |= {"samples_bytes": len(written), "samples_sha256": hashlib.sha256(written).hexdigest()}
        result.write_text(json.dumps(sealed(about)))

    return Kind(f"samples.jsonl, and its sha256 in result.json: {name}", do, (of,), says)


def study_edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Kind:
    def do(root: Path) -> None:
        path = root / "matrix.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps(change(value) or value))

    return Kind(f"matrix.json: {name}", do)


def _swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _swapped(names: tuple[str, ...], ids: bool = False) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        one, other = folder(root, T), folder(root, OTHER)
        for name in names:
            _swap(one / name, other / name)
        for place, of in ((one, T), (other, OTHER)) if ids else ():
            value = json.loads((place / "result.json").read_text())
            (place / "result.json").write_text(json.dumps(sealed(value | {"id": of.id})))

    return do


def _set(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda value: value | changes


def _flip(lines: list[dict[str, Any]]) -> None:
    lines[3]["score"] = 1.0 - lines[3]["score"]


RESULT, SAMPLES = at(T, "result.json"), at(T, "samples.jsonl")
BOTH = (T, OTHER)
KINDS: list[Kind] = [
    *(content(RESULT, how, (T,), "result.json") for how in BYTES),
    *(thing(RESULT, how, (T,), "result.json") for how in OBJECTS),
    Kind("result.json: not to be read", lambda root: _unreadable(RESULT(root)), (T,) if os.getuid() else (), "result.json" if os.getuid() else ""),
    Kind("result.json: 70 MB of blanks", lambda root: RESULT(root).write_bytes(b" " * 70_000_000), (T,), "result.json"),
    *(
        text(f"percent is {value[:12]}", lambda s, v=value: s.replace('"percent": ', f'"percent": {v}, "p": '), "percent")
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, '"83"', "true", "null", "[83]", "{}")
    ),
    text("metrics hold a huge number", lambda s: s.replace('"exact_match,none": ', f'"exact_match,none": {"9" * 400}, "p": '), "metrics"),
    text("percent twice, first forged", lambda s: s.replace('"percent": ', '"percent": 99.0, "percent": '), "twice"),
    text("percent twice, last forged", lambda s: s.replace('"standard_error": ', '"percent": 99.0, "standard_error": '), "twice"),
    edit("metrics are a list", _set(metrics=[1]), "metrics"),
    edit("metrics are null", _set(metrics=None), "metrics"),
    edit("cost is a text", _set(cost="much"), "cost"),
    edit("cost lacks a count, sealed", _set(cost={"questions": 6}), "", seal=True, harms=()),
    edit("speed is a list", _set(speed=[1]), "speed"),
    edit("spec is a text", _set(spec="gqa"), "spec"),
    edit("answered is a text", _set(answered="six"), "answered"),
    edit("fewer answered", _set(answered=5), "5 of 6"),
    edit("another number of questions", _set(answered=7, expected=7), "checksum"),
    edit("another number of questions, sealed", _set(answered=7, expected=7), "7", seal=True),
    edit("forged percent", _set(percent=99.0), "checksum"),
    edit("forged percent, sealed", _set(percent=99.0), "percent is 99.0", seal=True),
    edit("forged metric", _set(metrics={"exact_match,none": 0.99}), "checksum"),
    edit("forged metric, sealed", _set(metrics={"exact_match,none": 0.99}), "exact_match,none is 0.99", seal=True),
    edit("forged error", _set(standard_error=0.01), "checksum"),
    edit("forged error, sealed", _set(standard_error=0.01), "standard_error is 0.01", seal=True),
    edit("no error, sealed", _set(standard_error=None), "standard_error is None", seal=True),
    edit("forged percent and metric, sealed", _set(metrics={"exact_match,none": 1.0}, percent=100.0), "is 1.0", seal=True),
    edit("forged cost", _set(cost=COST | {"macs_2": 1.0}), "checksum"),
    edit("forged time", _set(seconds=0.1), "checksum"),
    edit("forged checksum", _set(checksum="0" * 64), "checksum"),
    edit("checksum is a number", _set(checksum=1), "checksum"),
    edit("no checksum", lambda value: {k: v for k, v in value.items() if k != "checksum"}, "checksum"),
    edit("no checksum, of an older schema, forged", lambda value: {k: v for k, v in value.items() if k != "checksum"} | {"schema_version": 2, "percent": 99.0}, "percent is 99.0"),
    edit("another id", _set(id="0" * 12), "000000000000"),
    edit("another id, sealed", _set(id="0" * 12), "000000000000", seal=True),
    edit("another identity, sealed", lambda value: value | {"spec": value["spec"] | {"identity": value["spec"]["identity"] | {"dtype": "float32"}}}, "identity", seal=True),
    edit("another task, sealed", lambda value: value | {"spec": value["spec"] | {"task": "pope"}}, "task", seal=True),
    edit("schema of the future", _set(schema_version=99), "schema"),
    edit("schema is a text", _set(schema_version="x"), "schema"),
    Kind("result.json: swapped between cells", _swapped(("result.json",)), BOTH, "result.json"),
    Kind("samples.jsonl: swapped between cells", _swapped(("samples.jsonl",)), BOTH, "samples.jsonl"),
    Kind("result.json and samples.jsonl: swapped", _swapped(("result.json", "samples.jsonl")), BOTH, "result.json"),
    Kind("all swapped, ids forged and sealed", _swapped(("result.json", "samples.jsonl"), ids=True), BOTH, "identity"),
    *(content(SAMPLES, how, (T,), "samples.jsonl") for how in ("truncated", "one byte short", "empty", "NUL", "random bytes", "UTF-16", "deep lists", "a text behind it")),
    *(thing(SAMPLES, how, (T,), "samples.jsonl") for how in OBJECTS),
    Kind("samples.jsonl: gone", lambda root: SAMPLES(root).unlink(), (T,), "samples.jsonl"),
    text("a score flipped", lambda s: s.replace('"score": 1.0', '"score": 0.0', 1), "samples.jsonl", file="samples.jsonl"),
    text("a score is NaN", lambda s: s.replace('"score": 1.0', '"score": NaN', 1), "samples.jsonl", file="samples.jsonl"),
    text("an answer edited", lambda s: s.replace('"answer": "yes"', '"answer": "yeS"', 1), "samples.jsonl", file="samples.jsonl"),
    text("its lines in another order", lambda s: "\n".join(s.split("\n")[-2::-1]) + "\n", "samples.jsonl", file="samples.jsonl"),
    Kind("samples.jsonl: edited, its time as before", lambda root: _same_time(SAMPLES(root), SAMPLES(root).read_bytes().replace(b'"score": 1.0', b'"score": 0.0')), (T,), "samples.jsonl"),
    forged_lines("a score flipped", _flip, "samples give"),
    forged_lines("a line twice", lambda lines: [*lines[:-1], lines[0]], "doc_id"),
    forged_lines("a line less", lambda lines: lines[:-1], "5"),
    forged_lines("scores are lists", lambda lines: [line | {"score": [1]} for line in lines], "scored"),
    forged_lines("scores are huge", lambda lines: [line | {"score": 10**400} for line in lines], "scored"),
    forged_lines("scores are NaN", lambda lines: [line | {"score": float("nan")} for line in lines], "samples give"),
    forged_lines("no images", lambda lines: [{k: v for k, v in line.items() if k != "image"} for line in lines], "image"),
    forged_lines("lines are numbers", lambda lines: [1] * 6, "scored"),
    forged_lines("judged score flipped", lambda lines: [line | {"score": line["score"] | {"score": 1.0}} for line in lines], "samples give", of=J),
    edit("judged totals forged, sealed", lambda value: value | {"metrics": value["metrics"] | {"ocr": 99.0}}, "ocr is 99.0", seal=True, of=J),
    edit("judge forged", _set(judge={"name": "gpt-4"}), "checksum", of=J),
    edit("judge is a list", _set(judge=[]), "judge", of=J),
    *(content(at(J, "answered.json"), how, (), "") for how in ("truncated", "empty", "a list", "deep lists", "NUL")),
    *(thing(at(J, "answered.json"), how, (), "") for how in ("a folder", "a fifo", "a dangling link")),
    edit("forged", _set(answered=1), "", of=J, file="answered.json", harms=()),
    *(content(at(J, "answers.jsonl"), how, (), "") for how in ("truncated", "NUL")),
    *(content(at(T, "status.json"), how, (), "") for how in ("truncated", "empty", "a list", "an empty object", "NUL", "deep lists")),
    *(thing(at(T, "status.json"), how, (), "") for how in OBJECTS),
    *(content(at(FAILED, "error.json"), how, (), "error.json") for how in ("truncated", "empty", "a list", "an empty object", "NUL", "deep objects", "a long number")),
    *(thing(at(FAILED, "error.json"), how, (), "error.json") for how in ("a folder", "a fifo")),
    edit("message is a list", _set(message=[]), "error.json", of=FAILED, file="error.json", harms=()),
    *(content(in_root("matrix.json"), how, (), "") for how in BYTES),
    *(thing(in_root("matrix.json"), how, (), "") for how in OBJECTS),
    study_edit("rows swapped", lambda value: value["rows"].reverse()),
    study_edit("a budget edited", lambda value: value["rows"][1].update(budget=32)),
    study_edit("visual tokens edited", lambda value: value.update(num_visual_tokens=64)),
    study_edit("ids swapped", lambda value: [c.update(id=o) for c, o in zip(value["cells"], [c["id"] for c in reversed(value["cells"])], strict=True)] and None),
    study_edit("a row that is not there", lambda value: value["cells"][0].update(row=7)),
    study_edit("a row of text", lambda value: value["cells"][0].update(row="x")),
    study_edit("an unknown task", lambda value: value["cells"][0].update(task="chess")),
    study_edit("no cells", lambda value: value.update(cells=[])),
    study_edit("no rows", lambda value: value.update(rows=[])),
    Kind("a cell's folder: a file in its place", lambda root: _replace(folder(root, T), lambda path: path.write_text("x")), (T,), "folder"),
    Kind("a cell's folder: a dangling link in its place", lambda root: _replace(folder(root, T), lambda path: path.symlink_to("nowhere")), (T,), "folder"),
    Kind("a cell's folder: gone", lambda root: shutil.rmtree(folder(root, T)), (T,), "missing"),
    Kind("cells: a file in its place", lambda root: _replace(root / "cells", lambda path: path.write_text("x")), tuple(DONE), "cells"),
    Kind("cells: a stray file", lambda root: (root / "cells" / "notes.txt").write_text("x")),
    Kind("cells: a stray fifo", lambda root: os.mkfifo(root / "cells" / "pipe")),
    Kind("cells: a second folder with the id", lambda root: shutil.copytree(folder(root, T), root / "cells" / f"copy-{T.id}")),
    Kind("cells: another cell's damaged result", lambda root: ((root / "cells" / "x-123").mkdir(), (root / "cells" / "x-123" / "result.json").mkdir())),
    Kind("cells: another cell's endless result", lambda root: ((root / "cells" / "x-123").mkdir(), (root / "cells" / "x-123" / "result.json").symlink_to("/dev/zero"))),
    *(content(in_root("launches/1/events.jsonl"), how, (), "") for how in ("NUL", "deep lists")),
    content(in_root("launches/1/plan.json"), "NUL", (), ""),
    Kind("selections: half a line", lambda root: at(T, "selections-rank0.jsonl")(root).write_text('{"task": "fp_gqa", "doc')),
    Kind("selections: NUL", lambda root: at(T, "selections-rank0.jsonl")(root).write_bytes(b"\0" * 100)),
    Kind("selections: not UTF-8", lambda root: at(T, "selections-rank0.jsonl")(root).write_bytes(b"\xff\xfe\n")),
    Kind("selections: another shape", lambda root: at(T, "selections-rank0.jsonl")(root).write_text('[]\n{"task": 1}\n1\n')),
    Kind("selections: heads are texts", lambda root: at(T, "selections-rank0.jsonl")(root).write_text('{"task": "fp_gqa", "doc_id": 0, "layer": 1, "heads": ["x"], "qualities": 3}\n')),
    Kind("selections: deep lists", lambda root: at(T, "selections-rank0.jsonl")(root).write_text("[" * 200_000 + "\n")),
    Kind("selections: a folder", lambda root: _replace(at(T, "selections-rank0.jsonl")(root), OBJECTS["a folder"])),
    Kind("selections: a fifo", lambda root: _replace(at(T, "selections-rank0.jsonl")(root), OBJECTS["a fifo"])),
    Kind("judgements.jsonl: NUL", lambda root: (root / "judgements.jsonl").write_bytes(b"\0" * 99 + b"\n")),
    Kind("judgements.jsonl: a folder", lambda root: (root / "judgements.jsonl").mkdir()),
    Kind("verified.json: NUL", lambda root: at(T, "verified.json")(root).write_bytes(b"\0" * 99)),
    Kind("verified.json: a folder", lambda root: _replace(at(T, "verified.json")(root), OBJECTS["a folder"])),
    Kind("verified.json: a fifo", lambda root: _replace(at(T, "verified.json")(root), OBJECTS["a fifo"])),
    Kind("verified.json: another shape", lambda root: at(T, "verified.json")(root).write_text('{"result.json": [1]}')),
]  # fmt: skip
