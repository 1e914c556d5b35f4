"""Every registered method passes the checks of `testing.family_checks` on every family, or says why it does not run."""

from __future__ import annotations

import pytest
from family_brute_force import METHODS

import finepruner_lmms as fp
from finepruner_lmms.testing.families import FAMILIES
from finepruner_lmms.testing.family_checks import FAMILY_CHECKS, check_alone, refusal

OURS = [
    name
    for name in fp.METHODS
    if fp.build_pruner(name).__module__.startswith("finepruner_lmms.") and fp.build_pruner(name).side != "none"
]


MAY_BE_REFUSED = {"downsample", "fastervlm", "hiprune", "holov", "pool", "prunesid", "visionzip", "vispruner", "vscan"}
"""What needs a CLS token, or one square of tokens, or makes new ones."""


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("which", [which for which in FAMILIES if "-" not in which])
def test_method_on_family(which, name):
    against_brute_force = {method for method, _ in METHODS.values()}  # where rows are compared with themselves alone
    for check in FAMILY_CHECKS:
        if check is not check_alone or name not in against_brute_force:
            check(name, which)
    if (reason := refusal(name, which)) is not None:
        assert name in MAY_BE_REFUSED, reason
