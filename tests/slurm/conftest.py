"""A SLURM of two nodes for the tests of this folder, where its daemons are installed and may be started."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_slurm


@pytest.fixture(scope="session")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory):
    if why := real_slurm.missing():
        pytest.skip(why)
    pytest.importorskip("submitit")
    folder = Path(tmp_path_factory.mktemp("slurm"))
    for parent in (folder, *folder.parents[:2]):  # munged wants nobody else to write here, and to be let through
        parent.chmod(0o755)
    with real_slurm.slurm(folder) as conf:
        yield conf


@pytest.fixture
def slurm(slurm_conf, monkeypatch):
    """Commands of this test, and what it starts, speak to that SLURM."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    return slurm_conf
