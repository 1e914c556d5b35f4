"""Named pieces of data inside a page: JSON, compressed, or bytes as they are. The page unpacks one when it needs it."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[a-z0-9][a-z0-9./_-]*")


@dataclass(frozen=True)
class Block:
    """What a page finds as `FP.block(name)`, or as `FP.bytes(name)` where it is bytes (pictures, one after another).

    Names are ours, not a study's: small letters, digits and `./_-`. JSON holds finite numbers only.
    """

    name: str
    value: Any

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a block is named by small letters, digits and ./_-, not {self.name!r}")


def element(block: Block) -> str:
    """The block as an element that no browser runs or shows; nothing of its content can end it."""
    if isinstance(block.value, bytes):
        kind, content = "raw", block.value
    else:  # the same data make the same page: no time stamp, and keys as they come
        text = json.dumps(block.value, separators=(",", ":"), allow_nan=False)
        kind, content = "gzip", gzip.compress(text.encode(), compresslevel=6, mtime=0)
    data = base64.b64encode(content).decode()
    return f'<script type="text/plain" data-block="{block.name}" data-kind="{kind}">{data}</script>'


def finite(value: float | None) -> float | None:
    """A number as JSON has it; None for what is none."""
    return None if value is None or not math.isfinite(value) else float(value)
