"""The lmms-eval tasks `fp_<name>`: one YAML each, for the hub's data, a data root, or the miniature benchmarks.

`tasks_overrides/` holds the YAML files for the hub. For other data a small folder is written whose files include
these and change nothing but where the data is.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from finepruner_lmms.benchmarks.submission import SERVED, TEST, task_lines
from finepruner_lmms.data.facts import tables
from finepruner_lmms.data.hub import commit_of
from finepruner_lmms.data.manifest import check_task, identity_of, read_manifest
from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import cache_dir, content_hash

logger = logging.getLogger(__name__)
UNKNOWN_COMMIT = "?"
"""Stands for the commit in an identity where nobody could be asked."""
_PACKAGE = Path(__file__).parents[1]
_SPLIT = {
    "vqav2": "validation",
    "gqa": "testdev",
    "vizwiz": "val",
    "sqa": "test",
    "textvqa": "validation",
    "pope": "test",
    "mme": "test",
    "mmbench": "dev",
    "mmbench_cn": "dev",
    "mmvet": "test",
}


def overrides_dir(package: Path = _PACKAGE) -> Path:
    """The folder of the hub's tasks: inside the installed package, or beside it in a checkout."""
    inside = package / "tasks_overrides"
    return inside if inside.is_dir() else package.parent / "tasks_overrides"


def available_tasks() -> list[str]:
    """The benchmarks that have a task, by name."""
    return sorted(file.stem.removeprefix("fp_") for file in overrides_dir().glob("fp_*.yaml"))


def folder(data: str, submission: bool = False) -> Path:
    """The folder to pass to lmms-eval's `--include_path`, so that the tasks read `data`.

    `hub`: the public datasets; `demo`: the miniature benchmarks (`demo-tuning`: the same on the tuning scenes);
    anything else: a data root, with a folder a benchmark. Miniatures are made when first asked for. `ValueError` if
    there is no such root, or a benchmark in it is not whole.

    With `submission`, the tasks that only a server scores read their test split (in a data root: the folder `test`
    of the benchmark's; miniatures have but one) and write the file that the server takes. The others stay as they are.
    """
    if data == "hub":
        return _folder(available_tasks(), None, SERVED) if submission else overrides_dir()
    if data in ("demo", "demo-tuning"):
        plain = _demo_folder("test" if data == "demo" else "tuning")
        return _folder(available_tasks(), plain.parent / "data", SERVED, "") if submission else plain
    root = Path(data)
    if not root.is_dir():
        raise FieldError("data", f"{data!r} is neither 'hub', 'demo' nor an existing folder", value=data)
    present = [name for name in available_tasks() if (root / name).is_dir()]
    scored = [name for name in present if not _only_test(root / name)]
    for name in scored:
        check_task(root, name, tables(name))
    if not (present if submission else scored):
        problem = f"{data!r} holds none of the folders {', '.join(available_tasks())}"
        raise FieldError("data", problem, value=data, fix=f"`finepruner prepare --data {data}` fetches them")
    if not submission:
        return _folder(scored, root.resolve(), ())
    served = [name for name in SERVED if (root / name / TEST).is_dir()]
    if not served:
        raise FieldError("data", f"{data!r} holds no folder {TEST} in any of {', '.join(SERVED)}", value=data)
    # one without its test questions is left out, lest the scored split be taken for it
    names = [name for name in present if (name in served if name in SERVED else name in scored)]
    return _folder(names, root.resolve(), served)


def _only_test(folder: Path) -> bool:
    """Whether a benchmark's folder holds nothing but the questions of a submission."""
    return (folder / TEST).is_dir() and not any(folder.glob("*.parquet")) and read_manifest(folder) is None


def _folder(names: Sequence[str], root: Path | None, served: Collection[str], below: str = TEST) -> Path:
    """A folder of task files that read `root` (None: the hub), of which those `served` write submissions.

    `below` is where a benchmark's test questions are, beside those with answers.
    """
    content = {f"fp_{name}.yaml": _yaml(name, root, name in served, below) for name in names} | _modules(root, names)
    target = cache_dir() / "tasks" / hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()[:12]
    if not target.is_dir():
        _publish(target, lambda partial: _write(partial, content))
    return target


def data_root(data: str) -> Path | None:
    """The folder that holds the data itself; `None` where it comes from the hub."""
    if data == "hub":
        return None
    return folder(data).parent / "data" if data.startswith("demo") else Path(data).resolve()


def _demo_folder(split: str) -> Path:
    from finepruner_lmms.demo.benchmarks import build, fingerprint

    home = cache_dir() / "demo" / f"{split}-{fingerprint(split)}"
    if not home.is_dir():
        logger.info("making the miniature benchmarks in %s", home)

        def make(partial: Path) -> None:
            build(partial / "data", split)
            names = available_tasks()
            root = home / "data"
            content = {f"fp_{name}.yaml": _yaml(name, root, False) for name in names}
            _write(partial / "tasks", content | _modules(root, names))

        _publish(home, make)
    return home / "tasks"


def _yaml(name: str, root: Path | None, served: bool, below: str = "") -> str:
    """A task that is the hub's but for its data. (The merge of `include` is shallow: whole keys are replaced.)"""
    lines = [f"include: {overrides_dir() / f'fp_{name}.yaml'}", f"task: fp_{name}"]
    if root is not None:
        data = root / name / ("testdev_balanced_instructions" if name == "gqa" else below if served else "")
        split = TEST if served else _SPLIT[name]
        lines += [
            "dataset_path: parquet",
            "dataset_name: null",
            f"dataset_kwargs: {{data_files: {{{split}: {data}/*.parquet}}}}",
        ]
        if name == "gqa":
            lines.append("doc_to_visual: !function fp_gqa_images.visual")
    if served:
        lines += task_lines(name)
    return "\n".join(lines) + "\n"


def _modules(root: Path | None, names: Sequence[str]) -> dict[str, str]:
    """The one function that depends on where the data is."""
    if root is None or "gqa" not in names:
        return {}
    images = root / "gqa" / "testdev_balanced_images"
    text = '"""Where the images of GQA are."""\n\nfrom finepruner_lmms.benchmarks.gqa import images_of\n\n'
    return {"fp_gqa_images.py": f"{text}visual = images_of({str(images)!r}, split='train')\n"}


def _write(target: Path, content: dict[str, str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (target / name).write_text(text, encoding="utf-8")


def _publish(target: Path, make: Callable[[Path], None]) -> None:
    """Make a folder elsewhere and move it into place whole; whoever comes second uses what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        make(partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def data_identity(data: str, name: str) -> str:
    """The data that a task reads, by its content: the same wherever it is, however it was fetched, whenever touched.

    For the hub its repository and commit, which is `?` where it cannot be known: see `hub.commit_of`.
    """
    if data == "hub":
        repository = hub_repository(name)
        return f"{repository}@{commit_of(repository, 'dataset') or UNKNOWN_COMMIT}"
    if data.startswith("demo"):
        from finepruner_lmms.demo.benchmarks import content_identity

        return content_identity("test" if data == "demo" else "tuning")
    folder = Path(data).resolve() / name
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest.identity()
    tables = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.parquet")}
    return identity_of((name, content_hash(file)) for name, file in tables.items())


def hub_repository(name: str) -> str:
    """The data set that the hub's task of a benchmark reads."""
    text = (overrides_dir() / f"fp_{name}.yaml").read_text(encoding="utf-8")
    (repository,) = re.findall(r"^dataset_path: *(\S+)", text, re.MULTILINE)
    return str(repository)
