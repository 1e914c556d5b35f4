"""Reading a matrix file: from YAML to checked settings and rows, or to all of its mistakes at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.checks import check_settings, missing_data
from finepruner_lmms.matrix.rows import Row, check_rows, report
from finepruner_lmms.matrix.sections import MatrixFile, check_shape
from finepruner_lmms.matrix.yaml_places import Document


@dataclass(frozen=True)
class Matrix:
    """A checked matrix file: its settings, its rows in order, and the model's depth and N."""

    file: MatrixFile
    rows: tuple[Row, ...]
    num_layers: int
    num_visual_tokens: int


def load_matrix(path: Path, check_data: bool = True) -> Matrix:
    """Read and check a matrix file; `ConfigError` listing every mistake found.

    `check_data`: whether data that is not there is a mistake of the file.
    """
    document = Document(Path(path))
    file = check_shape(document)
    for error in check_settings(file):
        document.report(error)
    for problem in missing_data(file) if check_data else []:
        document.report(problem, ("data",))
    rows = check_rows(file.methods, document)
    document.raise_any()
    num_layers, num_visual_tokens = _check_reachable(file, rows, document)
    document.raise_any()
    return Matrix(file, tuple(rows), num_layers, num_visual_tokens)


def _check_reachable(file: MatrixFile, rows: list[Row], document: Document) -> tuple[int, int]:
    """The model's depth and N; what a row asks that this model cannot do is reported."""
    from finepruner_lmms.checkpoints.configuration import check_pruner, read_shape
    from finepruner_lmms.engine.geometry import Geometry

    try:
        config = read_shape(file.model.pretrained)
    except ValueError as error:
        document.report(
            error.under("model") if isinstance(error, FieldError) else f"model.{error}", ("model", "pretrained")
        )
        return 0, 0
    for row in rows:
        try:
            check_pruner(row.pruner, config)
        except ValueError as error:
            report(row, error, document)
    geometry = Geometry.of(config)
    return geometry.num_layers, geometry.num_visual_tokens
