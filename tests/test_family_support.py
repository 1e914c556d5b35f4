"""The table of methods and families in docs/models.md is what the methods do."""

from __future__ import annotations

from pathlib import Path

import pytest

from finepruner_lmms.testing import family_support

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"


@pytest.mark.slow
def test_the_table_of_methods_and_families_is_current():
    between = PAGE.read_text().split("<!-- support -->")[1].split("<!-- /support -->")[0]
    assert between.strip() == family_support.table().strip(), "run python -m finepruner_lmms.testing.family_support"


def test_what_needs_a_parameter_says_which():
    assert family_support.support("qwen2_5_vl", "fastervlm").text == "`importance=received`"
    assert family_support.support("llava_next", "fastervlm").text == "unchanged"
    assert family_support.support("qwen3_vl", "visionzip").refused
