"""The miniature benchmarks as a data root on this machine: made when first asked for, named by what they depend on."""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
from importlib import metadata
from pathlib import Path
from types import ModuleType

from finepruner_lmms.demo import benchmarks, choice_benchmarks, questions, scenes
from finepruner_lmms.files import cache_dir, lock, publish_folder

logger = logging.getLogger(__name__)
_LIBRARIES = ("pillow", "numpy", "scikit-learn", "scikit-image", "datasets")


def miniatures(split: str) -> Path:
    """The folder that holds them, one folder per benchmark; `split` is `test` or `tuning`."""
    home = cache_dir() / "demo" / f"{split}-{fingerprint(split)}"
    if not home.is_dir():
        with lock(home.with_name(f"{home.name}.lock"), wait=True):  # eight processes would make them eight times
            if not home.is_dir():
                logger.info("making the miniature benchmarks in %s", home)
                publish_folder(home, lambda partial: benchmarks.build(partial, split))
    return home


def fingerprint(split: str) -> str:
    """What their content depends on, as 12 hexadecimal digits: the code that makes them, and the drawing libraries."""
    digest = hashlib.sha256(split.encode())
    for module in (scenes, questions, choice_benchmarks, benchmarks):
        digest.update(_code(module).encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    return digest.hexdigest()[:12]


def _code(module: ModuleType) -> str:
    """A module without comments and docstrings, which change no picture and no question."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
