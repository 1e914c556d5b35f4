"""The miniature benchmarks as a data root on this machine: made when first asked for, named by what they depend on."""

from __future__ import annotations

import functools
import logging
from importlib import metadata
from pathlib import Path

from finepruner_lmms.claims import lock
from finepruner_lmms.files import cache_dir, publish_folder
from finepruner_lmms.sources import own_sources, short_hash

logger = logging.getLogger(__name__)
_MAKERS = "finepruner_lmms.demo.benchmarks"
_LIBRARIES = ("pillow", "numpy", "scikit-learn", "scikit-image", "datasets")


def miniatures(split: str) -> Path:
    """The folder that holds them, one folder per benchmark; `split` is `test` or `tuning`."""
    home = cache_dir() / "demo" / f"{split}-{content_identity(split)}"
    if not home.is_dir():
        with lock(home.with_name(f"{home.name}.lock"), wait=True):  # eight processes would make them eight times
            if not home.is_dir():
                from finepruner_lmms.demo import benchmarks

                logger.info("making the miniature benchmarks in %s", home)
                publish_folder(home, lambda partial: benchmarks.build(partial, split))
    return home


@functools.cache
def content_identity(split: str) -> str:
    """What their content depends on, as 12 hexadecimal digits: the code that makes them, and the drawing libraries."""
    sources = own_sources()
    code = sources.fingerprint(sources.closure([_MAKERS], lambda _, needed: ".demo." not in needed))
    libraries = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    return short_hash("\n".join([split, code, *libraries]))
