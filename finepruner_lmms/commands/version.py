"""`finepruner --version`: ours, and those of what computes."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import typer

from finepruner_lmms.output import plain


def show_version(asked: bool) -> None:
    """Print the versions and end, if they were asked for; nothing of them is imported."""
    if not asked:
        return
    others = [f"{name} {_version(name)}" for name in ("lmms_eval", "transformers", "torch")]
    line = f"finepruner_lmms {_version('finepruner-lmms')} ({', '.join(others)}, Python {platform.python_version()})"
    sys.stdout.write(f"{plain(line)}\n")
    raise typer.Exit


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
