"""What `run` does once a study is written: follow it until it is done. The study was written by the test."""

import sys
from pathlib import Path

from rich.console import Console

from finepruner_lmms.errors import Failure
from finepruner_lmms.matrix.cluster.follow import follow
from finepruner_lmms.matrix.progress import PlainDisplay
from finepruner_lmms.matrix.run_settings import read_settings
from finepruner_lmms.matrix.store import Store

store = Store(Path(sys.argv[1]))
study = store.study()
settings = read_settings(store.root)
display = PlainDisplay(Console(soft_wrap=True), len(study.cells), 0)
try:
    follow(store, study, settings, display)
except Failure as failure:
    sys.exit(f"{type(failure).__name__}: {failure}")
