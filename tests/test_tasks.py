"""The tasks on the miniature benchmarks, run by lmms-eval itself with models that know the answers, or none."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager, get_task_dict
from oracle import Oracle

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.data import task_folders as tasks
from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.identity import data_identity
from finepruner_lmms.demo import benchmarks as demo
from finepruner_lmms.demo.question import NO_OCR, ONE_LETTER, ONE_LETTER_ZH, ONE_WORD, UNANSWERABLE

NAMES = ["vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn"]


def evaluate(name: str, answer, tmp_path: Path, limit: int | None = None, data: str = "demo"):
    model = Oracle(answer)
    folder = tasks.folder(data, limit=limit)
    manager = TaskManager(include_path=str(folder), include_defaults=False, model_name="llava_finepruner")
    out = simple_evaluate(
        model=model,
        tasks=[f"fp_{name}"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        datetime_str="t",
        cli_args=SimpleNamespace(output_path=str(tmp_path), process_with_media=False),
    )
    metric = out["results"][f"fp_{name}"][BENCHMARKS[name].metric]
    return float(metric), out["samples"][f"fp_{name}"], model


def right(doc) -> str:
    if "multiple_choice_answer" in doc:
        return doc["multiple_choice_answer"]
    if "answers" in doc:
        return doc["answers"][0]
    return "ABCD"[doc["answer"]] if "choices" in doc else doc["answer"]


def wrong(doc) -> str:
    """Opposites where there are two answers, else something that is never right."""
    return {"yes": "no", "no": "yes"}.get(right(doc).lower(), "E")


def half(doc) -> str:
    """Right for every other question, by something that no task orders by."""
    return right(doc) if len(str(doc["question"])) % 2 else wrong(doc)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knows_scores_full_and_one_that_does_not_scores_nothing(name, tmp_path):
    benchmark = BENCHMARKS[name]
    value, samples, model = evaluate(name, right, tmp_path)
    assert benchmark.percent(samples) == pytest.approx(100) and benchmark.value(samples) == pytest.approx(value)
    assert len(samples) == demo.SIZES[name] >= 200
    assert all("ASSISTANT" not in prompt and prompt.strip() == prompt for prompt in model.prompts.values())
    value, samples, _ = evaluate(name, wrong, tmp_path)
    assert value == 0 and benchmark.percent(samples) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_demanding_miniatures_are_scored_by_the_same_tasks(name, tmp_path):
    value, samples, model = evaluate(name, right, tmp_path, limit=40, data="demo-hard")
    assert len(samples) == 40 and BENCHMARKS[name].percent(samples) == pytest.approx(100)
    assert BENCHMARKS[name].value(samples) == pytest.approx(value)
    assert all("ASSISTANT" not in prompt and prompt.strip() == prompt for prompt in model.prompts.values())
    value, samples, _ = evaluate(name, wrong, tmp_path, limit=40, data="demo-hard")
    assert value == 0 and BENCHMARKS[name].percent(samples) == 0


@pytest.mark.parametrize("name", ["vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope", "mme"])
def test_our_score_is_lmms_evals_score(name, tmp_path):
    value, samples, _ = evaluate(name, half, tmp_path, limit=120)
    assert 0 < BENCHMARKS[name].percent(samples) < 100
    assert BENCHMARKS[name].value(samples) == pytest.approx(value, rel=1e-9)


def test_an_odd_limit_counts_the_whole_pairs_of_mme(tmp_path):
    value, samples, _ = evaluate("mme", right, tmp_path, limit=7)
    assert len(samples) == 6 and value == 600  # a pair of each of three categories; half of a fourth is not asked
    assert BENCHMARKS["mme"].value(samples) == 600


def test_scoring_decodes_no_image(tmp_path, monkeypatch):
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kw: decoded.append(1) or decode(*args, **kw))
    _, samples, _ = evaluate("pope", right, tmp_path, limit=24)
    # for the prompts of this model, which looks at each once; lmms-eval looks at one when it makes the task
    assert len(samples) == 24 and len(decoded) == 24 + 1


def test_a_limit_is_fair_on_data_that_is_sorted(tmp_path):
    (tmp_path / "pope").mkdir()
    (tmp_path / "mmbench").mkdir()
    table("pope").sort(["category", "answer"]).to_parquet(tmp_path / "pope" / "sorted.parquet")
    table("mmbench").sort("index").to_parquet(tmp_path / "mmbench" / "sorted.parquet")  # all first orders come first
    value, samples, _ = evaluate("pope", right, tmp_path, limit=12, data=str(tmp_path))
    assert value == 1 and Counter(s["pope_f1_mean"]["category"] for s in samples) == dict.fromkeys(
        ("adversarial", "popular", "random"), 4
    )
    _, samples, _ = evaluate("mmbench", right, tmp_path, limit=12, data=str(tmp_path))
    turns = Counter(sample["gpt_eval_score"]["index"] % 1_000_000 for sample in samples)
    assert len(samples) == 12 and set(turns.values()) == {4}


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn"])
def test_mmbench_is_scored_in_every_order_of_its_options(name, tmp_path):
    def only_in_two_orders(doc):
        return doc["answer"] if doc["index"] // 1_000_000 < 2 or doc["index"] % 2 else "E"

    value, samples, _ = evaluate(name, only_in_two_orders, tmp_path, limit=160)
    asked = {sample["gpt_eval_score"]["index"] % 1_000_000 for sample in samples}
    expected = 100 * sum(question % 2 for question in asked) / len(asked)
    assert len(asked) == 40 and 0 < expected < 100
    assert value == pytest.approx(expected) and BENCHMARKS[name].value(samples) == pytest.approx(expected)


def test_the_miniatures_are_asked_as_the_demo_model_was_taught(tmp_path):
    """The prompts of the task files are, to the letter, those of `demo.question.Question.prompt`."""
    taught = {
        "vizwiz": UNANSWERABLE + ONE_WORD,
        "sqa": ONE_LETTER,
        "textvqa": NO_OCR + ONE_WORD,
        "mmbench": ONE_LETTER,
        "mmbench_cn": ONE_LETTER_ZH,
    }
    for name in NAMES:
        _, _, model = evaluate(name, right, tmp_path, limit=8)
        assert all(prompt.endswith(taught.get(name, ONE_WORD)) for prompt in model.prompts.values()), name
        lines = model.prompts[0].splitlines()
        if name in ("sqa", "mmbench", "mmbench_cn"):
            assert [line[:3] for line in lines[-5:-1]] == ["A. ", "B. ", "C. ", "D. "]
            assert len(lines) == 6 + (name == "sqa") and (lines[0].startswith("Context: ") == (name == "sqa"))


# -- the data ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "vqav2": "question_type multiple_choice_answer answers image_id answer_type question_id question image",
    "gqa": "id imageId question isBalanced groups entailed equivalent types annotations semantic semanticStr answer "
    "fullAnswer",
    "textvqa": "image_id question_id question question_tokens image image_width image_height flickr_original_url "
    "flickr_300k_url answers image_classes set_name ocr_name ocr_info ocr_tokens",
    "pope": "id question_id question answer image_source image category",
    "mme": "question_id image question answer category",
    "mmbench": "index question hint answer A B C D category image source L2-category comment split",
    "mmbench_cn": "index question hint answer A B C D category image source L2-category comment split",
    "vizwiz": "question_id image question answers category",
    "sqa": "image question choices answer hint task grade subject topic category skill lecture solution",
}


def table(name: str, data: str = "demo") -> datasets.Dataset:
    folder = tasks.data_root(data) / name / ("testdev_balanced_instructions" if name == "gqa" else "")
    return datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")


@pytest.mark.parametrize("name", NAMES)
def test_the_columns_are_those_of_the_real_dataset(name):
    assert table(name).column_names == [*COLUMNS[name].split(), "evidence"]  # which real ones do not have


def test_the_answers_have_the_form_of_the_real_ones():
    assert all(len(row["answers"]) == 10 for row in table("vqav2").remove_columns("image"))
    assert set(table("vqav2")[0]["answers"][0]) == {"answer", "answer_confidence", "answer_id"}
    assert all(len(row) == 10 for row in table("textvqa")["answers"])
    assert set(Counter(table("mme")["question_id"]).values()) == {2}  # pairs
    assert Counter(table("mme")["answer"]) == {"Yes": 120, "No": 120}
    assert set(Counter(table("mme")["category"]).values()) == {60}
    assert Counter(table("pope")["answer"]) == {"yes": 120, "no": 120}
    rows = datasets.concatenate_datasets([table(name).remove_columns("image") for name in ("mmbench", "mmbench_cn")])
    for start in range(0, len(rows), 4):
        four = [rows[start + turn] for turn in range(4)]
        assert [row["index"] - four[0]["index"] for row in four] == [0, 1_000_000, 2_000_000, 3_000_000]
        assert len({row[row["answer"]] for row in four}) == 1 and len({row["answer"] for row in four}) == 4


def test_half_of_vizwiz_cannot_be_answered_and_half_of_scienceqa_has_a_context():
    rows = table("vizwiz").remove_columns("image")
    assert all(len(row["answers"]) == 10 and row["question_id"].endswith(".jpg") for row in rows)
    assert len(set(rows["question_id"])) == len(rows)  # a name of an image each
    assert Counter(rows["category"]) == {"unanswerable": 120, "other": 120}
    assert all((row["answers"][0] == "unanswerable") == (row["category"] == "unanswerable") for row in rows)
    rows = table("sqa").remove_columns("image")
    assert Counter(bool(hint) for hint in rows["hint"]) == {True: 120, False: 120}
    assert all(len(row["choices"]) == 4 and 0 <= row["answer"] < 4 for row in rows)


@pytest.mark.parametrize("name", ["vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope"])
def test_no_answer_is_so_frequent_that_guessing_pays(name):
    answers = Counter(str(right(row)) for row in table(name).select_columns(_answer_columns(name)))
    assert max(answers.values()) / sum(answers.values()) <= 0.55


def _answer_columns(name: str) -> list[str]:
    columns = {"vqav2": ["multiple_choice_answer"], "sqa": ["answer", "choices"]}
    return columns.get(name, ["answers"] if name in ("textvqa", "vizwiz") else ["answer"])


def test_the_tuning_questions_are_about_other_scenes(tmp_path):
    test, tuning = table("pope"), table("pope", "demo-tuning")
    assert set(test["image_source"]).isdisjoint(tuning["image_source"])
    assert test[0]["image"].tobytes() != tuning[0]["image"].tobytes()


# -- where tasks read their data --------------------------------------------------------------------------------------


def test_a_data_root_is_read_without_the_network(tmp_path):
    root = tmp_path / "root"
    (root / "pope").mkdir(parents=True)
    table("pope").select(range(12)).to_parquet(root / "pope" / "part.parquet")
    folder = tasks.folder(str(root))
    assert sorted(file.name for file in folder.glob("fp_*.yaml")) == ["fp_pope.yaml"]
    assert tasks.folder(str(root)) == folder  # the same root, the same folder
    assert tasks.data_root(str(root)) == root
    before = data_identity(str(root), "pope")
    table("pope").select(range(10)).to_parquet(root / "pope" / "part.parquet")
    assert data_identity(str(root), "pope") != before


NASTY = [
    "a*b", "a, b", "{a}", "{a,b}", "a #b", "[a]", "a?", "a: b", "it's", 'say "a"', "a\\b", "a\nb", "a\tb", " a ", "~",
    "&a", "!function a.b", "- a", "|", "%41", "null", "010", "**", ".a", "é中文", "😀", "a\u2028b", "a\x85b", "a\x1bb",
    "a\udcffb",
    "😀*[x] # {a, b}: 'c' \"d\"\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def tables_of_a_few_rows(tmp_path_factory) -> Path:
    """A table of six rows, and one of three that must not be read."""
    folder = tmp_path_factory.mktemp("tables")
    table("pope").select(range(6)).to_parquet(folder / "right.parquet")
    table("pope").select(range(6, 9)).to_parquet(folder / "wrong.parquet")
    return folder


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_no_character_of_a_path_means_anything(name, tmp_path, tables_of_a_few_rows):
    """Loaded by lmms-eval's own task manager, with what a pattern would find as well beside it."""
    for folder, content in ((name, "right"), ("a", "wrong"), ("aXb", "wrong"), ("ab", "wrong"), ("b", "wrong")):
        (tmp_path / folder / "pope").mkdir(parents=True)
        shutil.copy(tables_of_a_few_rows / f"{content}.parquet", tmp_path / folder / "pope" / "t.parquet")
    include = tasks.folder(str(tmp_path / name))
    manager = TaskManager(include_path=str(include), include_defaults=False, model_name="llava_finepruner")
    task = get_task_dict(["fp_pope"], manager)["fp_pope"]
    assert [row["question_id"] for row in task.test_docs()] == table("pope").select(range(6))["question_id"]


def test_no_character_of_the_path_of_a_second_table_means_anything(tmp_path):
    root = tmp_path / "😀*[x] # {a, b}"
    shutil.copytree(tasks.data_root("demo") / "gqa", root / "gqa")
    value, samples, _ = evaluate("gqa", right, tmp_path, limit=4, data=str(root))
    assert value == 1 and len(samples) == 4


@pytest.mark.parametrize("name", ["$HOME", "a${HOME}"])
def test_a_path_in_which_datasets_puts_the_value_of_a_variable_is_refused(name, tmp_path):
    (tmp_path / name / "pope").mkdir(parents=True)
    with pytest.raises(DataError, match=r"in whose place `datasets` puts the value of a variable; rename the folder"):
        tasks.folder(str(tmp_path / name))


def test_a_path_that_datasets_takes_for_an_archive_is_refused(tmp_path):
    (tmp_path / "a::b" / "pope").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has '::' in its path, .*; rename the folder"):
        tasks.folder(str(tmp_path / "a::b"))


def test_wrong_data_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="neither 'hub', 'demo' nor an existing folder"):
        tasks.folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds none of the folders"):
        tasks.folder(str(tmp_path))


def test_the_hub_tasks_name_public_datasets():
    for file in tasks.folder("hub").glob("fp_*.yaml"):
        text = file.read_text()
        plain = yaml.safe_load(text.replace("!function ", ""))
        assert plain["task"] == file.stem and plain["dataset_path"].startswith("lmms-lab-encoder/")
        assert file.stem.removeprefix("fp_") in BENCHMARKS


def test_the_miniatures_are_made_once_and_alike(tmp_path, monkeypatch):
    kept, built = {name: table(name).select(range(24)) for name in ("vqav2", "mme")}, []
    build = demo.build
    monkeypatch.setenv("FINEPRUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "SIZES", dict.fromkeys(demo.SIZES, 24))  # whole scenes of every benchmark
    monkeypatch.setattr(demo, "build", lambda *arguments: built.append(1) or build(*arguments))
    with ThreadPoolExecutor(3) as pool:  # whoever comes second waits for the folder of the first
        roots = set(pool.map(tasks.data_root, ["demo"] * 3))
    assert len(roots) == len(built) == 1
    for name, before in kept.items():
        again = table(name)
        assert json.dumps(again.remove_columns("image")[:]) == json.dumps(before.remove_columns("image")[:])
        assert [row["image"].tobytes() for row in again] == [row["image"].tobytes() for row in before]
