"""Checkpoints in the format of transformers: every weight is the checkpoint's own, or there is no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hugging_face import TOKENIZER_FILES, asked, change_json, change_weights, greedy, saved, shard
from loguru import logger
from originals import GOLDEN
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.configuration import read_shape
from finepruner_lmms.checkpoints.load import load_model, open_checkpoint, read_config
from finepruner_lmms.checkpoints.processor import check_template
from finepruner_lmms.checkpoints.prompts import chat_template, prompt_ids, vicuna_v1
from finepruner_lmms.errors import FieldError
from finepruner_lmms.testing import IMAGE, VISUAL, prompts, tiny_llava

PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("hugging_face"))


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.fixture
def no_weights(monkeypatch):
    """Reading weights is a failure of the test."""

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.from_pretrained", read)


@pytest.fixture
def said():
    """What was logged."""
    lines: list[str] = []
    handler = logger.add(lines.append, format="{message}")
    yield lines
    logger.remove(handler)


# -- weights ----------------------------------------------------------------------------------------------------------


def names(part: str):
    def drop(state) -> None:
        found = [name for name in state if part in name]
        assert found
        for name in found:
            del state[name]

    return drop


def original_names(state) -> None:
    for name in list(state):
        if "language_model" in name or "lm_head" in name:
            continue
        state["model.mm_projector." + name] = state.pop(name)


def shorter(state) -> None:
    name = next(name for name in state if name.endswith("layers.1.self_attn.q_proj.weight"))
    state[name] = state[name][:-2].clone()


def whole_numbers(state) -> None:
    name = next(name for name in state if name.endswith("layers.1.self_attn.q_proj.weight"))
    state[name] = state[name].to(torch.int8)


@pytest.mark.parametrize(
    "change, message",
    [
        (names("multi_modal_projector"), r"lacks model.multi_modal_projector.linear_1.bias, .*linear_2"),
        (names("vision_tower"), r"lacks model.vision_tower\..* and \d+ more$"),
        (names("lm_head"), "lacks lm_head.weight$"),
        (names("language_model.model.layers.2.self_attn.q_proj"), "layers.2.self_attn.q_proj.weight$"),
        (original_names, "under the names of the original LLaVA code base, .*; put the config.json there that came"),
        (lambda state: state.update({"image_newline": torch.ones(4)}), "holds image_newline, which LLaVA-1.5 does not"),
        (shorter, r"of another shape: .*layers.1.self_attn.q_proj.weight is \[46, 48\], by config.json \[48, 48\]"),
        (whole_numbers, "model.safetensors: the weights .*layers.1.self_attn.q_proj.weight are whole numbers"),
    ],
    ids=["projector", "tower", "head", "one", "original", "more", "shape", "int8"],
)  # fmt: skip
def test_weights_that_are_not_the_checkpoints_own_are_named(folder, change, message):
    """transformers fills them in with random ones and goes on."""
    change_weights(folder, change)
    with pytest.raises(FieldError, match=f"^pretrained: cannot load .*{message}"):
        fp.load_model(str(folder))


def test_weights_are_read_to_the_device_at_once(folder, monkeypatch):
    """Eight processes on one machine would else hold eight models in its memory before they move them."""
    from transformers import LlavaForConditionalGeneration

    asked_for, read = [], LlavaForConditionalGeneration.from_pretrained

    def watched(*arguments, **options):
        asked_for.append(options["device_map"])
        return read(*arguments, **options)

    def moved(*_, **__):
        raise AssertionError("the model was moved")

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", watched)
    monkeypatch.setattr(LlavaForConditionalGeneration, "to", moved)
    model, _ = fp.load_model(str(folder), device="cpu")
    assert asked_for == [{"": torch.device("cpu")}]
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())


def test_an_adapter_beside_the_weights_is_refused(folder, no_weights):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(FieldError, match=r"adapter_config.json: .* holds an adapter; only whole checkpoints are read"):
        fp.load_model(str(folder))


def test_tied_embeddings_need_no_head(tmp_path):
    import copy

    from transformers import LlavaForConditionalGeneration

    config = copy.deepcopy(tiny_llava().config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(0)
    tied = LlavaForConditionalGeneration(config).eval()
    tied.save_pretrained(tmp_path)
    names_saved = []
    change_weights(tmp_path, lambda state: names_saved.extend(state))
    assert not any("lm_head" in name for name in names_saved)
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}}
    settings["crop_size"] = {"height": 16, "width": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model, _ = fp.load_model(str(tmp_path))
    assert torch.equal(model.lm_head.weight, tied.model.language_model.embed_tokens.weight)


def test_names_and_buffers_of_older_versions_are_read(folder, whole):
    """As in the published conversions: `language_model.model.…`, and buffers that are computed now."""

    def older(state) -> None:
        for name in list(state):
            new = name.removeprefix("model.")
            if new.startswith("lm_head"):
                new = "language_model." + new
            elif new.startswith("language_model.") and new.split(".")[1] not in ("model", "lm_head"):
                new = new.replace("language_model.", "language_model.model.", 1)
            elif new.startswith("vision_tower.") and "vision_model" not in new:
                new = new.replace("vision_tower.", "vision_tower.vision_model.", 1)
            state[new] = state.pop(name)
        state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
        state["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]

    change_weights(folder, older)
    first, second = fp.load_model(str(whole))[0].state_dict(), fp.load_model(str(folder))[0].state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_damaged_files_are_named(folder, form, no_weights):
    first, second, third = shard(folder, form)
    content = second.read_bytes()
    cut(second)
    with pytest.raises(FieldError, match=f"{second.name}: damaged or cut short.*; fetch '.*{second.name}' again"):
        fp.load_model(str(folder))
    second.write_bytes(third.read_bytes())
    with pytest.raises(FieldError, match=f"{second.name}: lacks .*, which the index says it holds"):
        fp.load_model(str(folder))
    second.unlink()
    with pytest.raises(FieldError, match=f"weights: .*index.json names {second.name}, not there in"):
        fp.load_model(str(folder))
    second.write_bytes(content)
    first.unlink()
    next(folder.glob("*.index.json")).write_text("{")
    with pytest.raises(FieldError, match=r"index.json: .* is not valid JSON .*; fetch it again"):
        fp.load_model(str(folder))


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", "{", "cannot read the configuration of .*config.json: .* is not valid JSON .*; fetch it again"),
        ("config.json", "[1]", "config.json: .* holds a list, not an object"),
        ("config.json", '{"model_type": "llava", "text_config": 3}', "text_config: got 3; expected an object"),
        ("config.json", '{"model_type": "llava", "image_token_index": "x"}', "config.json: not the configuration of a"),
        ("tokenizer.json", "{}", "tokenizer.json: cannot read the tokenizer in"),
        ("generation_config.json", "{", "generation_config.json: .* is not valid JSON"),
        ("processor_config.json", "{", "processor_config.json: .* is not valid JSON"),
    ],
)
def test_damaged_settings_are_named_before_weights_are_read(folder, file, content, message, no_weights):
    (folder / file).write_text(content)
    with pytest.raises(FieldError, match=f"^pretrained: .*{message}"):
        fp.load_model(str(folder))


# -- what config.json decides -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["vision_config"].update(model_type="siglip_vision_model"),
         "vision_config.model_type: got 'siglip_vision_model'; LLaVA-1.5 is supported with 'clip_vision_model'"),
        (lambda c: c["text_config"].update(model_type="mistral"),
         "text_config.model_type: got 'mistral'; LLaVA-1.5 is supported with 'llama'"),
        (lambda c: c["text_config"].update(model_type="no_such"),
         "text_config.model_type: got 'no_such'; LLaVA-1.5 is supported with 'llama'"),
        (lambda c: c.update(model_type="vipllava"), "model_type: got 'vipllava'.*; can be pruned: .*llava"),
        (lambda c: c.update(vision_feature_layer=[-2, -5]), r"vision_feature_layer: got \[-2, -5\]; only .* a single"),
        (lambda c: c.update(image_token_index=448), "image_token_index: got 448, but the vocabulary has 448 rows"),
    ],
)  # fmt: skip
def test_other_models_are_refused_by_their_configuration_alone(folder, change, message):
    change_json(folder / "config.json", change)
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    for read in (read_shape, read_config, load_model):
        with pytest.raises(FieldError, match=f"^pretrained: .*{message}"):
            read(str(folder))


def test_other_towers_in_memory_are_refused():
    """Their first patch would be taken for a CLS token, or the prompt said to hold one placeholder too many."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    tower = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    text = tiny_llava().config.text_config
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE, image_seq_length=VISUAL)
    model, pruner = LlavaForConditionalGeneration(config).eval(), fp.build_pruner("random", budget=4)
    inputs = prompts((5, 7))
    with pytest.raises(
        FieldError, match=r"vision_config.model_type: got 'siglip_vision_model'; LLaVA-1.5 is supported"
    ):
        fp.generate(model, pruner, inputs, max_new_tokens=1)
    with pytest.raises(TypeError, match="its vision tower is a 'siglip_vision_model'; only CLIP towers"):
        fp.encode_images(model, inputs["pixel_values"])


# -- older and thinner folders ----------------------------------------------------------------------------------------


def test_processor_settings_follow_the_model(folder, whole):
    """Older files leave them out, and LlavaProcessor then makes one placeholder too few per image, or none."""
    model, processor = fp.load_model(str(whole))
    right = asked(model, processor)
    (folder / "processor_config.json").unlink()
    for changes in ({}, {"patch_size": 14}, {"num_additional_image_tokens": 0, "patch_size": 7}):
        settings = json.loads((whole / "processor_config.json").read_text())["image_processor"]
        (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": 56, "crop_size": 56}))
        if changes:
            (folder / "processor_config.json").write_text(json.dumps(changes | {"processor_class": "LlavaProcessor"}))
        older = fp.load_model(str(folder))[1]
        found = asked(model, older)
        assert (found["input_ids"] == model.config.image_token_id).sum() == 16
        assert all(torch.equal(found[key], right[key]) for key in right)
        assert processor.chat_template == older.chat_template


def test_pictures_of_another_size_than_the_towers_are_refused(folder, no_weights):
    def smaller(settings) -> None:
        settings["image_processor"]["crop_size"] = {"height": 28, "width": 28}

    change_json(folder / "processor_config.json", smaller)
    with pytest.raises(FieldError, match=r"makes pictures of .*28.*, but the vision tower .* takes 56 by 56"):
        fp.load_model(str(folder))


def test_any_token_is_padding_where_none_is_named(folder, whole):
    change_json(folder / "tokenizer_config.json", lambda settings: settings.pop("pad_token"))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    change_json(folder / "generation_config.json", lambda settings: settings.pop("pad_token_id"))
    model, processor = fp.load_model(str(folder))
    pad = processor.tokenizer.pad_token_id
    assert pad is not None and pad == model.generation_config.pad_token_id != model.config.image_token_id
    batch = processor.tokenizer.pad({"input_ids": [[1, 5, 6], [1]]}, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    right_model, right = fp.load_model(str(whole))
    assert greedy(model, asked(model, processor)) == greedy(right_model, asked(right_model, right))


def test_a_sentencepiece_file_alone_is_a_tokenizer(folder, whole):
    """As in older conversions: the file, and the image's token in added_tokens.json."""
    right = fp.load_model(str(whole))[1]
    for file in TOKENIZER_FILES:
        (folder / file).unlink(missing_ok=True)
    shutil.copy(whole.parent / "original" / "checkpoint" / "tokenizer.model", folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": 400, "<pad>": 401}))
    text = vicuna_v1("Is there a red star?\nAnswer.", True)
    processor = fp.load_model(str(folder))[1]
    picture = Image.open(GOLDEN / "image.png")
    assert processor(text=text, images=picture)["input_ids"] == right(text=text, images=picture)["input_ids"]
    assert processor.tokenizer.padding_side == "left" and processor.tokenizer.pad_token_id is not None
    (folder / "added_tokens.json").unlink()  # a tokenizer that ends just before the placeholder is given it
    assert (
        fp.load_model(str(folder))[1](text=text, images=picture)["input_ids"]
        == right(text=text, images=picture)["input_ids"]
    )
    change_json(folder / "config.json", lambda config: config.update(image_token_index=300))
    with pytest.raises(FieldError, match=r"image_token_index: got 300 in config.json, but the tokenizer does not know"):
        fp.load_model(str(folder))


def test_without_a_tokenizer_token_ids_can_be_given(folder):
    for file in TOKENIZER_FILES:
        (folder / file).unlink(missing_ok=True)
    model, processor = fp.load_model(str(folder))
    ids = torch.tensor([[1, 5] + [model.config.image_token_id] * 16 + [7]])
    assert greedy(model, {"input_ids": ids, "pixel_values": torch.ones(1, 3, 56, 56)})
    with pytest.raises(FieldError, match=r"holds no tokenizer, so it can be given token ids only; put its tokenizer"):
        processor(text="What?")


# -- how answers are made ---------------------------------------------------------------------------------------------

UNASKED = {
    "use_cache": False,
    "min_new_tokens": 12,
    "min_length": 200,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 2,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 8,
    "bad_words_ids": [[number] for number in range(3, 60)],
    "sequence_bias": [[[9], 50.0]],
    "begin_suppress_tokens": list(range(60, 200)),
    "suppress_tokens": list(range(3, 300)),
    "exponential_decay_length_penalty": [1, 2.0],
    "renormalize_logits": True,
    "num_beams": 3,
    "do_sample": True,
    "temperature": 9.0,
    "guidance_scale": 2.0,
    "prompt_lookup_num_tokens": 3,
    "cache_implementation": "static",
}


def test_what_a_generation_config_asks_for_changes_no_greedy_answer(folder, whole, said):
    right_model, right = fp.load_model(str(whole))
    inputs = asked(right_model, right)
    plain = greedy(right_model, inputs)
    assert not said
    change_json(folder / "generation_config.json", lambda settings: settings.update(UNASKED))
    model, _ = fp.load_model(str(folder))
    (line,) = said
    assert all(f"{key}=" in line for key in UNASKED)
    assert greedy(model, inputs) == plain == greedy(model, inputs, do_sample=False)
    assert model.generation_config.eos_token_id == right_model.generation_config.eos_token_id is not None
    fastv = fp.build_pruner("fastv", budget=10)
    pruned = [fp.generate(m, fastv, inputs, max_new_tokens=6).sequences[0].tolist() for m in (model, right_model)]
    assert pruned[0] == pruned[1]


def test_the_cache_is_on_whatever_the_configuration_says(folder, whole):
    change_json(folder / "config.json", lambda config: config["text_config"].update(use_cache=False))
    change_json(folder / "config.json", lambda config: config.update(use_cache=False))
    (folder / "generation_config.json").unlink()
    model, processor = fp.load_model(str(folder))
    inputs = asked(model, processor)
    pruner = fp.build_pruner("fastv", budget=10)
    assert fp.generate(model, pruner, inputs, max_new_tokens=2).trace.tokens_entering == [[16, 16, 4, 4]]
    assert greedy(model, inputs) == greedy(fp.load_model(str(whole))[0], inputs)


# -- chat templates ---------------------------------------------------------------------------------------------------


def words(bos: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of words that writes its start token itself, or does not."""
    from tokenizers import pre_tokenizers, processors

    backend = Tokenizer(
        models.WordLevel({"?": 0, "<s>": 1, "</s>": 2, "<image>": 3, "USER": 4, "red": 5}, unk_token="?")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="?",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def test_a_template_that_writes_the_start_token_starts_once():
    for text in ("<s>USER <image> red", "<s> USER <image> red"):
        assert prompt_ids(words(bos=True), text, 3, 2) == [1, 4, 3, 3, 5]
        assert prompt_ids(words(bos=False), text, 3, 2) == [1, 4, 3, 3, 5]
    assert prompt_ids(words(bos=True), "USER <image> red", 3, 2) == [1, 4, 3, 3, 5]
    assert prompt_ids(words(bos=True), "<image> red", 3, 2) == [1, 3, 3, 5]
    assert prompt_ids(words(bos=True), "<s> <s> USER", 3, 2) == [1, 1, 4]  # what the text itself repeats stays


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "conv: 'chat_template' needs the checkpoint's own template, and it has none; use conv=vicuna_v1"),
        ("USER: {{ messages[0]['content'] | length }}", "writes <image> 0 times for a question about one image"),
        ("{{ raise_exception('no images') }}", "conv: the checkpoint's chat template cannot be filled in: no images"),
        ("{% for", "conv: the checkpoint's chat template cannot be filled in"),
    ],
)
def test_a_template_that_cannot_show_an_image_is_noticed_before_weights_are_read(folder, template, message, no_weights):
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(FieldError, match=message):
        check_template(open_checkpoint(str(folder)).processor)


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json", "processor_config.json"])
def test_older_places_of_a_template_are_read(folder, whole, place):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": template}))
    else:
        change_json(folder / place, lambda settings: settings.update(chat_template=template))
    processor = open_checkpoint(str(folder)).processor
    check_template(processor)
    assert chat_template(processor, "What?", True) == vicuna_v1("What?", True)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./missing", "../missing", "/no/such/folder", "~/no-such-folder", "a/b/c", "missing"])
def test_a_missing_folder_is_not_asked_of_the_hub(name, monkeypatch, tmp_path):
    def ask(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", ask)
    monkeypatch.chdir(tmp_path)
    for read in (read_shape, read_config, load_model):
        with pytest.raises(FieldError, match=f"^pretrained: there is no folder '{name}', and it is no hub id; give a"):
            read(name)


def test_the_home_folder_may_be_written_short(whole, monkeypatch):
    monkeypatch.setenv("HOME", str(whole.parent))
    assert fp.load_model("~/whole")[0].config.text_config.num_hidden_layers == 4
    with pytest.raises(FieldError, match=r"pretrained: '~/whole/config.json' is a file; give the folder it is in"):
        load_model("~/whole/config.json")
