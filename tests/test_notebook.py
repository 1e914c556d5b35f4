"""The notebook of the examples runs from top to bottom, and what is stored in it is what it prints."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def tables(notebook: nbformat.NotebookNode) -> list[str]:
    """What data frames say; the leaderboard itself may also hold times, where cells were timed."""
    return [output.data["text/plain"] for output in outputs(notebook) if "text/html" in output.get("data", {})]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def markdown(notebook: nbformat.NotebookNode) -> str:
    return "".join(
        output.data["text/markdown"] for output in outputs(notebook) if "text/markdown" in output.get("data", {})
    )


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_is_stored_in_it(tmp_path):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    fresh = deepcopy(stored)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=500, kernel_name="python3", resources=resources).execute()
    assert printed(fresh) == printed(stored)
    assert pictures(fresh) == pictures(stored) == 1
    assert tables(fresh) == tables(stored) and len(tables(stored)) == 1
    assert "vispruner" in markdown(fresh) and "[low, high" in markdown(fresh)
