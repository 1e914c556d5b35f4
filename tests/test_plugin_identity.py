"""What a plug-in's results depend on: all of its code, in a package that pip really installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import finepruner_lmms as fp

METHOD = (Path(fp.__file__).parent / "pruners" / "uniform.py").read_text(encoding="utf-8")
FILES = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "shades"
version = "1.0"
[project.entry-points."finepruner_lmms.methods"]
deep = "shades.methods.deep"
single = "shade_single"
spaced = "shadespace.method"
wrapped = "shades_wrapper"
heads = "shades.heads"
[tool.hatch.build.targets.wheel]
include = ["*.py", "*.json", "*.py.txt"]
""",
    "shades/__init__.py": "",
    "shades/methods/__init__.py": "",
    "shades/methods/deep.py": METHOD.replace('"uniform"', '"deep"') + "\nfrom shades.tables.weights import WEIGHTS\n",
    "shades/tables/__init__.py": "",
    "shades/tables/weights.py": "WEIGHTS = [1]\n",
    "shades/tables/table.json": "{}\n",
    "shades/old.py": "print 'of another Python'\n",
    "shades/heads.py": (
        "import functools\nfrom finepruner_lmms.heads.registry import register_head_strategy\n"
        "from shades.tables.weights import WEIGHTS\ndef score(view, power):\n  return view.attention.sum(-1) ** power\n"
        "register_head_strategy('shaded')(functools.partial(score, power=2))\n"
    ),
    "shade_single.py": METHOD.replace('"uniform"', '"single"') + "\nimport shade_help\n",
    "shade_help.py": "HELP = 1\n",
    "shadespace/method.py": METHOD.replace('"uniform"', '"spaced"'),
    "shadespace/inner/help.py": "HELP = 1\n",
    "shade_plain.py": METHOD.replace('@register("uniform")', ""),
    "shades_wrapper.py": (
        "import shade_plain\nfrom finepruner_lmms.pruners import register\n"
        "shade_plain.FACTOR = 1\nregister('wrapped')(shade_plain.Uniform)\n"
    ),
}
IDS = """
import json, sys
from pathlib import Path
import finepruner_lmms as fp
from finepruner_lmms.lmms.identity import answer_identity
from finepruner_lmms.sources import Sources
package, site, edits = Path(fp.__file__).parent, Path(sys.argv[1]), json.loads(sys.argv[2])
fp.METHODS
pruners = [fp.build_pruner(name, budget=64) for name in ("deep", "single", "spaced", "wrapped", "fastv")]
pruners.append(fp.build_pruner("finepruner", budget=64, head_strategy="shaded", heads=4))
def ids():
    sources = Sources(package, "finepruner_lmms")
    return [answer_identity(pruner, {}, "float32", "c", 576, sources) for pruner in pruners]
before, changed = ids(), {}
for file, text in edits:
    kept = (site / file).read_text()
    (site / file).write_text(kept + text)
    after = ids()
    changed[f"{file} {text.strip()}"] = [p.name for p, a, b in zip(pruners, before, after) if a.id != b.id]
    for pruner, a, b in zip(pruners, before, after):
        assert a.id == b.id or b.changes_since(a) == [f"{pruner.name}'s code changed"]
    (site / file).write_text(kept)
assert [one.id for one in ids()] == [one.id for one in before]
print(json.dumps(changed))
"""
SHADES = ["deep", "finepruner"]  # the second by its head strategy, a `functools.partial`
EDITS = {
    ("shades/tables/weights.py", "WEIGHTS.append(2)\n"): SHADES,
    ("shades/tables/weights.py", "# words\n"): [],
    ("shades/tables/table.json", " "): SHADES,
    ("shades/old.py", "print 1\n"): SHADES,
    ("shades/methods/deep.py", "X = 1\n"): SHADES,
    ("shades/heads.py", "X = 1\n"): SHADES,
    ("shade_single.py", "X = 1\n"): ["single"],
    ("shade_help.py", "X = 1\n"): ["single"],
    ("shadespace/inner/help.py", "X = 1\n"): ["spaced"],
    ("shade_plain.py", "X = 1\n"): ["wrapped"],
    ("shades_wrapper.py", "shade_plain.FACTOR = 2\n"): ["wrapped"],
}


@pytest.mark.slow
def test_an_edited_helper_of_an_installed_plug_in_is_another_method(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-compile"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True)
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{IDS}"
    edits = json.dumps(list(EDITS))
    done = subprocess.run([sys.executable, "-c", program, str(site), edits], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {f"{file} {text.strip()}": names for (file, text), names in EDITS.items()}
