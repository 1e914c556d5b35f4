"""The miniature benchmarks and the demo checkpoint, laid out as the repositories of the hub are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from mirror import Mirror

from finepruner_lmms.checkpoints.fetch import DEMO
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.data.task_folders import available_tasks, data_root

NAMES = available_tasks()
CHECKPOINT = "llava-hf/demo"
OTHER_SPLITS = {"pope": "Full/random-00000-of-00001.parquet", "textvqa": "data/train-00000-of-00001.parquet"}
COMMAND = [sys.executable, "-m", "finepruner_lmms.cli"]


def repository(name: str) -> str:
    """Where a benchmark's repository is below a mirror's root."""
    return f"datasets/{FACTS[name].repo}"


def file_of(name: str, table: int = 0) -> str:
    """A benchmark's only file, below a mirror's root."""
    return f"{repository(name)}/{FACTS[name].tables[table].files.replace('*', '00000-of-00001')}"


def lay_out(root: Path) -> None:
    """Every miniature, with splits beside the one that is evaluated, and the demo checkpoint."""
    configs: dict[str, list[str]] = {}
    for name in NAMES:
        facts = FACTS[name]
        for number, table in enumerate(facts.tables):
            target = root / file_of(name, number)
            target.parent.mkdir(parents=True, exist_ok=True)
            (source,) = (data_root("demo") / name / table.folder).glob("*.parquet")
            shutil.copyfile(source, target)
            if facts.config:
                entry = f"- config_name: {table.folder or facts.config}\n  data_files:\n  - split: {facts.split}\n"
                configs.setdefault(repository(name), []).append(f"{entry}    path: {table.files}\n")
    for repo, entries in configs.items():
        (root / repo / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")
    for name, other in OTHER_SPLITS.items():
        (root / repository(name) / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file_of(name), root / repository(name) / other)
    shutil.copytree(DEMO, root / "models" / CHECKPOINT)
    (root / "models" / CHECKPOINT / "training_args.bin").write_bytes(b"not wanted")


def environment(mirror: Mirror, home: Path, **changes: str) -> dict[str, str]:
    """Of a process that knows the mirror only, with a cache and a login of its own."""
    own = {"HF_ENDPOINT": mirror.endpoint, "HF_HOME": str(home), "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "0"}
    return os.environ | own | changes


def finepruner(*arguments: object, env: dict[str, str], expect: int = 0) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
