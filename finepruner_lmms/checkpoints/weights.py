"""The files of a checkpoint: fetching what is needed, and reading weights shard by shard without unpickling code."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SMALL = ["*.json", "tokenizer.model"]
_DOWNLOAD_ERRORS = (OSError, ValueError, EntryNotFoundError)


def list_names(names: list[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; `ValueError` naming the file if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file.name}: cannot read {str(file)!r}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file.name}: {str(file)!r} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name}: {str(file)!r} holds a {type(content).__name__}, not an object")
    return content


def fetch_file(name: str, file: str) -> Path:
    """One small file of a folder or hub repository. `ValueError` saying why it cannot be had."""
    if (folder := Path(name)).is_dir():
        return folder / file
    try:
        return Path(hf_hub_download(name, file))
    except _DOWNLOAD_ERRORS as error:
        raise ValueError(f"cannot fetch {file} of {name!r}: {_reason(error)}") from error


def fetch(name: str) -> Path:
    """The folder of a checkpoint: `name` itself, or the configuration, tokenizer and weights of a hub repository.

    Of the weights only one form is fetched, safetensors if there is a choice. `ValueError` if that fails.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        folder = Path(snapshot_download(name, allow_patterns=_SMALL))
        for index in _INDEXES:
            if (folder / index).is_file():
                wanted = sorted(set(_weight_map(folder / index).values()))
                # the same commit as the index
                snapshot_download(name, revision=folder.name, allow_patterns=wanted)
                return folder
        for single in _SINGLE:
            snapshot_download(name, revision=folder.name, allow_patterns=[single])
            if (folder / single).is_file():
                break
    except _DOWNLOAD_ERRORS as error:
        raise ValueError(f"cannot fetch {name!r}: {_reason(error)}") from error
    return folder


@dataclass(frozen=True)
class Weights:
    """The weights in a folder: in which file each tensor is."""

    folder: Path
    files: dict[str, Path]

    @classmethod
    def find(cls, folder: Path) -> Weights:
        """Read the names of all tensors. `ValueError` naming what is missing, before any tensor is read."""
        for index in _INDEXES:
            if (folder / index).is_file():
                files = {name: folder / shard for name, shard in _weight_map(folder / index).items()}
                missing = sorted({file.name for file in files.values() if not file.is_file()})
                if missing:
                    raise ValueError(f"weights: {index} names {list_names(missing)}, not there in {str(folder)!r}")
                return cls(folder, files)
        for single in _SINGLE:
            if (folder / single).is_file():
                return cls(folder, dict.fromkeys(_names(folder / single), folder / single))
        known = ", ".join(_SINGLE + _INDEXES)
        raise ValueError(f"weights: {str(folder)!r} holds none of {known}")

    def shards(self) -> dict[Path, set[str]]:
        """The files, and which tensors each has to hold."""
        found: dict[Path, set[str]] = {}
        for name, file in self.files.items():
            found.setdefault(file, set()).add(name)
        return found


def read_shard(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped into memory where its format allows, so that reading copies nothing.

    Nothing but tensors is read: a file that asks for more when unpickled, that is damaged or cut short, is a
    `ValueError` naming it.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{file.name}: refused, nothing was run: besides tensors, {str(file)!r} asks for {asked[1]} when it "
                "is opened; fetch the checkpoint from a source you trust"
            ) from error
        raise ValueError(
            f"{file.name}: damaged or cut short, or not a file of tensors; fetch {str(file)!r} again"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, SafetensorError) as error:
        raise ValueError(f"{file.name}: damaged or cut short; fetch {str(file)!r} again ({_reason(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file.name}: {str(file)!r} holds something else than named tensors")
    return content


def _names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(read_shard(file))
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file.name}: damaged or cut short; fetch {str(file)!r} again ({_reason(error)})") from error


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise ValueError(f"{index.name}: {str(index)!r} has no 'weight_map' of tensor names to files")
    for shard in found.values():
        if Path(shard).name != shard:
            raise ValueError(f"{index.name}: weight_map names {shard!r}, which is not a file beside it")
    return found


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
