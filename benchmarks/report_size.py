"""How large the report of a large study is, and how long until a browser shows it.

    python benchmarks/report_size.py [--rows 40] [--tasks 10] [--shown 200] [--asked 2000] [--keep report.html]

Made up: every cell has answers to `--asked` questions and traces of the shown ones, of two stages, for every second row
with eight attention maps at each; every picture is a crop of a photograph of its own, 640 × 480. Prints the size of the
page and of its parts, how long it took to write, and, where there is a Chromium, the seconds from opening the file to
the leaderboard, to a reaction to a click, and to the first question with its pictures.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finepruner_lmms.benchmarks.limits import recorded
from finepruner_lmms.demo.scenes import photograph_paths
from finepruner_lmms.lmms.identity import Identity
from finepruner_lmms.lmms.traced import Stage, Traced
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Cell, Method, Study
from finepruner_lmms.matrix.report.page import html, questions
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.sections import ModelSection
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.traces import write_traces

METRIC = "accuracy,none"
MEASURE = {"metric": METRIC, "higher_is_better": True, "scale": 1.0, "per_sample": True}
SIDE = 24


class Photographs:
    """Questions about crops of photographs."""

    def __init__(self) -> None:
        paths = [path for split in ("train", "tuning", "test") for path in photograph_paths(split)]
        self._photographs = [Image.open(path).convert("RGB") for path in paths]

    def __contains__(self, number: int) -> bool:
        return True

    def evidence(self, number: int) -> list[list[int]]:
        """A box, as the miniatures have one."""
        return [[100, 100, 300, 250]]

    def text(self, number: int) -> str:
        """No two alike."""
        return f"What is to the left of the {random.Random(number).randbytes(6).hex()}?\nAnswer the question shortly."

    def pictures(self, number: int) -> list[Image.Image]:
        """One, which no other question has."""
        rng = random.Random(number)
        photograph = self._photographs[rng.randrange(len(self._photographs))]
        width, height = (max(64, int(side * rng.uniform(0.4, 0.95))) for side in photograph.size)
        left, top = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
        return [photograph.crop((left, top, left + width, top + height)).resize((640, 480))]

    def categories(self, _: str) -> dict[int, str]:
        """None."""
        return {}


def made_up(number: int, rng: np.random.Generator, maps: bool) -> Traced:
    """Scores that are smooth over the picture, so that masks and maps are as compressible as real ones."""
    rough = rng.random((8, 6, 6))
    smooth = np.stack(
        [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in rough]
    )
    order = np.argsort(-(smooth.mean(0) + 0.15 * rng.random((SIDE, SIDE))).reshape(-1))
    first, second = np.zeros(SIDE * SIDE, dtype=bool), np.zeros(SIDE * SIDE, dtype=bool)
    first[order[:192]] = second[order[:64]] = True
    small = np.clip(smooth.reshape(8, 12, 2, 12, 2).mean((2, 4)) * 255, 0, 255).astype(np.uint8) if maps else None
    heads, scores = tuple(rng.permutation(32)[:8].tolist()), tuple(rng.random(32).tolist())
    chosen = (heads, scores, small) if maps else (None, None, None)
    stages = Stage(2, first, None, *chosen), Stage(16, second, None, *chosen)
    return Traced(number, (SIDE, SIDE), SIDE * SIDE, stages, (576,) * 2 + (192,) * 14 + (64,) * 16)


def make(root: Path, rows: int, tasks: int, shown: int, asked: int) -> Store:
    """The study, written as a run would."""
    store, rng, cells = Store(root), np.random.default_rng(0), []
    budgets = [None, *(budget for _ in range(rows) for budget in (192, 128, 64))]
    methods = [
        Method(method="vanilla" if budget is None else f"method{n // 3}", budget=budget, parameters={}, given={})
        for n, budget in enumerate(budgets[:rows])
    ]
    chosen = sorted(recorded(range(asked), shown))
    # the same in every cell, which makes nothing smaller: each cell is compressed by itself
    traces = {maps: [made_up(n, rng, maps) for n in chosen] for maps in (False, True)}
    for task in range(tasks):
        name = f"task{task}"
        base = rng.random(asked) < 0.7
        for row, method in enumerate(methods):
            own = Identity(
                settings=f"{task} {row}", dtype="float16", checkpoint="c", libraries={}, engine={}, method={},
                task=f"t{task}", data=f"d{task}",
            )  # fmt: skip
            cell = Cell(
                id=own.id, slug=f"{name}-{row}", row=row, task=name, method=method, model=ModelSection(), limit=None,
                data=f"made up {task}", submission=False, identity=own, definition=f"{name}.yaml",
            )  # fmt: skip
            cells.append(cell)
            right = base ^ (rng.random(asked) < 0.05)
            samples: list[Any] = [
                {"doc_id": n, "image": f"{task}-{n}", "target": "yes" if n % 2 else "a table",
                 "answer": "yes" if right[n] else f"a chair {n % 50}", "score": float(right[n])}
                for n in range(asked)
            ]  # fmt: skip
            share = float(right.mean())
            result = {
                "id": cell.id,
                "measure": MEASURE,
                "metrics": {METRIC: share},
                "percent": 100 * share,
                "standard_error": 1.0,
            }
            result |= {"answered": asked, "expected": asked, "seconds": 1, "spec": {"task": name}}
            begin_attempt(store.cell_dir(cell), "1")
            write_result(store.cell_dir(cell), result, samples)
            if row:
                write_traces(store.cell_dir(cell), traces[row % 2 == 1])
    store.save_study(
        Study(
            name="made up", model="made up", num_layers=32, num_visual_tokens=SIDE * SIDE,
            tasks=tuple(dict.fromkeys(cell.task for cell in cells)), rows=tuple(methods), cells=tuple(cells),
        )
    )  # fmt: skip
    return store


def parts(page: str) -> Counter[str]:
    """Bytes of the page by the kind of its blocks."""
    found: Counter[str] = Counter()
    for name, data in re.findall(r'data-block="([^"]*)"[^>]*>([^<]*)<', page):
        kind = "pictures" if "pictures" in name else "questions" if name.startswith("q/") else name
        found[kind] += len(data)
    found["page and libraries"] = len(page) - found.total()
    return found


def opened(report: Path) -> dict[str, float] | None:
    """Seconds until a browser shows the leaderboard, has sorted it, and shows the first question; None without one."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 1440, "height": 900}).new_page()
        start, found = time.perf_counter(), {}
        page.goto(report.as_uri(), wait_until="commit")
        page.wait_for_selector("#leaderboard tbody tr")
        found["leaderboard"] = time.perf_counter() - start
        page.locator("#leaderboard thead button").nth(1).click()
        page.wait_for_selector("#leaderboard th[aria-sort=ascending], #leaderboard th[aria-sort=descending]")
        found["sorted by a click"] = time.perf_counter() - start
        again = time.perf_counter()
        page.locator("#leaderboard button.score").last.click()
        page.wait_for_selector("#flip canvas[data-drawn]")
        found["first question, from the click on a score"] = time.perf_counter() - again
        browser.close()
    return found


def main() -> None:
    """Make it, write it, open it."""
    asking = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("rows", 40), ("tasks", 10), ("shown", 200), ("asked", 2000)):
        asking.add_argument(f"--{name}", type=int, default=default)
    asking.add_argument("--keep", type=Path)
    given = asking.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder), given.rows, given.tasks, given.shown, given.asked)
        photographs = Photographs()
        questions.stored_questions = lambda *_: photographs  # type: ignore[assignment, return-value]
        target, start = given.keep or Path(folder) / "report.html", time.perf_counter()
        html.write_report([store], target)
        took = time.perf_counter() - start
        print(f"{given.rows * given.tasks} cells, {given.shown} questions each: written in {took:.1f} s")
        page = target.read_text(encoding="utf-8")
        print(
            f"{len(page.encode()) / 1e6:.1f} MB, {len(gzip.compress(page.encode(), 1)) / 1e6:.1f} MB compressed again"
        )
        for kind, size in parts(page).most_common():
            print(f"  {size / 1e6:6.2f} MB {kind}")
        for what, seconds in (opened(target) or {"no Chromium here": 0.0}).items():
            print(f"  {seconds:6.2f} s {what}")


if __name__ == "__main__":
    main()
