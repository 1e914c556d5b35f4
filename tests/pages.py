"""What a report holds: its named blocks, unpacked as the page itself does."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

_BLOCK = re.compile(r'<script type="text/plain" data-block="([^"]*)" data-kind="(raw|gzip)">([^<]*)</script>')


def blocks(page: str) -> dict[str, Any]:
    """The blocks of a page: JSON as values, all others as bytes."""
    found = {}
    for name, kind, data in _BLOCK.findall(page):
        content = base64.b64decode(data)
        found[name] = content if kind == "raw" else json.loads(gzip.decompress(content))
    return found


def texts(page: str) -> str:
    """All that a page says: what stands in it, and its data as JSON."""
    data = json.dumps(blocks(page), ensure_ascii=False, default=lambda value: f"{len(value)} bytes")
    return _BLOCK.sub("", page) + data
