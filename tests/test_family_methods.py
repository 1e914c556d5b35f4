"""Every registered method passes the checks of `testing.family_checks` on every family, or says why it does not run."""

from __future__ import annotations

import pytest
from family_brute_force import METHODS

import finepruner_lmms as fp
from finepruner_lmms.pruners import parameter_names
from finepruner_lmms.testing.families import FAMILIES
from finepruner_lmms.testing.family_checks import FAMILY_CHECKS, check_alone, refusal

OURS = [
    name
    for name in fp.METHODS
    if fp.build_pruner(name).__module__.startswith("finepruner_lmms.") and fp.build_pruner(name).side != "none"
]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("which", [which for which in FAMILIES if "-" not in which])
def test_method_on_family(which, name):
    against_brute_force = {method for method, _ in METHODS.values()}  # where rows are compared with themselves alone
    for check in FAMILY_CHECKS:
        if check is not check_alone or name not in against_brute_force:
            check(name, which)
    if (reason := refusal(name, which)) is not None:
        by_cls_token = "importance" in parameter_names(name)  # which not every tower has; others need a grid
        assert by_cls_token or name in ("downsample", "pool"), reason
