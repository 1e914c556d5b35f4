"""lmms-eval's chat interface: messages with several images and earlier turns, on small models of every family."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from PIL import Image

import finepruner_lmms as fp
from finepruner_lmms.asking.conversation import Video, from_messages, single
from finepruner_lmms.asking.inputs import Prompt, batch_inputs, input_maker
from finepruner_lmms.asking.settings import evaluation
from finepruner_lmms.asking.videos import read_video
from finepruner_lmms.checkpoints.prompts import VICUNA_TEMPLATE, render
from finepruner_lmms.data.task_folders import folder
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.identity import answer_settings
from finepruner_lmms.lmms.journal import Journal, read_journal
from finepruner_lmms.lmms.model import FinePruner, LlavaFinePruner
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.lmms.names import model_name
from finepruner_lmms.lmms.recorder import Recorder
from finepruner_lmms.lmms.together import Company, Seat
from finepruner_lmms.lmms.traced import from_record
from finepruner_lmms.matrix.cells import expand
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.evaluate import evaluate_cell
from finepruner_lmms.testing.families import FAMILIES, tiny_model
from finepruner_lmms.testing.tiny_checkpoints import tiny_processor

SETTINGS = {
    "llava_next": {},
    "llava_onevision": {},
    "qwen2_5_vl": {"min_pixels": 64, "max_pixels": 256},
    "qwen3_vl": {"min_pixels": 64, "max_pixels": 256},
    "internvl": {"max_tiles": 4},
}
TASK = """
task: toy
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function toy_utils.visual
doc_to_text: !function toy_utils.text
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 3, temperature: 0, do_sample: false}}
process_results: !function toy_utils.results
metric_list:
  - {{metric: hit, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
def visual(doc):
    return [image.convert("RGB") for image in doc["images"]]

def text(doc, **_):
    return doc["question"]

def results(doc, answers):
    return {"hit": float(answers[0] == doc["answer"])}

def messages(doc):
    first = [{"type": "image", "url": image} for image in visual(doc)]
    return [
        {"role": "user", "content": [*first, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A thing."}]},
        {"role": "user", "content": [{"type": "text", "text": doc["question"]}]},
    ]

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == 3 or not doc["images"]:
        return None, None, True, [*previous_output, f"told {previous_round_info}"], None
    again = f"{doc['question']} You said {previous_output[-1]!r}."
    return visual(doc), again, False, previous_output, round_idx
"""


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


PICTURES = [noise(30, 17, 1), noise(16, 41, 2), noise(24, 24, 3)]
ROWS = [
    {"question": "What is it?", "answer": "yes", "images": PICTURES[:1]},
    {"question": "Which of the two is red?", "answer": "yes", "images": PICTURES[:2]},
    {"question": "Is water wet?", "answer": "yes", "images": []},
    {"question": "Is it red?", "answer": "no", "images": PICTURES[2:]},
    {"question": "What color?", "answer": "no", "images": PICTURES[1:2]},
]


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Three tasks over the same five documents: `toy`, `toy_messages` with an earlier turn, `toy_rounds`."""
    folder = tmp_path_factory.mktemp("toy")
    text = datasets.Value("string")
    features = datasets.Features({"question": text, "answer": text, "images": datasets.List(datasets.Image())})
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(folder / "test.parquet")
    task = TASK.format(data=folder / "test.parquet")
    (folder / "toy_utils.py").write_text(UTILS)
    (folder / "toy.yaml").write_text(task)
    several = task.replace("task: toy", "task: toy_messages") + "doc_to_messages: !function toy_utils.messages\n"
    (folder / "toy_messages.yaml").write_text(several)
    rounds = task.replace("task: toy", "task: toy_rounds").replace("utils.text", "utils.rounds")
    (folder / "toy_rounds.yaml").write_text(rounds.replace("generate_until", "generate_until_multi_round"))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """A checkpoint of every family, random and small, with a real processor."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in SETTINGS:
        tiny_model(name).save_pretrained(folder / name)
        tiny_processor(name).save_pretrained(folder / name)
    return folder


def evaluate(model, toy: Path, task: str = "toy") -> dict[int, dict]:
    manager = TaskManager(include_path=str(toy), include_defaults=False, model_name="finepruner")
    out = simple_evaluate(
        model=model, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0, datetime_str="t"
    )
    return {sample["doc_id"]: sample for sample in out["samples"][task]}


@functools.cache
def loaded(folder: Path):
    return fp.load_model(str(folder))


def by_hand(folder: Path, rows: list[tuple[str, list[Image.Image]]], pruner=None, answers: int = 3):
    """What the processor makes of prompts written out here, and what `generate` answers."""
    name, processor, model = folder.name, tiny_processor(folder.name), loaded(folder)[0]
    shown = [image for _, images in rows for image in images]
    given = {"size": {"shortest_edge": 64, "longest_edge": 256}} if name.startswith("qwen") else {}
    given |= {"max_patches": 4} if name == "internvl" else {}
    mark = "<vision><image></vision>" if name.startswith("qwen") else "<image>"
    texts = [text.replace("<image>", mark) for text, _ in rows]
    images = [images for _, images in rows if images]
    inputs = processor(text=texts, images=images if shown else None, padding=True, return_tensors="pt", **given)
    pruner = fp.build_pruner("vanilla") if pruner is None else pruner
    found = fp.generate(model, pruner, dict(inputs), max_new_tokens=answers, do_sample=False)
    return inputs, [
        text.strip() for text in processor.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
    ]


@pytest.mark.parametrize("method", [{"method": "vanilla"}, {"method": "fastv", "budget": "50%"}])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_family_answers_in_lmms_eval_as_its_processor_and_generate_do(name, method, checkpoints, toy):
    """Of one image, two, and none, in batches."""
    lm = FinePruner(pretrained=str(checkpoints / name), batch_size=3, **method, **SETTINGS[name])
    found = evaluate(lm, toy)
    pruner = fp.build_pruner(**{"name": method["method"]} | {k: v for k, v in method.items() if k != "method"})
    for number, row in enumerate(ROWS):
        text = f"user: {'<image>' * len(row['images'])}{row['question']}\nassistant: "
        inputs, (answer,) = by_hand(checkpoints / name, [(text, row["images"])], pruner)
        assert found[number]["filtered_resps"][0] == answer, number
        counted = found[number]["token_counts"][0]
        assert (counted["input_tokens"], counted["output_tokens"]) == (inputs["input_ids"].shape[1], 3)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl"])
def test_what_is_recorded_in_a_batch_is_what_happens_to_a_question_alone(name, checkpoints, toy, tmp_path):
    lm = FinePruner(pretrained=str(checkpoints / name), batch_size=5, method="finepruner", budget="50%", heads=3,
                    **SETTINGS[name])  # fmt: skip
    lm.recorder, lm.seat = Recorder(10), Seat(Journal(tmp_path, "owner", lm.origin), Company({}))
    evaluate(lm, toy)
    traces = {number: from_record(record) for number, record in read_journal(tmp_path, "owner").traces.items()}
    assert sorted(traces) == [number for number, row in enumerate(ROWS) if row["images"]]
    pruner = fp.build_pruner("finepruner", budget="50%", heads=3)
    for number, found in traces.items():
        images = ROWS[number]["images"]
        text = f"user: {'<image>' * len(images)}{ROWS[number]['question']}\nassistant: "
        inputs, _ = by_hand(checkpoints / name, [(text, images)], answers=1)
        alone = fp.generate(loaded(checkpoints / name)[0], pruner, dict(inputs), max_new_tokens=1).trace
        (stage,) = found.stages
        assert found.tokens == alone.num_visual_tokens and stage.layer == 2
        assert np.flatnonzero(stage.kept).tolist() == alone.kept[2][0].tolist()
        assert list(found.entering) == alone.tokens_entering[0]
        if len(images) == 1:
            assert stage.heads == tuple(alone.heads[0].tolist()) and len(stage.head_scores) == 9
        else:  # each image has its own
            assert stage.heads is None and stage.maps is None
        if name == "qwen2_5_vl" and len(images) == 1:
            rows, columns = found.grid
            assert stage.maps.shape == (3, rows, columns) and rows * columns == found.tokens
            guides = alone.guides[2][0].reshape(3, rows, columns).numpy()
            scaled = 255 * guides / guides.max(axis=(1, 2), keepdims=True)
            assert np.abs(scaled - stage.maps).max() <= 0.51
        elif name == "llava_next":  # newlines and tiles
            assert found.grid is None


def test_earlier_turns_are_part_of_one_prompt(checkpoints, toy):
    name, pruner = "qwen2_5_vl", fp.build_pruner("fastv", budget="50%")
    lm = FinePruner(pretrained=str(checkpoints / name), batch_size=2, method="fastv", budget="50%", **SETTINGS[name])
    found = evaluate(lm, toy, "toy_messages")
    for number, row in enumerate(ROWS):
        shown = "<image>" * len(row["images"])
        text = f"user: {shown}What is this?\nassistant: A thing.\nuser: {row['question']}\nassistant: "
        inputs, (answer,) = by_hand(checkpoints / name, [(text, row["images"])], pruner)
        assert found[number]["filtered_resps"][0] == answer
        assert found[number]["token_counts"][0]["input_tokens"] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("kind", [FinePruner, LlavaFinePruner])
def test_each_round_of_a_task_is_a_prompt_of_its_own(kind, checkpoints, toy):
    name = "internvl"
    lm = kind(pretrained=str(checkpoints / name), batch_size=2, **SETTINGS[name])
    found = evaluate(lm, toy, "toy_rounds")
    for number, row in enumerate(ROWS):
        shown, said = "<image>" * len(row["images"]), list[str]()
        for _ in range(3 if row["images"] else 1):
            again = f" You said {said[-1]!r}." if said else ""
            text = f"user: {shown}{row['question']}{again}\nassistant: "
            said += by_hand(checkpoints / name, [(text, row["images"])])[1]
        told = f"told {2 if row['images'] else None}"
        assert found[number]["resps"][0] == [[*said, told]]


def test_llava_answers_alike_in_both_interfaces(toy):
    settings = {"pretrained": "demo", "batch_size": 3, "method": "finepruner", "budget": 200, "heads": 3}
    chat, simple = FinePruner(**settings), LlavaFinePruner(**settings)
    assert chat.identity == simple.identity
    one, other = evaluate(chat, toy), evaluate(simple, toy)
    for number in one:
        assert one[number]["filtered_resps"] == other[number]["filtered_resps"]
        assert one[number]["token_counts"] == other[number]["token_counts"]
        assert chat._key(chat.asked(request(chat, number))) == simple._key(simple.asked(request(simple, number)))


def request(model, number: int) -> Instance:
    question, given = ROWS[number]["question"], {"max_new_tokens": 3}
    arguments = (question, given, None) if model.is_simple else (question, None, given)
    metadata = {"task": "t", "doc_id": number, "repeats": 1}
    return Instance(
        request_type="generate_until", arguments=(*arguments, number, "t", "test"), idx=0, metadata=metadata
    )


def test_llava_is_shown_several_images_at_once():
    """Each is one square, written as `<image>` and a new line before the question."""
    model, processor = fp.load_model("demo")
    both = fp.answer(model, processor, PICTURES[:2], "Red?", fp.build_pruner("fastv", budget="25%"), max_new_tokens=4)
    assert both.prompt.num_visual_tokens == 2 * 576 and both.trace.tokens_entering[0][:2] == [1152, 1152]
    squares = [Image.new("RGB", (336, 336))] * 2
    whole = processor(text=f"{VICUNA} USER: <image>\n<image>\nRed? ASSISTANT:", images=squares)
    assert both.prompt.ids == list(whole["input_ids"][0])


VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def test_the_conversation_of_llava_is_that_of_its_template():
    import jinja2

    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A star."}]},
        {"role": "user", "content": [{"type": "text", "text": "Red?"}]},
    ]
    template = jinja2.Template(VICUNA_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert render("vicuna_v1", None, messages) == template
    own = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, messages[0]]
    assert render("vicuna_v1", None, own) == "Be brief. USER: <image>\nWhat? ASSISTANT:"


def test_fp_answer_asks_as_the_evaluation_does(checkpoints):
    model, processor = loaded(checkpoints / "qwen3_vl")
    pruner = fp.build_pruner("divprune", budget=4)
    found = fp.answer(
        model, processor, PICTURES[:2], "Red?", pruner,
        earlier=[("What is this?", "A thing.")], settings=SETTINGS["qwen3_vl"], max_new_tokens=3,
    )  # fmt: skip
    text = "user: <image><image>What is this?\nassistant: A thing.\nuser: Red?\nassistant: "
    inputs, (answer,) = by_hand(checkpoints / "qwen3_vl", [(text, PICTURES[:2])], pruner)
    assert found.text == answer and found.prompt.ids == inputs["input_ids"][0].tolist()
    assert found.trace.tokens_entering == [[8] * 6]
    figure = fp.show(found)
    assert len(figure.axes) == 2 and figure.axes[0].get_title() == "4 of 15, before layer 0"


def test_show_darkens_what_was_dropped(checkpoints):
    model, processor = loaded(checkpoints / "qwen2_5_vl")
    picture, settings = Image.new("RGB", (60, 36), (200, 200, 200)), SETTINGS["qwen2_5_vl"]
    found = fp.answer(
        model, processor, picture, "Red?", fp.build_pruner("divprune", budget=5), settings=settings, max_new_tokens=1
    )
    ((span,),) = [found.prompt.spans]
    shown = np.asarray(fp.show(found).axes[0].images[0].get_array())[..., 0]
    _, rows, columns = span.grid
    kept = np.zeros(rows * columns, dtype=bool)
    kept[found.trace.kept[0][0].numpy()] = True
    for row, column in np.ndindex(rows, columns):
        middle = shown[int((row + 0.5) * 36 / rows), int((column + 0.5) * 60 / columns)]
        assert middle == (200 if kept[row * columns + column] else 50)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_a_video_is_shown_as_its_frames(name, checkpoints, tmp_path):
    """From a file and as frames: a group of tokens for each pair of frames, or for each frame."""
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for number in range(8):
            for packet in stream.encode(av.VideoFrame.from_image(noise(32, 24, number))):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    frames, about = read_video(Video(str(path)), 4)
    assert frames.shape == (4, 24, 32, 3) and list(about.frames_indices) == [0, 2, 5, 7]
    model, processor = loaded(checkpoints / name)
    settings = SETTINGS[name] | {"num_frames": 4}
    pruner = fp.build_pruner("fastv", budget="50%")
    for film in (Video(str(path)), Video([noise(32, 24, number) for number in range(8)])):
        found = fp.answer(model, processor, film, "What?", pruner, settings=settings, max_new_tokens=2)
        per = sum(span.grid[0] for span in found.prompt.spans)
        assert per == (2 if name.startswith("qwen") else 4)
        (entering,) = found.trace.tokens_entering
        assert entering[0] == found.prompt.num_visual_tokens > entering[-1] > 0
    with pytest.raises(FieldError, match="cannot read"):
        fp.answer(model, processor, Video(str(tmp_path / "no.mp4")), "What?", pruner, settings=settings)


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("internvl", {"min_pixels": 64}, "min_pixels: InternVL3 does not read it; it reads max_tiles"),
        ("qwen2_5_vl", {"image_aspect_ratio": "crop"}, "image_aspect_ratio: Qwen2.5-VL does not read it"),
        ("llava_next", {"max_tiles": 2}, "max_tiles: LLaVA-NeXT does not read it; it takes images as its checkpoint"),
        ("qwen3_vl", {"conv": "vicuna_v1"}, "conv: 'vicuna_v1' is the conversation of LLaVA-1.5; Qwen3-VL"),
        ("qwen3_vl", {"min_pixels": 300, "max_pixels": 200}, "min_pixels: 300 is more than max_pixels, 200"),
        ("qwen3_vl", {"max_pixels": 0}, "max_pixels"),
    ],
)
def test_settings_are_checked_before_weights_are_read(name, given, message, checkpoints, monkeypatch):
    monkeypatch.setattr("finepruner_lmms.lmms.pruned_model.read_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(FieldError, match=message):
        FinePruner(pretrained=str(checkpoints / name), **given)


def test_each_family_has_its_own_evaluation():
    own = {name: evaluation(find_family(name)) for name in FAMILIES if "-" not in name}
    assert own["llava"].conv == "vicuna_v1" and own["llava"].images.image_aspect_ratio == "pad"
    assert {found.conv for name, found in own.items() if name != "llava"} == {"chat_template"}
    for name in ("qwen2_5_vl", "qwen3_vl"):  # lmms-eval's own models of the family
        assert (own[name].images.min_pixels, own[name].images.max_pixels) == (200_704, 1_605_632)
    assert own["internvl"].images.max_tiles == 12


def test_messages_that_cannot_be_answered_say_why():
    for messages, problem in [
        ([], "the messages are a list, not a list of turns"),
        ([{"role": "tool", "content": "x"}], "has the role 'tool'; known: system, user, assistant"),
        ([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "shows 'audio'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "the last message is the assist"),
        ([{"role": "user", "content": [{"type": "image", "url": 3}]}], "the visual is a int, not an image"),
    ]:
        with pytest.raises(FieldError, match=problem):
            from_messages(messages, "task 't', document 3")


def test_batches_join_pictures_of_any_number_of_tiles():
    asked = evaluation(find_family("llava_next"))
    maker = input_maker(tiny_model("llava_next").config, tiny_processor("llava_next"), asked)
    prompts = [maker.prompt(single(row["question"], row["images"])) for row in ROWS]
    inputs = batch_inputs(prompts, 0)
    assert len(inputs["input_ids"]) == 5 and len(inputs["pixel_values"]) == 5 == len(inputs["image_sizes"])
    for mask, prompt in zip(inputs["attention_mask"], prompts, strict=True):
        assert int(mask.sum()) == len(prompt.ids) and bool(mask[-1])
    tiles = [Prompt([1], "", {"pixel_values": torch.ones(1, count, 3, 2, 2)}) for count in (2, 3)]
    joined = batch_inputs(tiles, 0)["pixel_values"]
    assert joined.shape == (2, 3, 3, 2, 2) and float(joined[0, 2].abs().sum()) == 0 and bool((joined[1] == 1).all())


def test_a_placeholder_in_a_question_shows_nothing(checkpoints):
    model, processor = loaded(checkpoints / "internvl")
    asked = ("What <image> is it?", "What  is it?")
    found = [fp.answer(model, processor, None, text, fp.build_pruner("vanilla"), max_new_tokens=2) for text in asked]
    assert found[0].prompt.ids == found[1].prompt.ids


def test_lmms_eval_takes_the_chat_class_unless_told_otherwise(checkpoints):
    assert get_model("llava_finepruner") is FinePruner is get_model("finepruner")
    assert get_model("llava_finepruner", force_simple=True) is LlavaFinePruner
    assert model_name("demo") == "llava_finepruner" and model_name(str(checkpoints / "qwen3_vl")) == "finepruner"


@pytest.mark.slow
def test_two_ranks_answer_as_one_on_another_family(checkpoints, toy, tmp_path):
    """As a user launches it: `--model finepruner`, with a real processor."""
    given = {"pretrained": str(checkpoints / "qwen2_5_vl"), "method": "fastv", "budget": "50%"}
    given |= {"min_pixels": 64, "max_pixels": 256}
    one = evaluate(FinePruner(**given, batch_size=2), toy)
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [
        "-m",
        "lmms_eval",
        "--model",
        "finepruner",
        "--model_args",
        ",".join(f"{k}={v}" for k, v in given.items()),
    ]
    command += ["--tasks", "toy"]
    command += ["--include_path", str(toy), "--batch_size", "2", "--log_samples"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command, "--output_path", str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    (samples,) = tmp_path.rglob("*_samples_toy.jsonl")
    two = {found["doc_id"]: found for found in map(json.loads, samples.read_text().splitlines())}
    assert set(two) == set(one) == set(range(len(ROWS))), done.stderr[-2000:]
    for number, alone in one.items():  # the file holds an answer by itself, not in a list
        assert [two[number]["filtered_resps"]] == alone["filtered_resps"], number
        assert two[number]["token_counts"] == alone["token_counts"], number


def test_a_matrix_runs_another_family_under_its_name(checkpoints, tmp_path):
    """What is planned from config.json alone is what the loaded model says it answers."""
    file = tmp_path / "study.yaml"
    file.write_text(
        f"name: study\nmodel: {{pretrained: {checkpoints / 'qwen2_5_vl'}, max_pixels: 256, min_pixels: 64, "
        "max_new_tokens: 2}\ndata: demo\ntasks: [pope]\nlimit: 4\nmethods: [{method: fastv, budget: 50%}]\n"
    )
    matrix = load_matrix(file)
    (cell,) = expand(matrix)
    lm = FinePruner(**matrix.file.model.model_dump(exclude_none=True), batch_size=2)
    manager = TaskManager(include_path=str(folder("demo", limit=4)), include_defaults=False, model_name="finepruner")
    outcome, samples = evaluate_cell(lm, manager, cell, tmp_path / "attempt", tmp_path / "cache")
    assert outcome.answered == len(samples) == 4 and outcome.scores is not None
    assert outcome.cost is not None and outcome.speed is not None and outcome.speed.questions == 4
    again = ModelArguments.parse({"pretrained": str(checkpoints / "qwen2_5_vl"), "max_pixels": 512, "min_pixels": 64})
    assert answer_settings(again, lm.family) != answer_settings(lm.arguments, lm.family)


def test_a_matrix_says_where_a_setting_is_not_of_its_model(checkpoints, tmp_path):
    file = tmp_path / "study.yaml"
    model = f"{{pretrained: {checkpoints / 'qwen2_5_vl'}, max_tiles: 4}}"
    file.write_text(f"name: study\nmodel: {model}\ndata: demo\ntasks: [pope]\nmethods: [vanilla]\n")
    with pytest.raises(ValueError, match=r"study.yaml:2:\d+: model.max_tiles: Qwen2.5-VL does not read it"):
        load_matrix(file)
