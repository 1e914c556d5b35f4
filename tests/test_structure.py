"""The seams of the package, checked where a reader would otherwise have to believe them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "finepruner_lmms"
INTERNALS = re.compile(
    r"transformers\.(models|masking_utils|cache_utils|modeling_)|\.self_attn|\.language_model|register_forward|\.q_proj"
)


def test_transformers_internals_are_touched_in_one_room():
    touching = {
        file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py") if INTERNALS.search(file.read_text())
    }
    assert touching == {"engine", "testing"}  # the latter hooks layers to watch them


@pytest.mark.parametrize(
    "module",
    ["finepruner_lmms", "finepruner_lmms.benchmarks.table", "finepruner_lmms.cli", "finepruner_lmms.lmms.identity"],
)
def test_what_a_command_line_imports_is_light(module):
    code = (
        f"import {module}, sys; print([m for m in ('torch', 'transformers', 'pandas', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
