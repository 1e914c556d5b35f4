"""Checkpoints of the original LLaVA code base, against what that code recorded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sentencepiece
import torch
from originals import GOLDEN, checkpoint, expected, weights
from PIL import Image

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.configuration import read_shape
from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.checkpoints.load import check_pruner, load_model, read_config, read_geometry
from finepruner_lmms.checkpoints.original_config import is_original
from finepruner_lmms.checkpoints.prompts import chat_template, prompt_ids, vicuna_v1
from finepruner_lmms.checkpoints.shape import ModelShape
from finepruner_lmms.engine.clip_names import clip_checkpoint
from finepruner_lmms.lmms.identity import checkpoint_identity
from finepruner_lmms.lmms.model import LlavaFinePruner

WORDS = 128


def inputs(model) -> dict[str, torch.Tensor]:
    """The recorded prompt, its placeholder as many as the model has visual tokens."""
    recorded, ids = expected(), []
    for number in recorded["input_ids"][0].tolist():
        ids += [model.config.image_token_id] * 16 if number == -200 else [number]
    return {"input_ids": torch.tensor([ids]), "pixel_values": recorded["pixel_values"]}


@torch.no_grad()
def logits(model, **changes) -> torch.Tensor:
    return model(**inputs(model), **changes).logits.float()


def greedy(model, tokens: int = 6, **options) -> list[int]:
    vanilla = fp.build_pruner("vanilla")
    return fp.generate(model, vanilla, inputs(model), max_new_tokens=tokens, **options).sequences[0].tolist()


def test_pixels_logits_and_answers_are_those_of_the_original_code():
    model, processor = fp.load_model(str(GOLDEN / "checkpoint"))
    recorded = expected()
    pixels = preprocess(processor.image_processor, Image.open(GOLDEN / "image.png"))
    torch.testing.assert_close(pixels[None], recorded["pixel_values"], atol=1e-6, rtol=0)
    ours = logits(model)
    assert ours.shape == (1, 38, 192)
    torch.testing.assert_close(ours[..., :WORDS], recorded["logits"], atol=1e-4, rtol=0)
    assert [1, *greedy(model, do_sample=False)] == recorded["generated"][0].tolist()
    with pytest.raises(ValueError, match=r"holds no tokenizer, so it can be given token ids only; put its tokenizer"):
        processor(text="What?", images=Image.open(GOLDEN / "image.png"))


@pytest.mark.parametrize(
    "form",
    [
        {"shards": 3},
        {"form": "safetensors"},
        {"shards": 4, "form": "safetensors", "tower": False},
        {"tower": False, "model_type": "llava"},
    ],
    ids=str,
)
def test_every_form_of_a_checkpoint_is_the_same_model(form, tmp_path):
    model, _ = fp.load_model(str(checkpoint(tmp_path, **form)))
    torch.testing.assert_close(logits(model)[..., :WORDS], expected()["logits"], atol=1e-4, rtol=0)


def test_the_towers_own_files_may_be_a_whole_clip_in_a_pickle(tmp_path):
    """As openai's is: the text side beside the vision side, buffers, and sizes in an older style."""
    target, tower = checkpoint(tmp_path, tower=False), tmp_path / "clip_tower"
    from safetensors.torch import load_file

    state = load_file(tower / "model.safetensors")
    (tower / "model.safetensors").unlink()
    extra = {"text_model.embeddings.position_ids": torch.arange(4)[None], "logit_scale": torch.tensor(1.0)}
    extra |= {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    torch.save(state | extra, tower / "pytorch_model.bin")
    vision = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    pictures = json.loads((tower / "preprocessor_config.json").read_text()) | {"size": 56, "crop_size": 56}
    (tower / "preprocessor_config.json").write_text(json.dumps(pictures))
    model, processor = fp.load_model(str(target))
    torch.testing.assert_close(logits(model)[..., :WORDS], expected()["logits"], atol=1e-4, rtol=0)
    pixels = preprocess(processor.image_processor, Image.open(GOLDEN / "image.png"))
    torch.testing.assert_close(pixels[None], expected()["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 0.02), ("bfloat16", 0.15)])
def test_half_precision(dtype, tolerance):
    model, _ = fp.load_model(str(GOLDEN / "checkpoint"), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)} == {model.config.dtype}
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    ours, recorded = logits(model)[..., :WORDS], expected()["logits"]
    assert 0 < (ours - recorded).abs().max() < tolerance * recorded.abs().max()


def test_a_pruner_runs_on_it():
    model, _ = fp.load_model(str(GOLDEN / "checkpoint"))
    pruner = fp.build_pruner("fastv", budget=10)
    result = fp.generate(model, pruner, inputs(model), max_new_tokens=4, do_sample=False)
    assert result.trace.tokens_entering == [[16, 16, 4, 4]] and len(result.sequences[0]) == 4
    whole = fp.generate(model, fp.build_pruner("fastv", budget=16), inputs(model), max_new_tokens=6, do_sample=False)
    assert [1, *whole.sequences[0].tolist()] == expected()["generated"][0].tolist()


def test_a_saved_conversion_is_the_same_model(tmp_path):
    original = checkpoint(tmp_path, shards=2, tokenizer=True)
    model, processor = fp.load_model(str(original))
    model.save_pretrained(tmp_path / "converted")
    processor.save_pretrained(tmp_path / "converted")
    assert not is_original(json.loads((tmp_path / "converted" / "config.json").read_text()))
    again, processor_again = fp.load_model(str(tmp_path / "converted"))
    assert torch.equal(logits(again), logits(model)) and again.config.image_token_id == model.config.image_token_id
    assert greedy(again, 12, do_sample=False) == greedy(model, 12, do_sample=False)
    picture = Image.open(GOLDEN / "image.png")
    for text in (vicuna_v1("Is there a red star?\nAnswer yes or no.", True), vicuna_v1("What color?", False)):
        shown = {"images": picture} if "<image>" in text else {}
        first, second = (p(text=text, return_tensors="pt", **shown) for p in (processor, processor_again))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert clip_checkpoint(again.config, "given") == "given"
    assert again.config.mm_vision_tower == str(tmp_path / "clip_tower")


def test_tokens_that_were_not_trained_are_never_answered(tmp_path):
    """At some places all trained logits are below zero: rows of zeros would win. And sampling could draw any row."""
    state = weights()
    torch.manual_seed(0)
    towards = torch.nn.functional.normalize(torch.randn(48), dim=0)
    state["model.norm.weight"] = torch.zeros(48)
    state["model.norm.weight"][0] = 1.0
    # the last state has one direction, of either sign; all words point the same way along it
    state["lm_head.weight"] = torch.cat([-torch.rand(64, 48) - 5, torch.rand(64, 48) - 9]) * towards.abs()
    model, _ = fp.load_model(str(checkpoint(tmp_path, state)))
    assert (logits(model)[..., WORDS:] <= logits(model)[..., :WORDS].amax(-1, keepdim=True)).all()
    answers = greedy(model, 8, do_sample=False)
    assert max(answers) < WORDS
    with torch.no_grad():
        model.lm_head.weight[WORDS:] = 100 * model.lm_head.weight[answers[0]]  # even rows that somebody trained
        model.lm_head.weight[WORDS + 1 :: 2] *= -1
    assert max(greedy(model, 8, do_sample=False)) < WORDS
    for seed in range(3):
        torch.manual_seed(seed)
        assert max(greedy(model, 30, do_sample=True, temperature=50.0)) < WORDS


def test_a_linear_projector_is_honoured(tmp_path):
    state = {name: tensor for name, tensor in weights().items() if "mm_projector.2" not in name}
    for kind in ("weight", "bias"):
        state[f"model.mm_projector.{kind}"] = state.pop(f"model.mm_projector.0.{kind}")
    target = checkpoint(tmp_path, state, mm_projector_type="linear")
    for dtype in ("float32", "float16"):
        model, _ = fp.load_model(str(target), dtype=dtype)
        features = torch.randn(1, 16, 32, dtype=model.dtype)
        plain = torch.nn.functional.linear(
            features,
            state["model.mm_projector.weight"].to(model.dtype),
            state["model.mm_projector.bias"].to(model.dtype),
        )
        assert torch.equal(model.model.multi_modal_projector(features), plain)


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_prompt_ids_are_those_of_the_original_code(tmp_path):
    """LLaVA's rule, on the SentencePiece file itself: each text beside an image by itself, one start token."""
    target = checkpoint(tmp_path, tokenizer=True)
    model, processor = fp.load_model(str(target))
    plain = sentencepiece.SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
    assert processor.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [400, 401]
    assert (model.config.image_token_id, model.config.text_config.vocab_size) == (400, 448)
    assert processor.tokenizer.padding_side == "left" and processor.tokenizer.pad_token_id == 401
    picture = Image.open(GOLDEN / "image.png")
    for question in ("Is there a star?\nAnswer.", "  两个 é😀 spaces\n\n12345\tx", "x"):
        text = vicuna_v1(question, True)
        before, behind = text.split("<image>")
        theirs = [1, *plain.encode(before), *[400] * 16, *plain.encode(behind)]
        assert prompt_ids(processor.tokenizer, text, 400, 16) == theirs
        assert processor(text=text, images=picture)["input_ids"][0] == theirs
        assert chat_template(processor, question, True) == text
    assert prompt_ids(processor.tokenizer, "no image", 400, 16) == [1, *plain.encode("no image")]
    assert processor.tokenizer.decode([1, *plain.encode("one  two é😀")], skip_special_tokens=True) == "one  two é😀"


def test_a_tokenizer_that_forgets_the_space_behind_an_image_is_helped(tmp_path):
    """transformers' Llama tokenizer with legacy=False, as conversions to its format may have it."""
    from transformers import LlamaTokenizer

    target = checkpoint(tmp_path, tokenizer=True)
    _, processor = fp.load_model(str(target))
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    forgetful = LlamaTokenizer(
        vocab=backend["vocab"], merges=[tuple(m) for m in backend["merges"]], legacy=False, add_bos_token=True
    )
    forgetful.add_tokens(["<image>"], special_tokens=True)
    text = vicuna_v1("Is there a star?", True)
    right = prompt_ids(processor.tokenizer, text, 400, 1)
    assert forgetful(text)["input_ids"] != right == prompt_ids(forgetful, text, 400, 1)


def test_added_tokens_keep_their_numbers(tmp_path):
    target = checkpoint(tmp_path, tokenizer=True)
    (target / "added_tokens.json").write_text(json.dumps({"<extra>": 400}))
    model, processor = fp.load_model(str(target))
    assert processor.tokenizer.convert_tokens_to_ids(["<extra>", "<image>"]) == [400, 401]
    assert model.config.image_token_id == 401
    (target / "added_tokens.json").write_text(json.dumps({"<extra>": 405}))
    with pytest.raises(ValueError, match=r"added_tokens: '<extra>' is number 405, but .* leave off at 399"):
        fp.load_model(str(target))


def test_it_runs_inside_lmms_eval(tmp_path):
    target = checkpoint(tmp_path, shards=2, tokenizer=True)
    model = LlavaFinePruner(pretrained=str(target), method="fastv", budget=10, batch_size=2)
    picture = Image.open(GOLDEN / "image.png")
    from lmms_eval.api.instance import Instance

    model.task_dict = {"t": {"test": [picture, picture.rotate(90)]}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(f"Question {i}?", {"max_new_tokens": 4}, lambda p: [p], i, "t", "test"),
            idx=0,
            metadata={"task": "t", "doc_id": i, "repeats": 1},
        )
        for i in range(2)
    ]
    assert all(1 <= answer.token_counts.output_tokens <= 4 for answer in model.generate_until(requests))
    assert model.images.encoded == 2
    with pytest.raises(ValueError, match="holds no tokenizer"):
        LlavaFinePruner(pretrained=str(GOLDEN / "checkpoint"))


# -- what is known without weights ------------------------------------------------------------------------------------


def test_a_study_is_planned_from_the_configuration_alone(tmp_path):
    target = checkpoint(tmp_path)
    (target / "pytorch_model.bin").unlink()
    config = read_config(str(target))
    assert read_shape(str(target)) == ModelShape.of(config)
    assert read_geometry(str(target)) == (4, 16) and config.mm_vision_tower == str(tmp_path / "clip_tower")
    check_pruner(fp.build_pruner("fastv", budget=10), config)
    with pytest.raises(ValueError, match="cannot reach"):
        check_pruner(fp.build_pruner("fastv", budget=2), config)
    with pytest.raises(ValueError, match=r"text tower, and .*clip_tower' is a 'clip_vision_model'; give the whole one"):
        check_pruner(fp.build_pruner("cdpruner", budget=4), config)


def test_the_released_checkpoints_need_no_tower_to_be_planned(tmp_path):
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    target = checkpoint(
        tmp_path, model_type="llava", mm_vision_tower="openai/clip-vit-large-patch14-336", mm_hidden_size=1024,
        vocab_size=32000, num_key_value_heads=None, torch_dtype="float16", **sizes,
    )  # fmt: skip
    config = read_config(str(target))
    assert read_shape(str(target)) == ModelShape.of(config)
    assert read_geometry(str(target)) == (32, 576) and config.image_token_id == 32000
    assert config.text_config.num_key_value_heads == 32
    assert clip_checkpoint(config) == "openai/clip-vit-large-patch14-336"


def test_the_tower_is_part_of_a_checkpoints_identity(tmp_path):
    target = checkpoint(tmp_path, tower=False)
    first = checkpoint_identity(str(target))
    settings = tmp_path / "clip_tower" / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.48145466", "0.5"))
    assert checkpoint_identity(str(target)) != first
    shutil.rmtree(tmp_path / "clip_tower")
    with pytest.raises(ValueError, match=r"mm_vision_tower: .* names 'clip_tower', and there is no such folder"):
        read_config(str(target))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type: got 'mlp3x_gelu' .* known: 'linear', 'mlp2x_gelu'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end: got True"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type: got 'spatial_unpad' .*LLaVA-1.6"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio: got 'anyres' .*LLaVA-1.6"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature: got 'cls_patch' .* known: 'patch'"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type: got 'perceiver' .* known: none"),
        ({"mm_vision_select_layer": [-2, -5]}, r"mm_vision_select_layer: got \[-2, -5\] .* one layer"),
        ({"mm_vision_tower": None}, "mm_vision_tower: missing in config.json"),
        ({"mm_vision_tower": "nowhere"}, "names 'nowhere', and there is no such folder beside the checkpoint"),
        ({"mm_hidden_size": 1024}, "mm_hidden_size: got 1024 .*clip_tower' is 32 wide"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"hidden_size": "many"}, "not the configuration of a Llama"),
        ({"model_type": "llava_mistral"}, "model_type: got 'llava_mistral'"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config: got .* choose dtype"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes, message, tmp_path):
    target = checkpoint(tmp_path, **changes)
    for read in (read_shape, read_config, load_model):
        with pytest.raises(ValueError, match=f"^pretrained: .*{message}"):
            read(str(target))


# -- damaged files ----------------------------------------------------------------------------------------------------


def _without_shard(folder: Path) -> None:
    (folder / "pytorch_model-00002-of-00003.bin").unlink()


def _cut_shard(folder: Path) -> None:
    shard = folder / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-5000])


def _other_shard(folder: Path) -> None:
    shutil.copy(folder / "pytorch_model-00001-of-00003.bin", folder / "pytorch_model-00002-of-00003.bin")


def _list_shard(folder: Path) -> None:
    torch.save([torch.zeros(2)], folder / "pytorch_model-00002-of-00003.bin")


def _bad_index(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": ')


def _path_index(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"lm_head.weight": "../other.bin"}}')


def _no_weights(folder: Path) -> None:
    for file in folder.glob("pytorch_model*"):
        file.unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (_without_shard, "weights: pytorch_model.bin.index.json names pytorch_model-00002-of-00003.bin, not there in"),
        (_cut_shard, "pytorch_model-00002-of-00003.bin: damaged or cut short; fetch"),
        (_other_shard, "pytorch_model-00002-of-00003.bin: lacks model.*, which the index says it holds"),
        (_list_shard, "pytorch_model-00002-of-00003.bin: .* holds something else than named tensors"),
        (_bad_index, "pytorch_model.bin.index.json: .* is not valid JSON"),
        (_path_index, "weight_map names '../other.bin', which is not a file beside it"),
        (_no_weights, "weights: .* holds none of model.safetensors, .* pytorch_model.bin"),
    ],
)
def test_damaged_shards_are_named(damage, message, tmp_path):
    target = checkpoint(tmp_path, shards=3)
    damage(target)
    with pytest.raises(ValueError, match=f"^pretrained: cannot load .*{message}"):
        fp.load_model(str(target))


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_tensors_that_are_missing_unknown_or_of_another_shape_are_named(form, tmp_path):
    key = "model.layers.1.mlp.up_proj.weight"

    def refused(name: str, message: str, **changes) -> None:
        state = weights() | {k: v for k, v in changes.items() if v is not None}
        state = {k: v for k, v in state.items() if k not in changes or changes[k] is not None}
        with pytest.raises(ValueError, match=message):
            fp.load_model(str(checkpoint(tmp_path / name, state, form=form)))

    refused("missing", f"lacks {key}$", **{key: None})
    refused(
        "unknown", "holds model.image_newline, which LLaVA-1.5 does not have", **{"model.image_newline": torch.ones(2)}
    )
    refused("shape", rf"{key} is \[4, 4\]; by config.json it is \[96, 48\]", **{key: torch.ones(4, 4)})
    refused("whole", f"{key} is torch.int8; quantized", **{key: torch.ones(96, 48, dtype=torch.int8)})
    tower = "model.vision_tower.vision_tower.vision_model.post_layernorm.bias"
    refused("tower", f"lacks {tower}", **{tower: None})
    cut = checkpoint(tmp_path / "cut", form=form)
    (file,) = cut.glob(f"*.{form}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{file.name}: damaged or cut short"):
        fp.load_model(str(cut))


def test_the_cache_is_on_and_answers_are_greedy_whatever_the_files_say(tmp_path):
    target = checkpoint(tmp_path, use_cache=False)
    unasked = {
        "use_cache": False,
        "min_new_tokens": 6,
        "repetition_penalty": 9.0,
        "do_sample": True,
        "temperature": 5.0,
    }
    (target / "generation_config.json").write_text(json.dumps(unasked))
    model, _ = fp.load_model(str(target))
    assert model.config.text_config.use_cache is True and model.generation_config.use_cache is True
    assert [1, *greedy(model)] == expected()["generated"][0].tolist()


def test_a_tower_whose_pictures_have_another_size_is_refused(tmp_path):
    target = checkpoint(tmp_path)
    settings = tmp_path / "clip_tower" / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"crop_size": 28}))
    with pytest.raises(ValueError, match=r"makes pictures of .*28.*, but the vision tower .* takes 56 by 56"):
        fp.load_model(str(target))


def test_buffers_of_older_versions_are_no_weights(tmp_path):
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(6) for i in range(4)}
    old["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    model, _ = fp.load_model(str(checkpoint(tmp_path, weights() | old)))
    torch.testing.assert_close(logits(model)[..., :WORDS], expected()["logits"], atol=1e-4, rtol=0)


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "form, message",
    [
        ("zip", r"pytorch_model.bin: refused, nothing was run: besides tensors, .* asks for \S+system when"),
        (2, r"pytorch_model.bin: refused, nothing was run: besides tensors, .* asks for \S+system when"),
        (4, "pytorch_model.bin: damaged or cut short, or not a file of tensors"),
    ],
)
def test_no_code_is_run(form, message, tmp_path):
    target, sign = checkpoint(tmp_path), tmp_path / "touched"
    content, file = {"lm_head.weight": _Touch(sign)}, target / "pytorch_model.bin"
    if form == "zip":
        torch.save(weights() | content, file)
        assert zipfile.is_zipfile(file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=form))
    with pytest.raises(ValueError, match=message):
        fp.load_model(str(target))
    assert not sign.exists()
    torch.load(file, weights_only=False) if form == "zip" else pickle.loads(file.read_bytes())
    assert sign.exists()  # it would have been


MEASURE = """
import resource, sys, threading, time
import torch, transformers, finepruner_lmms as fp
import finepruner_lmms.checkpoints.original
def resident():
    return [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")][0] // 1024
peak, done = [resident()] * 2, threading.Event()
def watch():
    while not done.is_set():
        peak[1] = max(peak[1], resident())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
model, _ = fp.load_model(sys.argv[1])
done.set()
watcher.join()
print(peak[1] - peak[0], sum(p.nbytes for p in model.parameters()) // 2**20)
"""


@pytest.mark.parametrize("form", ["bin", "safetensors", "converted"])
@pytest.mark.slow
def test_there_is_never_a_second_copy_in_memory(form, tmp_path):
    """160 MiB in 8 shards: beside the model, the process never holds more than about a shard."""
    state = weights()
    for i in range(4):
        for kind, shape in (("gate_proj", (100_000, 48)), ("up_proj", (100_000, 48)), ("down_proj", (48, 100_000))):
            state[f"model.layers.{i}.mlp.{kind}.weight"] = torch.zeros(shape, dtype=torch.float16)
    file = "bin" if form == "bin" else "safetensors"
    target = checkpoint(tmp_path, state, shards=8, form=file, intermediate_size=100_000)
    if form == "converted":
        model, processor = fp.load_model(str(target), dtype="float16")
        target = tmp_path / "converted"
        model.save_pretrained(target, max_shard_size="20MB")
        processor.image_processor.save_pretrained(target)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(target)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, size = map(int, done.stdout.split())
    assert 200 < size <= grown < 1.35 * size


@pytest.mark.slow
@pytest.mark.llava
def test_the_original_package_agrees(tmp_path):
    """Needs an environment of several gigabytes; FINEPRUNER_LLAVA_WORK names a folder to keep it in."""
    work = os.environ.get("FINEPRUNER_LLAVA_WORK", str(tmp_path / "work"))
    script = Path(__file__).parents[1] / "scripts" / "check_against_llava.py"
    for target in (GOLDEN / "checkpoint", checkpoint(tmp_path, shards=2, tokenizer=True)):
        command = [sys.executable, str(script), str(target), "--image", str(GOLDEN / "image.png"), "--work", work]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "yes" in done.stdout and "NO" not in done.stdout
    assert "prompt ids" in done.stdout
