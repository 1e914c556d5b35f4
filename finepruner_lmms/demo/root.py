"""The miniature benchmarks as a data root on this machine: made when first asked for, named by what they depend on."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from finepruner_lmms.claims import lock
from finepruner_lmms.demo.sizes import HARD_SIZES, SIZES
from finepruner_lmms.files import cache_dir, publish_folder
from finepruner_lmms.sources import own_sources, short_hash

logger = logging.getLogger(__name__)
_EASY, _HARD = "finepruner_lmms.demo.benchmarks", "finepruner_lmms.demo.hard.benchmarks"
_LIBRARIES = ("pillow", "numpy", "scikit-learn", "scikit-image", "datasets")


@dataclass(frozen=True)
class Miniatures:
    """The ten miniatures on one split of one world: the module that makes them, and their numbers of questions."""

    maker: str
    split: str
    sizes: Mapping[str, int]


MINIATURES = {
    "demo": Miniatures(_EASY, "test", SIZES),
    "demo-tuning": Miniatures(_EASY, "tuning", SIZES),
    "demo-hard": Miniatures(_HARD, "test", HARD_SIZES),
    "demo-hard-tuning": Miniatures(_HARD, "tuning", HARD_SIZES),
}
"""By the word that `data` has for them."""


def miniatures(data: str) -> Path:
    """The folder that holds them, one folder per benchmark; `data` is a key of `MINIATURES`."""
    home = cache_dir() / "demo" / f"{data}-{content_identity(data)}"
    if not home.is_dir():
        with lock(home.with_name(f"{home.name}.lock"), wait=True):  # eight processes would make them eight times
            if not home.is_dir():
                which = MINIATURES[data]
                build = importlib.import_module(which.maker).build
                logger.info("making the miniature benchmarks in %s", home)
                publish_folder(home, lambda partial: build(partial, which.split))
    return home


@functools.cache
def content_identity(data: str) -> str:
    """What their content depends on, as 12 hexadecimal digits: the code that makes them, and the drawing libraries."""
    which, sources = MINIATURES[data], own_sources()
    code = sources.fingerprint(sources.closure([which.maker], lambda _, needed: ".demo." not in needed))
    libraries = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    return short_hash("\n".join([which.split, code, *libraries]))
