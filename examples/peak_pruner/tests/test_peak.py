"""The checks that the methods of finepruner_lmms pass themselves."""

import pytest

from finepruner_lmms.testing import CHECKS


def reference(_pruner, context, count):
    """The method in plain Python, for one image."""
    rows = context.attention[0].tolist()
    scores = [max(column) for column in zip(*rows, strict=True)]
    return sorted(sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:count])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_peak(check):
    check("peak", reference)
