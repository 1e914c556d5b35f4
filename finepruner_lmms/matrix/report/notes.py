"""What a reader must know about the numbers of a leaderboard, in lines."""

from __future__ import annotations

from collections.abc import Iterator

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.protocol import LMMS_EVAL
from finepruner_lmms.errors import list_names
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.reading import BETTER, FEW, WAITING, WORSE, few
from finepruner_lmms.statistics.differences import FEW_DISCORDANT
from finepruner_lmms.statistics.scores import FEW_IMAGES

RELATIVE = {
    "ratios": "relative: mean over tasks of the score divided by vanilla's, ± standard error.",
    "means": "relative: average divided by vanilla's, ± standard error.",
}
"""Both published ways to compare with vanilla, with the note that says which it is."""
APART = "its maximum is not known or less is better"


def notes(board: Leaderboard, relative: str = "ratios") -> list[str]:
    """What a reader must know about the numbers."""
    return [
        *_asked(board),
        *_errors(board),
        f"average: mean share of the maximum. {RELATIVE[relative]}",
        *_differences(board),
        *_served(board),
        *_protocols(board),
        *_measures(board),
        *_judges(board),
        *_caveats(board),
        *_rows(board),
        *board.damaged,
    ]


def _asked(board: Leaderboard) -> Iterator[str]:
    counts = []
    for task in board.tasks:
        if task in board.questions:
            images = {line.scores[task].images for line in board.lines if task in line.scores} - {0}
            about = f" about {max(images)} images" if images else ""
            counts.append(f"{title(task)} {board.questions[task]}{about}")
    yield f"Questions: {', '.join(counts) or 'none answered yet'}."
    if board.questions.get("mme", 0) % 2:
        yield "MME: the question whose partner was not asked is left out."


def _errors(board: Leaderboard) -> Iterator[str]:
    yield (
        "[low, high]: 95 % interval over images; it covers neither seeds (but where rows are means of several), nor "
        "judges, nor other models. MME in points, the rest in percent."
    )
    scores = [(task, line.scores[task]) for line in board.lines for task in board.tasks if task in line.scores]
    if any(score.shown_low is None for _, score in scores):
        yield "[–]: no interval is known, as single questions have no scores."
    small = dict.fromkeys(title(task) for task, score in scores if 0 < score.images < FEW_IMAGES)
    if small:
        yield f"{', '.join(small)}: fewer than {FEW_IMAGES} images, so intervals are less sure than they say."


def _differences(board: Leaderboard) -> Iterator[str]:
    deltas = [delta for line in board.lines for delta in line.deltas.values()]
    if any(line.best for line in board.lines):
        yield (
            "Best of its budget, bold or with *: the highest score, and all whose paired 95 % interval to it holds 0."
        )
    if not deltas:
        return
    against = f"minus {board.baseline}" if board.baseline else "minus fastv at the same budget, or else minus vanilla"
    yield f"Δ: {against}, question by question; interval over images."
    if any(delta.mark for delta in deltas):
        yield f"{BETTER} better, {WORSE} worse at 5 %, by Holm over all rows of the column."
    if any(delta.mark and delta.difference.holds_zero for delta in deltas):
        yield (
            "An arrow beside an interval that holds 0: the test exchanges the answers of each image, the interval also "
            "allows for differences that so few images did not show."
        )
    if any(map(few, deltas)):
        yield f"{FEW}: fewer than {FEW_DISCORDANT} answers differ, so that the difference says little."


def _served(board: Leaderboard) -> Iterator[str]:
    if served := [title(task) for task in board.tasks if any(task in line.submitted for line in board.lines)]:
        yield f"{', '.join(served)}: for its server, in the cell's folder; no part of the average."


def _protocols(board: Leaderboard) -> Iterator[str]:
    found = {task: {line.scores[task].protocol for line in board.lines if task in line.scores} for task in board.tasks}
    if others := [title(task) for task, protocols in found.items() if LMMS_EVAL in protocols]:
        rules = "scored by lmms-eval's rules (protocol: lmms_eval), not by those of published figures."
        yield f"{', '.join(others)}: {rules}"
    if mixed := [title(task) for task, protocols in found.items() if len(protocols) > 1]:
        yield f"{', '.join(mixed)}: rows by both rules, which do not compare."


def _measures(board: Leaderboard) -> Iterator[str]:
    """How the tasks that are none of the ten are measured."""
    for task in board.tasks:
        if (measure := board.measures.get(task)) is None:
            continue
        unit = "as lmms-eval prints it" if task in board.apart else "in percent"
        less = "" if measure.higher_is_better else ", less is better"
        alone = "" if measure.per_sample else "; single questions have no score, so that no error is known"
        others = [name.partition(",")[0] for name in measure.directions if name != measure.metric]
        more = f"; also measured: {list_names(others)}" if others else ""
        yield f"{task}: lmms-eval's {measure.metric.partition(',')[0]}, {unit}{less}{alone}{more}."
    unknown = [task for task in board.apart if task in board.measures]
    if unknown:
        yield f"{', '.join(unknown)}: no part of averages, since {APART}."
    if lacking := [title(task) for task in board.apart if task not in board.measures]:
        yield f"{', '.join(lacking)}: no part of averages, since not every study has it."


def _judges(board: Leaderboard) -> Iterator[str]:
    for task, judges in board.judges.items():
        name = title(task)
        if "exact" in judges:
            yield f"{name} (exact) is scored by string match: not comparable with published scores."
        if models := [name for name in judges if name != "exact"]:
            several = " More than one judge: scores of different judges are not comparable." if len(judges) > 1 else ""
            some = f": {board.asked[task]} answers without a letter read"
            what = " is judged" if task in BENCHMARKS and BENCHMARKS[task].judged else some
            yield f"{name}{what} by {', '.join(models)}.{several}"


def _caveats(board: Leaderboard) -> Iterator[str]:
    """Of methods that are not all that their name or paper says."""
    from finepruner_lmms.pruners.registry import known_methods, method_class

    known = set(known_methods())
    named = dict.fromkeys(part for line in board.lines if not line.imported for part in line.method.split("+"))
    for name in (one for one in named if one in known):
        if said := vars(method_class(name)).get("caveat"):
            yield f"{name}: {said}."


def _rows(board: Leaderboard) -> Iterator[str]:
    if there := [line.method for line in board.lines if line.imported]:
        yield f"Imported, not run here: {', '.join(there)}."
    if any(line.waiting for line in board.lines):
        yield f"{WAITING}: answered, waiting for the judge; 'judge OUTPUT' asks it."
    for line in board.lines:
        if line.spread is not None:
            yield (
                f"{line.method} {line.budget}: mean of {len(line.seeds)} seeds, whose averages spread by "
                f"{line.spread:.2f} (standard deviation)."
            )
