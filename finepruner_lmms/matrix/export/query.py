"""The command `query`: SQL over the tables `cells` and `samples`, by DuckDB in memory.

The results are untouched whatever is asked: DuckDB may read the prepared files of samples and nothing else, write
none, load no extension, and its settings are locked before the first word of the question is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finepruner_lmms.errors import Failure, first_line
from finepruner_lmms.extras import need
from finepruner_lmms.matrix.export.sample_tables import Part, sample_parts
from finepruner_lmms.matrix.export.study import Exported
from finepruner_lmms.matrix.export.tables import (
    CELL_COLUMNS,
    NAMES,
    SAMPLE_COLUMNS,
    arrow_table,
    cell_rows,
)
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.output import csv_cell, plain

FORMATS = ("text", "csv", "json")


class QueryError(Failure, ValueError):
    """A question that DuckDB does not answer."""


def ask(root: Path, sql: str, form: str = "text") -> str:
    """The answer as text, CSV, or JSON (a list of objects), ending in a newline. `QueryError` in DuckDB's words."""
    duckdb = need("duckdb", "query", "query")
    source = Exported.of(Store(root))
    connection = _connect(duckdb, source)
    try:
        _check_reads(connection, sql)
        answer = connection.execute(sql)
        columns = [column[0] for column in answer.description or []]
        rows = answer.fetchall() if columns else []
    except duckdb.Error as error:
        raise QueryError(f"query: {first_line(error)}; tables: cells, samples (DESCRIBE cells)") from None
    finally:
        connection.close()
    return _shown(columns, rows, form)


def _check_reads(connection: Any, sql: str) -> None:
    """Refuse what is no question; the settings above would stop it from reaching a file, but not say why."""
    kinds = [str(statement.type).rpartition(".")[2] for statement in connection.extract_statements(sql)]
    if not kinds:
        raise QueryError("query: got no SQL; expected a SELECT over the tables cells and samples")
    if wrong := [kind for kind in kinds if kind not in ("SELECT", "MULTI")]:
        raise QueryError(f"query: {wrong[0]} is no question: only SELECT, PIVOT, DESCRIBE and SHOW are answered")


def _connect(duckdb: Any, source: Exported) -> Any:
    parts = sample_parts(source)
    connection = duckdb.connect(":memory:")
    connection.register("_cells", arrow_table(cell_rows(source.store, source.study, source.states), CELL_COLUMNS))
    connection.execute("CREATE TABLE cells AS SELECT * FROM _cells")
    connection.unregister("_cells")
    files = [str(part.file.resolve()) for part in parts if part.file is not None]
    connection.execute("SET allowed_paths = " + _list(files))
    for setting in ("enable_external_access = false", "python_enable_replacements = false"):
        connection.execute(f"SET {setting}")
    connection.execute(f"CREATE VIEW samples AS SELECT {_NAMED} FROM {_origin(connection, parts)}")
    connection.execute("SET lock_configuration = true")
    return connection


_NAMED = ", ".join([*(f"c.{name}" for name in NAMES), *(f"s.{name}" for name in SAMPLE_COLUMNS)])


def _origin(connection: Any, parts: list[Part]) -> str:
    """Samples joined with what their cells are called, which may change while they stay."""
    files = [str(part.file.resolve()) for part in parts if part.file is not None]
    if files:
        samples = f"read_parquet({_list(files)})"
    else:
        samples = "_samples"
        table = parts[0].table if parts else arrow_table([], SAMPLE_COLUMNS)
        connection.register("_arrow", table)
        connection.execute("CREATE TABLE _samples AS SELECT * FROM _arrow")
        connection.unregister("_arrow")
    return f"{samples} s JOIN cells c ON c.cell = s.cell AND c.state = 'done'"


def _list(texts: list[str]) -> str:
    quoted = ("'" + text.replace("'", "''") + "'" for text in texts)
    return f"[{', '.join(quoted)}]"


def _shown(columns: list[str], rows: list[Any], form: str) -> str:
    if form == "json":
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        return json.dumps(found, default=str, indent=1) + "\n"
    if form == "csv":
        import csv
        import io

        file = io.StringIO()
        cells = [["" if value is None else csv_cell(value) for value in row] for row in rows]
        csv.writer(file, lineterminator="\n").writerows([[csv_cell(name) for name in columns], *cells])
        return file.getvalue()
    return _text(columns, rows)


def _text(columns: list[str], rows: list[Any]) -> str:
    from tabulate import tabulate

    if not columns:
        return "no rows\n"
    shown = [["–" if value is None else _number(value) for value in row] for row in rows]
    numbers = [all(isinstance(row[n], int | float) or row[n] is None for row in rows) for n in range(len(columns))]
    align = ["right" if number else "left" for number in numbers]
    table = tabulate(shown, headers=list(map(plain, columns)), tablefmt="simple", colalign=align, disable_numparse=True)
    return f"{table}\n{len(rows)} row{'s' * (len(rows) != 1)}\n"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else plain(value)
