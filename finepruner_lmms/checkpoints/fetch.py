"""Where a checkpoint is: names that users give, folders, and what is fetched of a hub repository."""

from __future__ import annotations

import re
from pathlib import Path

from finepruner_lmms.checkpoints.libraries import hub_errors, huggingface_hub
from finepruner_lmms.checkpoints.reach import unreachable
from finepruner_lmms.errors import FieldError, first_line

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
EMBEDDED = {"demo": DEMO, "demo-hard": DEMO.parent / "hard" / "checkpoint"}
"""The models in the package: of the easy and of the demanding world."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SMALL = ["*.json", "*.jinja", "tokenizer.model"]


def resolve(pretrained: str) -> str:
    """The hub id or folder meant by `pretrained`; `demo` and `demo-hard` are in the package, `~` is the home folder."""
    if pretrained in EMBEDDED:
        return str(EMBEDDED[pretrained])
    return str(Path(pretrained).expanduser()) if pretrained.startswith("~") else pretrained


def check_name(pretrained: str) -> None:
    """Raise `FieldError` where `pretrained` is neither a folder that holds a checkpoint nor the form of a hub id.

    What looks like a path is never asked of the hub.
    """
    name, folder = resolve(pretrained), Path(resolve(pretrained))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            problem = f"the folder {pretrained!r} holds no config.json, so it is not a checkpoint"
            raise FieldError("pretrained", problem, value=pretrained)
    elif folder.exists():
        raise FieldError("pretrained", f"{pretrained!r} is a file; give the folder it is in", value=pretrained)
    elif not _HUB_ID.fullmatch(name):
        raise FieldError(
            "pretrained",
            f"there is no folder {pretrained!r}, and it is no hub id",
            value=pretrained,
            fix="give a folder that is there, a hub id (owner/name), 'demo' or 'demo-hard'",
        )


def fetch_file(name: str, file: str) -> Path:
    """One small file of a folder or hub repository. `FieldError` saying why it cannot be had."""
    if (folder := Path(name)).is_dir():
        return folder / file
    why = unreachable()
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, local_files_only=bool(why)))
    except (OSError, ValueError, hub_errors.EntryNotFoundError) as error:
        raise FieldError(file, f"cannot fetch it from {name!r}: {why or first_line(error)}", value=name) from error


def fetch_small(name: str) -> Path:
    """The folder of a checkpoint, of a hub repository without the weights. `FieldError` if it cannot be had."""
    if Path(name).is_dir():
        return Path(name)
    why = unreachable()
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_SMALL, local_files_only=bool(why)))
    except (OSError, ValueError, hub_errors.EntryNotFoundError) as error:
        raise FieldError("files", f"cannot fetch {name!r}: {why or first_line(error)}", value=name) from error


def fetch_weights(name: str, folder: Path) -> None:
    """Complete `folder`, which `fetch_small` gave, by one form of the weights: safetensors if there is a choice."""
    from finepruner_lmms.checkpoints.weights import FORMS, weight_map

    if Path(name).is_dir():
        return

    why = unreachable()

    def get(files: list[str]) -> None:  # of the same commit as the rest
        try:
            huggingface_hub.snapshot_download(
                name, revision=folder.name, allow_patterns=files, local_files_only=bool(why)
            )
        except (OSError, ValueError, hub_errors.EntryNotFoundError) as error:
            raise FieldError("weights", f"cannot fetch {name!r}: {why or first_line(error)}", value=name) from error

    for single, index in FORMS:
        if (folder / index).is_file():
            return get(sorted(set(weight_map(folder / index).values())))
        get([single])
        if (folder / single).is_file():
            return
    if why:
        raise FieldError("weights", f"cannot fetch {name!r}: {why}, and the cache has none", value=name)
