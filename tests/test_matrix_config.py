"""Matrix files: what they multiply out to, and where mistakes are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from finepruner_lmms import pruners
from finepruner_lmms.matrix.cells import expand
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.yaml_places import ConfigError, Document

GOOD = """\
name: study
model: {pretrained: demo}
data: demo
tasks: [pope, mme]
limit: 8
methods:
  - vanilla
  - {method: random, budget: [192, 64], seed: [0, 1]}
  - {method: finepruner, budget: 128, heads: [2, 4]}
"""
MANY = str(list(range(1000)))
LAUGHS = "[&a0 [x,x,x,x,x,x,x,x,x]" + "".join(f", &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)) + "]"


def write(folder: Path, text: str) -> Path:
    file = folder / "m.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_lists_multiply_within_an_entry(tmp_path):
    matrix = load_matrix(write(tmp_path, GOOD))
    assert [(row.method, row.arguments) for row in matrix.rows] == [
        ("vanilla", {}),
        ("random", {"budget": 192, "seed": 0}),
        ("random", {"budget": 192, "seed": 1}),
        ("random", {"budget": 64, "seed": 0}),
        ("random", {"budget": 64, "seed": 1}),
        ("finepruner", {"budget": 128, "heads": 2}),
        ("finepruner", {"budget": 128, "heads": 4}),
    ]
    cells = expand(matrix)
    assert len(cells) == 14 and len({cell.folder for cell in cells}) == 14
    assert [cell.task for cell in cells] == ["pope"] * 7 + ["mme"] * 7


def test_the_pruner_of_a_row_is_built_once(tmp_path, monkeypatch):
    built = []
    build = pruners.build_pruner
    monkeypatch.setattr(pruners, "build_pruner", lambda name, **given: built.append(name) or build(name, **given))
    matrix = load_matrix(write(tmp_path, GOOD))
    assert len(expand(matrix)) == 14 and built == ["vanilla"] + ["random"] * 4 + ["finepruner"] * 2


@pytest.mark.parametrize(
    "old, new, where, what",
    [
        ("tasks: [pope, mme]", "tasks: [pope, mne]", "4:15", "tasks.1: unknown task 'mne' (did you mean 'mme'?)"),
        ("tasks: [pope, mme]", "tasks: [pope, pope]", "4:15", "tasks.1: 'pope' is given twice"),
        ("tasks: [pope, mme]", "tasks: [pope, mmvet]", "4:15", "tasks.1: 'mmvet' needs a judge; add `judge: {url: "),
        ("limit: 8", "limit: 8\njudge: exact", "6:1", "judge: none of the tasks is judged"),
        (
            "[pope, mme]\nlimit: 8",
            "[mmbench]\nlimit: 8\njudge: later",
            "6:1",
            "leave it out, or give a server with `mmb",
        ),
        (
            "limit: 8",
            "limit: 8\njudge: {url: 'http://h', model: m, mmbench: true}",
            "6:36",
            "judge.mmbench: got true, but none",
        ),
        (
            "limit: 8",
            "limit: 8\njudge: {url: 'http://h', model: m, mmbench: 3}",
            "6:36",
            "judge.mmbench: got 3; expected",
        ),
        (
            "[pope, mme]\nlimit: 8",
            "[mmbench]\nsubmission: true\njudge: {url: 'http://h', model: m, mmbench: true}",
            "6:36",
            "judge.mmbench: got true, but with `submission: true`",
        ),
        ("limit: 8", "limit: 8\njudge: never", "6:1", "judge: got 'never'; expected 'later', 'exact', or a server"),
        ("limit: 8", "limit: 8\njudge: {url: 'http://h'}", "6:1", "judge.model: is missing"),
        ("limit: 8", "limit: 8\njudge: {url: h, model: m}", "6:9", "judge.url: got 'h'; expected an address such as"),
        ("limit: 8", "limit: 8\njudge: {modl: m}", "6:9", "judge.modl: unknown field (did you mean 'model'?)"),
        ("limit: 8", "limit: 8\njudge: {url: 'http://h', model: m, retries: -1}", "6:36", "judge.retries: got -1"),
        ("tasks: [pope, mme]", "tasks: []", "4:1", "tasks: got []"),
        ("tasks: [pope, mme]", "task: [pope]", "4:1", "task: unknown field (did you mean 'tasks'?)"),
        ("tasks: [pope, mme]\n", "", "1:1", "tasks: is missing"),
        ("limit: 8", "limit: 1", "5:1", "limit: got 1; mme asks two questions per image"),
        ("[pope, mme]\nlimit: 8", "[mmbench_cn]\nlimit: 3", "5:1", "limit: got 3; mmbench_cn asks every question"),
        ("limit: 8", "limit: lots", "5:1", "limit: got 'lots'"),
        ("data: demo", "data: demmo", "3:1", "data: 'demmo' is neither"),
        ("- vanilla", "- vanila", "7:5", "methods.0.method: unknown method 'vanila' (did you mean 'vanilla'?)"),
        ("- vanilla", "- fastv", "7:5", "methods.0.budget: is missing, and without one 'fastv' would keep every token"),
        ("budget: 128, ", "", "9:5", "methods.2.budget: is missing, and without one 'finepruner' would keep"),
        ("budget: 128", "budget: null", "9:26", "methods.2.budget: is missing"),
        ("- vanilla", "- divprune+fastv", "7:5", "methods.0.budget: is missing"),
        ("- vanilla", "- {budget: 64}", "7:5", "methods.0.method: got None"),
        (
            "seed: [0, 1]",
            "seeds: [0, 1]",
            "8:41",
            "methods.1.seeds: method 'random' does not read it (did you mean 'seed'?)",
        ),
        ("seed: [0, 1]", "seed: [0, 0]", "8:5", "methods.1: the same row as one of methods.1"),
        ("budget: 128", "budget: [128, '128']", "9:5", "methods.2: the same row as one of methods.2"),
        (
            "- vanilla",
            "- {method: random, budget: '64 ', seed: 1}",
            "8:5",
            "methods.1: the same row as one of methods.0",
        ),
        ("budget: 128", "budget: ['50%', 50.0%]", "9:5", "methods.2: the same row as one of methods.2"),
        ("seed: [0, 1]", "seed: []", "8:41", "methods.1.seed: the list is empty"),
        ("seed: [0, 1]", "seed: {a: 1}", "8:41", "methods.1.seed: got {'a': 1}; parameters are single values"),
        ("budget: [192, 64]", "budget: [192, lots]", "8:36", "methods.1.budget: got 'lots'"),
        ("heads: [2, 4]", "heads: [2, 99]", "9:50", "methods.2.heads: got 99; the layers of this model have"),
        ("budget: 128", "budget: 3", "9:26", "methods.2.budget: cannot reach"),
        ("{pretrained: demo}", "{pretrained: demo, dtype: int4}", "2:27", "model.dtype: got 'int4'"),
        ("{pretrained: demo}", "{pretrained: nowhere/at-all}", "2:9", "model.pretrained: cannot read"),
        ("{pretrained: demo}", "{pretrain: demo}", "2:9", "model.pretrain: unknown field (did you mean 'pretrained'?)"),
        (
            "limit: 8",
            "limit: 8\nlaunch: {processes: many}",
            "6:10",
            "launch.processes: got 'many'; expected a whole number or 'auto'",
        ),
        ("- vanilla", "- 5", "7:5", "methods.0: got 5; expected a text (in quotes"),
        ("limit: 8", "limit: 8\nname: again", "6:1", "name: given twice (first in line 1)"),
        ("tasks: [pope, mme]", "tasks: [pope, mme", "5:6", "expected ',' or ']'"),
        ("limit: 8", "limit: 2024-13-45", "5:1", "limit: got '2024-13-45'; expected a whole number"),
        ("limit: 8", "limit: 0x_", "5:8", "limit: got '0x_', which may be read as a number in hexadecimal notation"),
        ("limit: 8", "limit: !!int ''", "5:8", "got '', which cannot be read as YAML's 'int'"),
        ("limit: 8", "monitor: !!bool maybe", "5:10", "got 'maybe', which cannot be read as YAML's 'bool'"),
        ("limit: 8", "limit: '\0'", "5:9", r"the character '\x00' cannot stand in YAML"),
        ("limit: 8", "? [a, b]\n: 1", "5:3", "a key is a single word"),
        ("limit: 8", f"judge: {'{a: ' * 3000}", "5:84", "judge: is nested too deeply to be read"),
        ("limit: 8", f"judge: {LAUGHS}", "5:1", "judge: a file holds at most 100,000 values, repeated ones too"),
        ("data: demo", f"data: {'d' * 5000}", "3:1", "data: 'ddd"),
        ("heads: [2, 4]", f"heads: {MANY}, layer: {MANY}, seed: {MANY}", "9:39", "multiply to 1,000,000,000 rows"),
        ("name: study", f"name: {'x' * 300}", "1:1", "name: got 'xxx"),
        ("name: study", "name: ../away", "1:1", "name: got '../away'"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, old, new, where, what):
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as error:
        load_matrix(file)
    lines = str(error.value).splitlines()
    assert any(line.startswith(f"{file}:{where}: ") and what in line for line in lines), lines


def test_what_a_merge_brings_in_is_reported_where_it_stands(tmp_path):
    text = GOOD.replace("limit: 8", "limit: 8\nlaunch: {<<: {batch_size: 4}, processes: 0}")
    with pytest.raises(ConfigError, match=r"m\.yaml:6:31: launch\.processes: got 0"):
        load_matrix(write(tmp_path, text))
    merged = GOOD.replace("- vanilla", "- &shared {method: fastv, budget: 64}\n  - {<<: *shared, budget: lots}")
    with pytest.raises(ConfigError, match=r"m\.yaml:8:19: methods\.1\.budget: got 'lots'"):
        load_matrix(write(tmp_path, merged))


def test_a_file_in_another_encoding_is_named_with_the_place(tmp_path):
    (tmp_path / "m.yaml").write_bytes("name: x\ndata: r\u00e9sum\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"m\.yaml:2:8: is not UTF-8 from here"):
        load_matrix(tmp_path / "m.yaml")


def test_a_plug_ins_own_error_is_reported_at_its_entry(tmp_path, monkeypatch):
    def wrong(**_):
        raise ValueError("no such thing")

    monkeypatch.setattr("finepruner_lmms.pruners.build_pruner", lambda name, **given: wrong())
    with pytest.raises(ConfigError, match=r"m\.yaml:7:5: methods\.0: no such thing"):
        load_matrix(write(tmp_path, GOOD))


def test_the_home_directory_may_be_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        load_matrix(
            write(tmp_path, GOOD.replace("pretrained: demo", "pretrained: ~/weights").replace("demo", "~/root"))
        )
    assert f"data: '{tmp_path}/root' is neither" in str(error.value)
    (tmp_path / "weights").mkdir()
    with pytest.raises(ConfigError, match=f"model.pretrained: .*'{tmp_path}/weights' holds no config.json"):
        load_matrix(write(tmp_path, GOOD.replace("pretrained: demo", "pretrained: ~/weights")))


def test_all_mistakes_are_reported_at_once(tmp_path):
    text = GOOD.replace("[pope, mme]", "[pop, mme]").replace("vanilla", "vanila").replace("limit: 8", "limit: 1")
    with pytest.raises(ConfigError) as error:
        load_matrix(write(tmp_path, text))
    assert [int(line.split(":")[1]) for line in str(error.value).splitlines()] == [4, 5, 7]


def test_a_key_that_is_not_set_is_noticed_and_one_that_is_given_is_not_repeated(tmp_path, monkeypatch):
    text = GOOD.replace("[pope, mme]", "[mmvet]") + "judge: {url: 'http://h', model: m, key_env: %s}\n"
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"m\.yaml:10:36: judge\.key_env: NO_SUCH_KEY is not set; export it"):
        load_matrix(write(tmp_path, text % "NO_SUCH_KEY"))
    monkeypatch.setenv("NO_SUCH_KEY", "k")
    assert load_matrix(write(tmp_path, text % "NO_SUCH_KEY")).file.judge.url == "http://h/v1/chat/completions"
    with pytest.raises(ConfigError, match="not the name of an environment variable") as error:
        load_matrix(write(tmp_path, text % "sk-0123456789"))
    assert "sk-0123456789" not in str(error.value)


def test_a_file_that_is_not_there_or_not_a_mapping(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_matrix(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"m\.yaml:1:1: expected a mapping"):
        load_matrix(write(tmp_path, "- a\n- b\n"))


def test_an_id_changes_with_whatever_changes_an_answer(tmp_path, monkeypatch):
    def ids(text: str) -> list[str]:
        return [cell.id for cell in expand(load_matrix(write(tmp_path, text)))]

    first = ids(GOOD)
    assert ids(GOOD) == first
    # where and how fast it runs does not count, nor does naming a default
    assert ids(GOOD + "launch: {batch_size: 4}\n") == first
    assert ids(GOOD.replace("heads: [2, 4]", "heads: [2, 4], layer: 2")) == first
    assert not set(ids(GOOD.replace("limit: 8", "limit: 16"))) & set(first)
    assert not set(ids(GOOD.replace("{pretrained: demo}", "{pretrained: demo, dtype: bfloat16}"))) & set(first)
    assert not set(ids(GOOD.replace("data: demo", "data: demo-tuning"))) & set(first)
    judged = GOOD.replace("[pope, mme]", "[mmvet]")
    assert ids(judged + "judge: later\n") == ids(judged + "judge: exact\n")  # who judges changes no answer
    monkeypatch.setattr("finepruner_lmms.lmms.identity.engine_code", lambda _: {"engine": "other"})
    assert not set(ids(GOOD)) & set(first)


def test_merges_nest_and_come_in_lists_and_what_is_written_goes_first(tmp_path):
    text = """\
name: study
model: {pretrained: demo}
data: demo
tasks: [pope]
limit: 8
methods:
  - &a {method: fastv, budget: 192}
  - &b {<<: *a, layer: 3}
  - {<<: *b, budget: 128}
  - {<<: [{layer: 4, rows: renormalised}, *b], budget: [96, 80]}
launch: {<<: {<<: {batch_size: 4}, processes: 2}, processes: 1}
"""
    matrix = load_matrix(write(tmp_path, text))
    assert [row.arguments for row in matrix.rows] == [
        {"budget": 192},
        {"layer": 3, "budget": 192},
        {"budget": 128, "layer": 3},
        {"budget": 96, "layer": 4, "rows": "renormalised"},
        {"budget": 80, "layer": 4, "rows": "renormalised"},
    ]
    assert (matrix.file.launch.batch_size, matrix.file.launch.processes) == (4, 1)


@pytest.mark.parametrize(
    "written, value",
    [
        ("8", 8), ("-8", -8), ("+8", 8), ("1_000", 1000), ("0", 0), ("0.5", 0.5), (".5", 0.5), ("1e3", 1000.0),
        ("1.5E-2", 0.015), ("yes", True), ("OFF", False), ("~", None), ("null", None), ("", None), ("1.", 1.0),
        ("2024-11-26", "2024-11-26"), ("04:00:00", "04:00:00"), ("cuda:0", "cuda:0"), ("22%", "22%"), ("y", "y"),
        ("'8'", "8"), ("!!str 8", "8"), ("!!float 8", 8), ('"a\\tb"', "a\tb"), ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_a_word_is_what_everybody_reads(written, value, tmp_path):
    found = Document(write(tmp_path, f"given: {written}\n")).data["given"]
    assert found == value and type(found) is type(value)
