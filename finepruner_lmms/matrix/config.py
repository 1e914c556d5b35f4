"""Reading a matrix file: from YAML to checked settings and rows, or to all of its mistakes at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finepruner_lmms.asking.settings import evaluation
from finepruner_lmms.checkpoints.shape import ModelShape
from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.checks import check_settings, missing_data
from finepruner_lmms.matrix.rows import Row, check_rows, report
from finepruner_lmms.matrix.sections import MatrixFile, check_shape
from finepruner_lmms.matrix.yaml_places import Document
from finepruner_lmms.plugins import load_files


@dataclass(frozen=True)
class Matrix:
    """A checked matrix file: its settings, its rows in order, and the model's sizes."""

    file: MatrixFile
    rows: tuple[Row, ...]
    shape: ModelShape
    released: bool = False
    """Whether the checkpoint could not be reached, so that the sizes are those of its release: enough for a plan."""

    @property
    def family(self) -> Family:
        """Of the model."""
        return find_family(getattr(self.shape, "model_type", "llava"))

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return Geometry.of(self.shape).num_layers

    @property
    def num_visual_tokens(self) -> int:
        """N, those of one image; the most that papers count of one where images differ."""
        return Geometry.of(self.shape).num_visual_tokens

    @property
    def images_differ(self) -> bool:
        """Whether images differ in their number of visual tokens."""
        return Geometry.of(self.shape).varies


def load_matrix(path: Path, check_data: bool = True, limit: int | None = None, planning: bool = False) -> Matrix:
    """Read and check a matrix file; `ConfigError` listing every mistake found.

    `check_data`: whether data that is not there is a mistake of the file. `limit`: that of the command line, which
    goes before the file's; `FieldError` where a task cannot have so few questions. `planning`: whether the known sizes
    of a released checkpoint will do where it cannot be reached.
    """
    document = Document(Path(path))
    file = _with_plugins(check_shape(document), document)
    if limit is not None:
        file = file.model_copy(update={"limit": limit})
    for error in check_settings(file):
        if limit is not None and error.field == "limit":
            raise error.renamed("--limit")
        document.report(error)
    for problem in missing_data(file) if check_data else []:
        document.report(problem, ("data",))
    rows = check_rows(file.methods, document)
    document.raise_any()
    found = _check_reachable(file, rows, document, planning)
    document.raise_any()
    assert found is not None, "otherwise there was something to raise"
    shape, released = found
    return Matrix(file, tuple(rows), shape, released)


def _with_plugins(file: MatrixFile, document: Document) -> MatrixFile:
    """The file with its plug-ins imported, since methods are looked up next; their paths are absolute."""
    files = [document.path.absolute().parent / name for name in file.plugins]
    try:
        load_files(files)
    except FieldError as error:
        document.report(error)
        document.raise_any()
    return file.model_copy(update={"plugins": tuple(str(path) for path in files)})


def _check_reachable(
    file: MatrixFile, rows: list[Row], document: Document, planning: bool
) -> tuple[ModelShape, bool] | None:
    """The model's sizes, and whether they are a release's; what a row asks that this model cannot do is reported."""
    from finepruner_lmms.checkpoints.configuration import check_pruner, planned_shape, read_shape

    pretrained = file.model.pretrained
    try:
        config, released = planned_shape(pretrained) if planning else (read_shape(pretrained), False)
    except ValueError as error:
        document.report(
            error.under("model") if isinstance(error, FieldError) else f"model.{error}", ("model", "pretrained")
        )
        return None
    try:
        evaluation(find_family(getattr(config, "model_type", "llava")), file.model)
    except FieldError as error:
        document.report(error.under("model"), ("model", error.field))
    for row in rows:
        try:
            check_pruner(row.pruner, config)
        except ValueError as error:
            report(row, error, document)
    return config, released
