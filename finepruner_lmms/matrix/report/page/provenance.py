"""Where a study's numbers come from, for people: versions, machine, times, the matrix file, and what ± covers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.records import Damage, Provenance, Result
from finepruner_lmms.matrix.run_settings import read_settings
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.redaction import KEY, has_shape_of_key

COVERS = (
    "± is one standard error, and intervals are of 95 %: both cover which images were drawn, of images like these. "
    "Questions about one image count together.",
    "They do not cover another seed of a method (rows of several seeds say their spread), another judge, another "
    "prompt or another model.",
    "Two rows answer the same questions: whether they differ is read from Δ and its interval, not from bars that "
    "overlap.",
)
"""What ± and intervals cover, and what they do not."""
_MOST_COMMANDS = 20


def provenance_data(store: Store, name: str) -> dict[str, Any]:
    """Of the study called `name`: facts and versions as pairs of texts, the matrix file, and the commands."""
    study = store.study()
    results = [state.result for state in store.states(study.cells)]
    done = [result for result in results if result is not None]
    written = [result.provenance for result in done if result.provenance is not None]
    return {
        "of": name,
        "facts": _facts(study, done, written),
        "versions": _versions(written),
        "yaml": _matrix_file(store),
        "commands": list(_several(p.command for p in written))[:_MOST_COMMANDS],
    }


def _matrix_file(store: Store) -> list[tuple[str, str]]:
    """Its name and text, as the latest `run` read it, without what looks like a key; empty where nothing was run."""
    try:
        settings = read_settings(store.root)
    except Damage:
        return []
    lines = [KEY if has_shape_of_key(line) else line for line in settings.written.splitlines()]
    return [(settings.file.name, "\n".join(lines))] if lines else []


def _facts(study: Study, done: Sequence[Result], written: Sequence[Provenance]) -> list[tuple[str, str]]:
    started, finished = [p.started for p in written if p.started], [p.finished for p in written if p.finished]
    seconds = [result.seconds for result in done if result.seconds is not None]
    found = [
        ("model", [study.model]),
        ("data", _several(cell.data for cell in study.cells)),
        ("cells", [f"{len(done)} of {len(study.cells)} done"]),
        ("answers", [f"{sum(result.answered for result in done):,}"]),
        ("device", _several(p.device for p in written)),
        ("processes", _several(p.devices for p in written)),
        ("driver", _several(p.driver for p in written)),
        ("system", _several(p.system for p in written)),
        ("dtype", _several(p.dtype for p in written)),
        ("batch size", _several(p.batch_size for p in written)),
        ("code", _several(p.git_revision for p in written)),
        ("started", [min(started)] if started else []),
        ("finished", [max(finished)] if finished else []),
        ("time of all cells", [_time(sum(seconds))] if seconds else []),
        ("energy of the GPUs", _energy(written)),
    ]
    return [(name, ", ".join(values)) for name, values in found if values]


def _versions(written: Sequence[Provenance]) -> list[tuple[str, str]]:
    """Each package with its version; with all of them where cells were answered with several."""
    names = dict.fromkeys(name for p in written for name in p.versions)
    found = [(name, ", ".join(_several(p.versions.get(name) for p in written))) for name in names]
    python = _several(p.python for p in written)
    return [("python", ", ".join(python)), *found] if python else found


def _several(values: Iterable[object]) -> list[str]:
    """The values that there are, each once."""
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _energy(written: Sequence[Provenance]) -> list[str]:
    """Of what was answered alone: cells that were answered as one share theirs."""
    joules = [p.joules for p in written if p.joules is not None and p.together in (None, 1)]
    return [f"{sum(joules) / 3.6e6:.3f} kWh"] if joules and len(joules) == len(written) else []


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
