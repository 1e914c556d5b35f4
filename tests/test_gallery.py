"""The gallery shows what its script draws, and what it says of a picture is what the methods do."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
from doc_blocks import ROOT
from PIL import Image

import finepruner_lmms as fp

sys.path.insert(0, str(ROOT / "scripts"))
import draw_gallery

PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
PARTS = {part.name: part for part in draw_gallery.PARTS}


@pytest.fixture(scope="module")
def demo():
    return fp.load_model("demo")


def test_the_page_has_every_part_and_its_pictures_are_small():
    drawn = re.findall(r"\]\(gallery/(\w+)\.webp\)", PAGE)
    assert drawn == list(PARTS) and PAGE.startswith(draw_gallery.HEAD)
    files = sorted((ROOT / "docs" / "gallery").iterdir())
    assert [file.stem for file in files] == sorted(PARTS)
    assert sum(file.stat().st_size for file in files) < 1_500_000


@pytest.mark.parametrize("name", ["habit", "stages"])
def test_a_part_says_what_the_methods_answer_when_they_are_asked_again(demo, name):
    part = PARTS[name]
    found = draw_gallery.compared(part, *demo)
    assert draw_gallery.section(part, found) in PAGE
    drawn = io.BytesIO(draw_gallery.picture(found))
    assert Image.open(drawn).size == Image.open(ROOT / "docs" / "gallery" / f"{name}.webp").size


def test_the_words_about_evidence_hold(demo):
    """That a method lost what was asked about, and that another one of the same budget kept it."""
    found = draw_gallery.compared(PARTS["luck"], *demo)
    kept = {row.label: found.evidence_kept(row.stages[-1]) for row in found.rows if row.stages}
    assert kept == {"random 64": 0.0, "finepruner 64 heads=4": 0.0, "vispruner 64": 1.0}
    assert all(row.right for row in found.rows)
    (box,) = found.evidence
    left, top, right, bottom = (round(336 * side) for side in box)
    middle = np.asarray(found.pictures[0].image)[top + 8 : bottom - 8, left + 8 : right - 8]
    assert (middle[..., 0] > 150).all() and (middle[..., 1] < 90).all()  # the frame is around the red square
