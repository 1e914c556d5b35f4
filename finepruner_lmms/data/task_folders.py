"""The lmms-eval tasks `fp_<name>`: one YAML each, for the hub's data, a data root, or the miniature benchmarks.

`tasks_overrides/` holds the YAML files for the hub. For other data, and under a limit, a small folder is written whose
files include these and change nothing but where the data is and which questions are asked.
"""

from __future__ import annotations

import glob
import hashlib
import math
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol, protocol_lines
from finepruner_lmms.benchmarks.submission import SERVED, TEST, task_lines
from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import FACTS, tables
from finepruner_lmms.data.manifest import check_task, read_manifest
from finepruner_lmms.demo.root import MINIATURES, miniatures
from finepruner_lmms.errors import FieldError, check_integer
from finepruner_lmms.files import cache_dir, publish_folder

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
_PACKAGE = Path(__file__).parents[1]


def overrides_dir(package: Path = _PACKAGE) -> Path:
    """The folder of the hub's tasks: inside the installed package, or beside it in a checkout."""
    inside = package / "tasks_overrides"
    return inside if inside.is_dir() else package.parent / "tasks_overrides"


def available_tasks() -> list[str]:
    """The benchmarks that have a task, by name."""
    return sorted(file.stem.removeprefix("fp_") for file in overrides_dir().glob("fp_*.yaml"))


def folder(data: str, submission: bool = False, limit: int | None = None, protocol: Protocol = LLAVA) -> Path:
    """The folder to pass to lmms-eval's `--include_path`, so that the tasks read `data`.

    `hub`: the public datasets; `demo`, `demo-hard`: the easy and the demanding miniature benchmarks (`demo-tuning`,
    `demo-hard-tuning`: the same on the tuning scenes); anything else: a data root, with one folder per benchmark.
    Miniatures are made when first asked for. `DataError` if there is no such root, or a benchmark in it is not whole.

    With `submission`, the tasks that only a server scores read their test split (in a data root: the folder `test`
    of the benchmark's; miniatures have but one) and write the file that the server takes. The others stay as they are.

    With `limit`, each task asks at most so many questions, chosen as `benchmarks.limits` says. `protocol` says by whose
    rules answers are scored (`benchmarks.protocol`).
    """
    if limit is not None:
        check_integer("limit", limit, 1)
        if submission:
            raise FieldError(
                "limit", f"got {limit}; a submission needs every question", value=limit, fix="leave it out"
            )
    if data == "hub":
        if not submission and limit is None and protocol == LLAVA:
            return overrides_dir()
        return _write(_Tasks(available_tasks(), None, SERVED if submission else (), limit=limit, protocol=protocol))
    if data in MINIATURES:
        files = miniatures(data)
        return _write(_Tasks(available_tasks(), files, SERVED if submission else (), "", limit, protocol))
    root = Path(data)
    if not root.is_dir():
        raise DataError("data", f"{data!r} is neither 'hub', 'demo' nor an existing folder", value=data)
    if "::" in str(root.resolve()):
        problem = f"{data!r} has '::' in its path, which `datasets` takes for an archive"
        raise DataError("data", problem, value=data, fix="rename the folder")
    if found := _VARIABLE.search(str(root.resolve())):  # another folder's data would be read
        problem = f"{data!r} has {found[0]!r} in its path, in whose place `datasets` puts the value of a variable"
        raise DataError("data", problem, value=data, fix="rename the folder")
    present = [name for name in available_tasks() if (root / name).is_dir()]
    scored = [name for name in present if not _only_test(root / name)]
    for name in scored:
        check_task(root, name, tables(name))
    if not (present if submission else scored):
        problem = f"{data!r} holds none of the folders {', '.join(available_tasks())}"
        raise DataError(
            "data", problem, value=data, fix=f"`finepruner prepare --data {shlex.quote(data)}` fetches them"
        )
    if not submission:
        return _write(_Tasks(scored, root.resolve(), limit=limit, protocol=protocol))
    served = [name for name in SERVED if (root / name / TEST).is_dir()]
    if not served:
        raise DataError("data", f"{data!r} holds no folder {TEST} in any of {', '.join(SERVED)}", value=data)
    # one without its test questions is left out, lest the scored split be taken for it
    names = [name for name in present if (name in served if name in SERVED else name in scored)]
    return _write(_Tasks(names, root.resolve(), served, protocol=protocol))


def data_root(data: str) -> Path | None:
    """The folder that holds the data itself; `None` where it comes from the hub."""
    if data == "hub":
        return None
    return miniatures(data) if data in MINIATURES else Path(data).resolve()


def _only_test(folder: Path) -> bool:
    """Whether a benchmark's folder holds nothing but the questions of a submission."""
    return (folder / TEST).is_dir() and not any(folder.glob("*.parquet")) and read_manifest(folder) is None


@dataclass(frozen=True)
class _Tasks:
    """Tasks `names` that read `root` (None: the hub), of which those `served` write submissions.

    `below` is where a benchmark's test questions are, beside those with answers.
    """

    names: Sequence[str]
    root: Path | None
    served: Collection[str] = ()
    below: str = TEST
    limit: int | None = None
    protocol: Protocol = LLAVA

    def files(self) -> dict[str, str]:
        """Name and text of each file of the folder."""
        return {f"fp_{name}.yaml": self._yaml(name) for name in self.names} | self._modules()

    def _yaml(self, name: str) -> str:
        """A task that is the hub's but for its data. (The merge of `include` is shallow: whole keys are replaced.)"""
        served = name in self.served
        settings: dict[str, Any] = {"include": str(overrides_dir() / f"fp_{name}.yaml"), "task": f"fp_{name}"}
        functions = []
        if self.root is not None:
            place = (
                self.root / name / ("testdev_balanced_instructions" if name == "gqa" else self.below if served else "")
            )
            files = {TEST if served else FACTS[name].split: _tables(place)}
            settings |= {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
            if name == "gqa":
                functions.append("doc_to_visual: !function fp_gqa_images.visual")
        if self.limit is not None:
            functions.append(f"process_docs: !function fp_limit.{name}")
        functions += task_lines(name) if served else protocol_lines(name, self.protocol)
        # ASCII with escapes, so that no character of a path means anything to whoever reads it
        text = yaml.safe_dump(settings, allow_unicode=False, width=math.inf, sort_keys=False)
        return text + "".join(f"{line}\n" for line in functions)

    def _modules(self) -> dict[str, str]:
        """The functions that depend on where the data is, and on the limit."""
        found = {}
        if self.root is not None and "gqa" in self.names:
            images = _tables(self.root / "gqa" / "testdev_balanced_images")
            found["fp_gqa_images.py"] = (
                '"""Where the images of GQA are."""\n\nfrom finepruner_lmms.benchmarks.gqa import images_of\n\n'
                f"visual = images_of('parquet', split='train', data_files={images!a})\n"
            )
        if self.limit is not None:
            choosers = "".join(
                f"{name} = chooser(BENCHMARKS[{name!r}].sampling, {self.limit})\n" for name in self.names
            )
            found["fp_limit.py"] = (
                '"""Which questions a limit takes."""\n\nfrom finepruner_lmms.benchmarks import BENCHMARKS\n'
                f"from finepruner_lmms.benchmarks.limits import chooser\n\n{choosers}"
            )
        return found


def _tables(folder: Path) -> str:
    """The pattern of a folder's tables for `datasets`, in which nothing of the folder's own name is a pattern."""
    return f"{glob.escape(str(folder))}/*.parquet"


def _write(tasks: _Tasks) -> Path:
    """The folder with the files of `tasks`, named by their content, made if it is not there."""
    files = tasks.files()
    target = cache_dir() / "tasks" / hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]

    def make(partial: Path) -> None:
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")

    if not target.is_dir():
        publish_folder(target, make)
    return target
