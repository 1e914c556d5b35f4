"""The notebook of the examples runs from top to bottom, and what is stored in it is what it prints."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_is_stored_in_it(tmp_path):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    fresh = deepcopy(stored)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=200, kernel_name="python3", resources=resources).execute()
    assert printed(fresh) == printed(stored)
    assert pictures(fresh) == pictures(stored) == 1
