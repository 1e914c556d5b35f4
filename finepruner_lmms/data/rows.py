"""Rows of a folder's Parquet tables, read where they stand: a few questions of many, without a copy of the whole."""

from __future__ import annotations

import bisect
import io
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_HELD = 1 << 28
"""Bytes of encoded pictures that are held, since the next one often stands beside the last."""


class Rows:
    """The rows of some tables, one after another. Pictures are decoded when they are asked for.

    `OSError` and `pyarrow.lib.ArrowInvalid`, a `ValueError`, where a file is no such table.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow.parquet as pq

        self._files = [pq.ParquetFile(file, memory_map=True) for file in files]
        self._groups: list[tuple[Any, int]] = []
        self._starts: list[int] = []
        self._rows = 0
        for file in self._files:
            for group in range(file.num_row_groups):
                self._groups.append((file, group))
                self._starts.append(self._rows)
                self._rows += file.metadata.row_group(group).num_rows
        self._held: OrderedDict[tuple[int, str], Any] = OrderedDict()
        schema = self._files[0].schema_arrow
        self.columns: tuple[str, ...] = tuple(schema.names)
        """The names of all columns."""
        self.pictures: tuple[str, ...] = tuple(name for name in schema.names if _is_picture(schema.field(name).type))
        """Those that hold pictures."""
        self._plain: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return self._rows

    def column(self, name: str) -> list[Any]:
        """All values of a column that holds no pictures."""
        if name not in self._plain:
            self._plain[name] = [value for file in self._files for value in file.read(columns=[name])[name].to_pylist()]
        return self._plain[name]

    def picture(self, row: int, column: str) -> Image | None:
        """The picture of a row, as it is stored; None where there is none."""
        from PIL import Image as Images

        group = bisect.bisect_right(self._starts, row) - 1
        stored = self._read(group, column)[row - self._starts[group]].as_py()
        if stored is None or (stored["bytes"] is None and not stored["path"]):
            return None
        content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
        return Images.open(io.BytesIO(content))

    def _read(self, group: int, column: str) -> Any:
        if (found := self._held.pop((group, column), None)) is None:
            file, number = self._groups[group]
            found = file.read_row_group(number, columns=[column])[column]
        self._held[group, column] = found
        while len(self._held) > 1 and sum(one.nbytes for one in self._held.values()) > _MOST_HELD:
            self._held.popitem(last=False)
        return found


def _is_picture(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}
