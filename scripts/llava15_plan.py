"""Print what `plan` says of the studies of configs/llava15 before anything runs: the tables of docs/llava15.md.

    python scripts/llava15_plan.py [--write docs/llava15.md]

Neither a checkpoint nor a GPU is needed: sizes are those of the release, hours those of H100s.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from finepruner_lmms.matrix.estimate import Estimate, estimate_study
from finepruner_lmms.matrix.forecast import show_duration
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.sensitivity import Sensitivity, of_average, of_family, sensitivities
from finepruner_lmms.matrix.study import open_study

FOLDER = Path(__file__).parents[1] / "configs/llava15"
STUDIES = ("budgets", "methods", "heads", "scoring_layers")
SIZES = {"7B": "", "13B": "_13b"}


@cache
def planned(name: str) -> tuple[Study, Estimate, list[Sensitivity]]:
    """A study with nothing done, its time, and the differences that its benchmarks can show."""
    with tempfile.TemporaryDirectory() as empty:
        matrix, store, study = open_study(FOLDER / f"{name}.yaml", Path(empty), planning=True)
        states = store.states(study.cells)
        time = estimate_study(matrix, study, states, study.cells, store, gpus=lambda: 0)
        assert time is not None and time.spread is not None and time.one is not None
        return study, time, sensitivities(store, study, states)


def costs() -> str:
    """Hours of each study, on one H100 and on eight."""
    lines = [
        "| study | model | rows × benchmarks | GPU-hours | range | one H100 | eight |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for name in STUDIES:
        for size, end in SIZES.items():
            study, time, _ = planned(f"{name}{end}")
            assert time.spread is not None and time.one is not None
            hours = time.total * time.gpus / 3600
            low, high = (f"{hours * share:.1f}" for share in time.spread)
            cells = [
                f"`{name}{end}`",
                size,
                f"{len(study.rows)} × {len(study.tasks)}",
                f"{hours:.1f}",
                f"{low} to {high}",
            ]
            lines.append(f"| {' | '.join([*cells, show_duration(time.one), show_duration(time.total)])} |")
    return "\n".join(lines) + "\n"


def found() -> str:
    """What two rows have to differ by for each study to find it; rows of both sizes are asked the same."""
    seen: dict[str, Sensitivity] = {}
    for name in STUDIES:
        seen |= {one.task: one for one in planned(name)[2]}
    lines = [
        f"| | {' | '.join(title(task) for task in seen)} | average | after Holm |",
        f"|:--|{'--:|' * (len(seen) + 2)}",
    ]
    questions = [f"{one.questions:,}" for one in seen.values()]
    lines.append(f"| questions | {' | '.join(questions)} | | |")
    for name in STUDIES:
        study, _, here = planned(name)
        tasks = {one.task: _shown(one.smallest) for one in here}
        cells = [tasks.get(task, "") for task in seen]
        times = f"× {of_family(len(study.rows) - 1):.2f} ({len(study.rows) - 1} rows)"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_shown(of_average(here))} | {times} |")
    return "\n".join(lines) + "\n"


def _shown(points: float) -> str:
    return f"{points:.0f} points" if points >= 10 else f"{points:.2f}"


def written(page: str) -> str:
    """The page with both tables as they are now, each between its marks."""
    for name, table in (("costs", costs()), ("found", found())):
        page, times = re.subn(
            rf"(<!-- table {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\g<2>", page, flags=re.DOTALL
        )
        assert times == 1, f"the page has no place for the table {name!r}"
    return page


def main(arguments: list[str]) -> Iterator[str]:
    """The tables, or the name of the page that they were written into."""
    if arguments[:1] == ["--write"]:
        page = Path(arguments[1])
        page.write_text(written(page.read_text()))
        yield f"written: {page}"
    else:
        yield from (costs(), found())


if __name__ == "__main__":
    print("\n".join(main(sys.argv[1:])))
