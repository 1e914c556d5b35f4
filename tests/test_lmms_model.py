"""The model inside lmms-eval: in process, and as a user launches it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from loguru import logger
from PIL import Image

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.fetch import resolve
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.answering import Answering
from finepruner_lmms.lmms.journal import read_journal
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.lmms.plain_run import Answerer

TASK = """
task: toy
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function toy_utils.visual
doc_to_text: "question"
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false, until: ["\\n\\n"]}}
process_results: !function toy_utils.results
metric_list:
  - {{metric: hit, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")] if doc["image"] is not None else []

def results(doc, answers):
    return {"hit": float(answers[0] == doc["answer"])}
"""
QUESTIONS = [
    "Is there a red star in the image?\nAnswer the question using a single word or phrase.",
    "What color is the circle?\nAnswer the question using a single word or phrase.",
    "What shape is the red object?\nAnswer with the option's letter from the given choices directly.",
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A task of 13 questions: several an image, some without one, prompts of different length."""
    import datasets

    folder = tmp_path_factory.mktemp("toy")
    pictures = [Image.effect_noise((300 + 40 * i, 336), 60).convert("RGB") for i in range(3)]
    rows = [
        {"question": QUESTIONS[i % 3] * (1 + i % 2), "answer": "yes", "image": None if i % 5 == 4 else pictures[i % 3]}
        for i in range(13)
    ]
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "test.parquet")
    (folder / "toy.yaml").write_text(TASK.format(data=folder / "test.parquet"))
    (folder / "toy_utils.py").write_text(UTILS)
    return folder


def evaluate(model, toy: Path, **options):
    manager = TaskManager(include_path=str(toy), include_defaults=False, model_name="llava_finepruner")
    out = simple_evaluate(
        model=model,
        tasks=["toy"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        datetime_str="t",
        **options,
    )
    return {s["doc_id"]: s["filtered_resps"][0] for s in out["samples"]["toy"]}, out


@pytest.fixture(scope="module")
def model() -> LlavaFinePruner:
    return LlavaFinePruner(pretrained="demo", batch_size=4)


def test_registered_by_installation():
    entries = metadata.entry_points(group="lmms_eval.models")
    assert any(e.value == "finepruner_lmms.lmms.registration:manifests" for e in entries)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "fastvv"}, "did you mean 'fastv'"),
        ({"method": "fastv", "heads": 3}, "method 'fastv' does not read it"),
        ({"budgett": 64}, "unknown argument 'budgett' .did you mean 'budget'"),
        ({"budget": 64}, "cannot reach"),
        ({"method": "random", "budget": 64, "visual_token_num": 64}, "same argument"),
        ({"method": "finepruner", "heads": 9, "budget": 300}, "8 query heads"),
        ({"conv": "llama_3"}, "conv: got 'llama_3'; known: vicuna_v1, chat_template"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio: got 'anyres'"),
        ({"batch_size": "auto"}, "batch_size: got 'auto'"),
        ({"dtype": "fp16"}, "dtype: got 'fp16'"),
        ({"debug": "yes"}, "debug: got 'yes'"),
        ({"enable_dynamic_selection": True, "method": "fastv"}, "enable_dynamic_selection"),
        ({"pretrained": "no/such-model"}, "pretrained: cannot read"),
    ],
)
def test_arguments_are_checked_before_weights_are_read(arguments, message, monkeypatch):
    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("finepruner_lmms.lmms.pruned_model.read_model", read)
    with pytest.raises(ValueError, match=message):
        LlavaFinePruner(**({"pretrained": "demo"} | arguments))


def test_arguments_as_lmms_eval_parses_them():
    parsed = ModelArguments.parse({"pretrained": "demo", "method": "finepruner", "visual_token_num": 192, "H": 8.0})
    assert parsed.build_pruner() == fp.build_pruner("finepruner", budget=192, heads=8)
    assert ModelArguments.parse({"method": "fastv", "budget": "22%"}).build_pruner().budget == "22%"
    assert ModelArguments.parse({"batch_size": "16", "max_batch_size": None}).batch_size == 16


def test_arguments_from_numpy_are_those_of_python(monkeypatch):
    given = {"method": "fastv", "budget": np.int64(64), "layer": np.int32(2), "batch_size": np.int64(4)}
    parsed = ModelArguments.parse(given | {"max_new_tokens": np.int64(8), "debug": np.bool_(True)})
    assert parsed == ModelArguments.parse(
        {"method": "fastv", "budget": 64, "layer": 2, "batch_size": 4} | {"max_new_tokens": 8, "debug": True}
    )
    assert json.dumps([parsed.method_arguments, parsed.batch_size, parsed.max_new_tokens])


def test_a_checkpoint_may_be_named_from_the_home_directory_or_by_a_number(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert ModelArguments.parse({"pretrained": "~/llava"}).pretrained == "/home/me/llava"
    assert ModelArguments.parse({"pretrained": "~nobody-of-that-name/x"}).pretrained == "~nobody-of-that-name/x"
    assert ModelArguments.parse({"pretrained": 7}).pretrained == "7"  # lmms-eval reads the name as a number


def test_an_error_names_its_field_as_data():
    for arguments, field in [
        ({"debug": 3}, "debug"),
        ({"budgett": 3}, "budgett"),
        ({"H": 2, "heads": 3}, "H"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"method": "fastv", "budget": "x"}, "budget"),
    ]:
        with pytest.raises(FieldError) as error:
            ModelArguments.parse(arguments)
        assert error.value.field == field


def test_a_chat_template_is_checked_before_weights_are_read_and_starts_once(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(resolve("demo"), tmp_path / "demo"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + template)
    doubled = LlavaFinePruner(pretrained=str(folder), conv="chat_template")
    plain = LlavaFinePruner(pretrained="demo", conv="chat_template")
    rows = []
    for model in (doubled, plain):
        model.task_dict = {"t": {"test": [Image.new("RGB", (9, 9))]}}
        arguments = (QUESTIONS[0], {"max_new_tokens": 2}, lambda picture: [picture], 0, "t", "test")
        metadata = {"task": "t", "doc_id": 0, "repeats": 1}
        request = Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)
        ((prepared,),) = model._prepared_windows([model.asked(request)])
        rows.append(prepared.prompt.ids)
    assert rows[0] == rows[1] and rows[0].count(plain.tokenizer.bos_token_id) == 1

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("finepruner_lmms.lmms.pruned_model.read_model", read)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(FieldError, match="conv: 'chat_template' needs the checkpoint's own template, and it has none"):
        LlavaFinePruner(pretrained=str(folder), conv="chat_template")


def test_answers_do_not_depend_on_batches(model, toy):
    # only a fast machine's arithmetic differs with the batch; the demo's answers must not
    settings = {"method": "finepruner", "budget": 200, "heads": 3}
    model.configure(**settings)
    together, _ = evaluate(model, toy)
    one = LlavaFinePruner(pretrained="demo", batch_size=1, **settings)
    alone, _ = evaluate(one, toy)
    assert together == alone and len(together) == 13 and all(together.values())


def test_lmms_eval_gets_times_also_where_its_cache_takes_the_answers(model, toy, tmp_path):
    """The cache takes the last answer and does not come back, so that what stands after it is never run."""
    model.configure(method="random", budget=16)
    _, out = evaluate(model, toy, use_cache=str(tmp_path))
    found, spent = out["throughput"], model.meter.spent()
    assert spent.questions == 13 and found["avg_latency"] == pytest.approx(spent.seconds / 13)
    assert found["total_gen_tokens"] == sum(s["token_counts"][0]["output_tokens"] for s in out["samples"]["toy"])


def test_settings_follow_one_another_without_a_trace(model, toy):
    """A, B, A: the second A equals the first; the model is loaded once and images are encoded once."""
    model.configure(method="fastv", budget=200)
    first, _ = evaluate(model, toy)
    encoded = model.images.encoded
    model.configure(method="random", budget=16)
    other, _ = evaluate(model, toy)
    model.configure(method="fastv", budget=200)
    again, out = evaluate(model, toy)
    assert first == again and model.images.encoded == encoded
    # transformers leaves hooks of its own on the vision tower
    decoder = model.model.model.language_model
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in decoder.modules())
    counts = [s["token_counts"][0] for s in out["samples"]["toy"]]
    assert all(c["input_tokens"] > 20 and 1 <= c["output_tokens"] <= 4 for c in counts)
    assert set(first) == set(other)


def test_the_cached_image_path_is_the_plain_one(model, toy):
    """Through lmms-eval, the prompt and pixels are what the processor and `generate` make of them."""
    model.configure(method="vanilla")
    picture = Image.effect_noise((336, 336), 50).convert("RGB")
    prompt = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the user's questions. USER: <image>\n{QUESTIONS[1]} ASSISTANT:"
    )
    inputs = model.processor(images=picture, text=prompt, return_tensors="pt")
    plain = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    model.task_dict = {"t": {"test": [picture]}}
    request = Instance(
        request_type="generate_until",
        arguments=(QUESTIONS[1], {"max_new_tokens": 4}, lambda p: [p], 0, "t", "test"),
        idx=0,
        metadata={"task": "t", "doc_id": 0, "repeats": 1},
    )
    (answer,) = model.generate_until([request])
    assert answer.text == model.tokenizer.decode(plain[0], skip_special_tokens=True).strip()
    assert answer.token_counts.input_tokens == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("where", ["file", "dataset"])
def test_half_an_image_is_an_error_that_names_the_document(model, where, tmp_path):
    """lmms-eval lets Pillow fill up what is missing with grey, and would go on."""
    import datasets
    from PIL import ImageFile

    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    Image.effect_noise((200, 150), 90).convert("RGB").save(tmp_path / "half.jpg")
    content = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    files = [{"image": None}] * 7 + [{"image": str(tmp_path / "half.jpg")}]
    rows = datasets.Dataset.from_list(files, features=datasets.Features({"image": datasets.Image()}))
    model.task_dict = {"t": {"test": rows if where == "dataset" else [row["image"] for row in files]}}

    def visual(document):
        return [document["image"] if where == "dataset" else Image.open(document)]

    request = Instance(
        request_type="generate_until",
        arguments=(QUESTIONS[1], {"max_new_tokens": 4}, visual, 7, "t", "test"),
        idx=0,
        metadata={"task": "t", "doc_id": 7, "repeats": 1},
    )
    with pytest.raises(ValueError, match=r"task 't', document 7: its image cannot be read .image file is truncated"):
        list(model.generate_until([request]))


def ask(model, documents, count: int, visual):
    """Questions about the first `count` documents, each with its own."""
    model.task_dict = {"t": {"test": documents}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(QUESTIONS[i % 3], {"max_new_tokens": 2}, visual, i, "t", "test"),
            idx=0,
            metadata={"task": "t", "doc_id": i, "repeats": 1},
        )
        for i in range(count)
    ]
    return model.generate_until(requests)


def test_a_damaged_image_of_a_later_window_stops_only_what_comes_after(model, tmp_path):
    """Windows are read ahead, but an error is raised at its own: what was asked before is answered first."""
    Image.effect_noise((200, 150), 90).convert("RGB").save(tmp_path / "half.jpg")
    content = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    model.configure(method="random", budget=16)
    documents = [None] * 40 + [tmp_path / "half.jpg"]
    asked = ask(model, documents, 41, lambda document: [] if document is None else [Image.open(document)])
    answers = []
    with pytest.raises(FieldError, match=r"task 't', document 40: its image cannot be read .image file is truncated"):
        for answer in asked:
            answers.append(answer)
    assert len(answers) == 28  # the windows before are of one, two and four batches of four
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_answers_depend_neither_on_the_cache_nor_on_chunks_nor_on_repeated_pictures(model):
    pictures = [Image.effect_noise((300 + 40 * i, 336), 60).convert("RGB") for i in range(4)]
    model.configure(method="fastv", budget=200)
    whole = list(ask(model, pictures * 3, 12, lambda picture: [picture]))
    spent = model.meter.spent()
    assert spent.images.asked == 12 and spent.images.encoded == 4
    assert spent.waiting is not None and 0 < spent.waiting < spent.seconds
    changed = LlavaFinePruner(
        pretrained="demo", batch_size=2, image_cache=0, image_chunk=3, method="fastv", budget=200, max_new_tokens=2
    )
    other = list(ask(changed, [picture.copy() for picture in pictures * 3], 12, lambda picture: [picture]))
    assert [answer.text for answer in other] == [answer.text for answer in whole]
    assert changed.images.encoded == 2 + 4 + 4  # once in each window


def test_a_cell_that_asks_nothing_ages_no_image(model):
    """A study that answers cells together evaluates most of them without a question left."""
    model.images.begin_scan(["t"])
    before = model.images._cache._scan
    assert list(ask(model, [], 0, lambda picture: [picture])) == []
    assert model.images._cache._scan == before


def test_errors_are_raised_not_answered(model, toy, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("finepruner_lmms.lmms.answering.generate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model, toy)


def test_generation_arguments_of_the_task_stay_as_they_are(model):
    given = {"max_new_tokens": 3, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    copy = dict(given)
    assert model._decoding.of(given, "t") == {"max_new_tokens": 3, "do_sample": False}
    assert given == copy
    assert model._decoding.of({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, "t") == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 128,
    }  # fmt: skip


def test_answers_stream_in_order(model, toy):
    """The first window is answered before the second is looked at, so that lmms-eval's cache can keep it."""
    seen = []
    model.configure(method="random", budget=16)
    model.on_progress = lambda done, total, together: seen.append((done, total, together))
    try:
        evaluate(model, toy)
    finally:
        model.on_progress = None
    assert seen == [(4, 13, 1), (8, 13, 1), (12, 13, 1), (13, 13, 1)]  # batch by batch
    assert hasattr(model.generate_until([]), "__next__")


def test_monitor_writes_each_selection(model, toy, tmp_path):
    model.configure(method="finepruner", budget=200, heads=3)
    model.monitor_to(tmp_path)
    try:
        evaluate(model, toy)
    finally:
        model.monitor_to(None)
    lines = [json.loads(line) for line in (tmp_path / "selections-rank0.jsonl").read_text().splitlines()]
    assert sorted(line["doc_id"] for line in lines) == list(range(13))
    assert {line["layer"] for line in lines} == {2}
    shown = [line for line in lines if line["kept"]]
    assert len(shown) == 11 and all(len(line["heads"]) == 3 and len(line["head_scores"]) == 8 for line in lines)


def test_consensus_is_written_down_and_shown(model, toy, tmp_path):
    said: list[str] = []
    handler = logger.add(said.append, format="{message}")
    model.configure(method="finepruner", guide="pdrop", budget=200, head_strategy="consensus", preset="latest")
    model.monitor_to(tmp_path)
    model.arguments = dataclasses.replace(model.arguments, debug=True)
    try:
        answers, _ = evaluate(model, toy, limit=2)
    finally:
        model.monitor_to(None)
        model.arguments = dataclasses.replace(model.arguments, debug=False)
        logger.remove(handler)
    for number, answer in answers.items():  # what was asked and answered, before what was selected
        (line,) = [line for line in said if line.startswith(f"toy {number}: ")]
        assert line.endswith(f", answered {answer!r}\n") and len(line) > len(f"toy {number}: , answered {answer!r}\n")
    lines = [json.loads(line) for line in (tmp_path / "selections-rank0.jsonl").read_text().splitlines()]
    assert [(line["doc_id"], line["layer"]) for line in lines] == [(d, k) for d in (0, 1) for k in (2, 8, 16, 24)]
    for line in lines:
        assert line["heads"] == line["consensus"] + line["diversity"] and line["n_heads"] == len(line["heads"])
        assert line["share_consensus"] + line["share_diversity"] == pytest.approx(1)
        assert line["kept_tokens"] == len(line["kept"]) and line["branch"] in ("gap", "high", "low", "fallback")
    assert "".join(said).count("🎯 Intelligent Consensus-Diversity: ") == 8


def test_response_cache_is_keyed_by_everything(toy, tmp_path, monkeypatch, model):
    """Cached answers are found again; another setting, or other code, finds none."""
    calls = []
    original = Answering.window

    def count(self, prepared):
        calls.extend(prepared)
        return original(self, prepared)

    monkeypatch.setattr(Answering, "window", count)
    monkeypatch.setenv("LMMS_CACHE_RUN_ID", "test")
    options = {"use_cache": str(tmp_path / "cache"), "model_args": "pretrained=demo"}

    def answered(**settings) -> int:
        calls.clear()
        model.configure(**settings)
        evaluate(model, toy, **options)
        return len(calls)

    assert answered(method="random", budget=16) == 13
    assert answered(method="random", budget=16) == 0
    assert answered(method="random", budget=16, seed=1) == 13
    assert answered(method="random", budget=16) == 0
    monkeypatch.setattr("finepruner_lmms.lmms.identity.engine_code", lambda _: {"engine": "other"})
    assert answered(method="random", budget=16) == 13
    monkeypatch.undo()


def launch(toy: Path, out: Path, processes: int, arguments: str, **environment: str) -> dict:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "lmms_eval", "--model", "llava_finepruner", "--model_args", f"pretrained=demo,{arguments}"]
    command += ["--tasks", "toy", "--include_path", str(toy), "--batch_size", "4", "--log_samples"]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([*command, "--output_path", str(out)], env=env, capture_output=True, text=True, timeout=600)
    (samples,) = out.rglob("*_samples_toy.jsonl")
    (results,) = out.rglob("*_results.json")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert done.returncode == 0
    return {
        "answers": {line["doc_id"]: line["filtered_resps"] for line in lines},
        "n": json.loads(results.read_text())["n-samples"]["toy"]["effective"],
        "log": done.stdout + done.stderr,
    }


FAILING = """
import os
from lmms_eval.api.instance import Instance
from finepruner_lmms.lmms import answering, pruned_model
from finepruner_lmms.lmms.model import LlavaFinePruner

second = os.environ["RANK"] == "1"
def fail(*_, **__):
    raise ValueError("its disk is broken")
def attempt(what, call):
    try:
        call()
    except Exception as error:
        print(what, type(error).__name__, error, flush=True)
read, answer = pruned_model.read_model, answering.generate
pruned_model.read_model = fail if second else read
attempt("loading:", lambda: LlavaFinePruner(pretrained="demo"))
pruned_model.read_model, answering.generate = read, fail if second else answer
model = LlavaFinePruner(pretrained="demo")
model.task_dict = {"t": {"test": [None]}}
request = Instance(
    request_type="generate_until", arguments=("Why?", {"max_new_tokens": 2}, lambda _: [], 0, "t", "test"), idx=0,
    metadata={"task": "t", "doc_id": 0, "repeats": 1},
)
attempt("answering:", lambda: print(len(list(model.generate_until([request])))))
"""


@pytest.mark.slow
def test_a_failing_rank_says_why_and_the_others_do_not_wait_for_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", FAILING]
    running = [
        subprocess.Popen(command, env=env | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    first, second = (process.communicate(timeout=280)[0].splitlines() for process in running)
    assert first == ["loading: OtherRankFailed rank 1: its disk is broken", "1"]
    assert second == ["loading: ValueError its disk is broken", "answering: ValueError its disk is broken"]


@pytest.mark.slow
def test_two_processes_answer_as_one(model, toy, tmp_path):
    model.configure(method="finepruner", budget=200, heads=3)
    one, _ = evaluate(model, toy)
    two = launch(toy, tmp_path, 2, "method=finepruner,budget=200,heads=3", FINEPRUNER_JOURNAL=str(tmp_path / "journal"))
    assert one == two["answers"] and len(one) == two["n"] == 13
    written = read_journal(tmp_path / "journal", Answerer.read(tmp_path / "journal").identity.text())
    assert len(written.answers) == sum(batch.time.rows for batch in written.batches) == 13  # none of them repeated
    assert {(batch.origin.rank, batch.origin.processes) for batch in written.batches} == {(0, 2), (1, 2)}
    assert len({batch.origin.session for batch in written.batches}) == 1
    assert "Model Responding" in two["log"]
