"""Everything that only a GPU can show, in a few minutes.

    python scripts/gpu_check.py --out gpu_check.json
    python scripts/gpu_check.py --sections device,prefill,decode
    python scripts/gpu_check.py --quick --device cpu          # the same code on small sizes, to try it

Needs the package, torch and transformers; `accelerate` and lmms-eval for the last section alone. Sections are
independent: one that fails is reported with its reason, and the others go on; each stops where its time is used up and
says what it left out. Models have random weights, so nothing is downloaded. What is found goes to `--out` (JSON,
written after each section) and to the standard output, with a table at the end: asked, found, and whether it passes.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from gpu_checks import parts, right, speed, waiting, whole
from gpu_checks.run import Run, Skipped, first_line

SECTIONS: dict[str, tuple[Callable[[Run], None], float]] = {
    section.__name__: (section, seconds)
    for section, seconds in (
        (parts.device, 15),
        (right.graphs_equality, 50),
        (right.cpu_equality, 30),
        (right.families, 30),
        (speed.prefill, 35),
        (speed.decode, 45),
        (speed.end_to_end, 40),
        (speed.batch32, 40),
        (parts.memory, 30),
        (parts.selection, 40),
        (waiting.capture, 30),
        (waiting.waits, 25),
        (parts.vision, 15),
        (right.drift, 25),
        (whole.bench, 45),
        (whole.sweep, 90),
    )
}
"""Sections by their functions' names, and how many seconds each may take; what matters most comes first."""


def check(run: Run, names: Sequence[str], minutes: float = 4.0) -> bool:
    """Run sections, each by itself; returns whether none failed and nothing fell short."""
    started = time.monotonic()
    for name in names:
        function, seconds = SECTIONS[name]
        began, state, reason = time.monotonic(), "done", ""
        left = 60 * minutes - (began - started)
        run.begin(name, min(left, 20 if run.quick else seconds))
        try:
            if left < 0:
                raise Skipped(f"the {minutes:g} minutes are used up")
            with torch.no_grad():
                function(run)
        except Skipped as error:
            state, reason = "skipped", str(error)
        except Exception as error:  # noqa: BLE001 - a section may fail in any way, and the others go on
            state, reason = "failed", first_line(error)
            traceback.print_exc()
        if run.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        run.free()
        taken = round(time.monotonic() - began, 1)
        run.sections.append({"section": name, "state": state, "reason": reason, "seconds": taken})
        run.say(state=state, reason=reason, seconds=taken)
        run.save()
    print(f"\n{summary(run)}\n{time.monotonic() - started:.0f} s in all", flush=True)
    return all(one["state"] != "failed" for one in run.sections) and all(line.passed is not False for line in run.lines)


def shortened(text: str, most: int = 110) -> str:
    """So that a table stays one; the facts say it all."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def summary(run: Run) -> str:
    """The table of what was asked, and what became of each section."""
    words = {True: "pass", False: "FAIL", None: "-"}
    rows = [("figure", "asked", "found", "")]
    rows += [(line.figure, line.asked, shortened(line.found), words[line.passed]) for line in run.lines]
    rows += [
        (f"section {one['section']}", "", shortened(f"{one['state']}: {one['reason']}"), "FAIL")
        for one in run.sections
        if one["state"] != "done"
    ]
    rows = [(*row[:3], "-") if row[2].startswith("skipped") else row for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where everything that was asked for was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for all that is found")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="separated by commas: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=4.0, help="sections begin no later (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: to try the script itself")
    given = parser.parse_args(arguments)
    names = given.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--sections: unknown {unknown[0]!r}; known: {', '.join(SECTIONS)}")
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch sees no GPU; use --device cpu --quick")
    if device.type == "cpu" and not given.quick:
        parser.error("--device cpu: the full sizes take hours there; add --quick")
    return 0 if check(Run(device, given.quick, given.out), names, given.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
