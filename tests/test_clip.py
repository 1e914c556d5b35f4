"""Relevance through CLIP: a small random CLIP checkpoint on disk, against transformers' own forward."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import prompts, tiny_llava
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

import finepruner_lmms as fp
from finepruner_lmms.engine.clip import bare_question, joint_space
from finepruner_lmms.engine.clip_names import clip_checkpoint
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.engine.fan_out import answer_together
from finepruner_lmms.errors import FieldError
from finepruner_lmms.testing.families import family_prompts, tiny_model

# three layers of width 32 (48 in the middle) over up to 77 tokens, and the projection:
# 3 (2*32 + 2*32 + 8 + 2*77 + 80) + 32 products in float32 sums; values are up to about 4
NEAR = {"rtol": 1142 * torch.finfo(torch.float32).eps, "atol": 1142 * 4 * torch.finfo(torch.float32).eps}
WORDS = [f"w{number}" for number in range(200)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {word: place for place, word in enumerate([*WORDS, "?", "<start>", "<end>"])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<start>", eos_token="<end>", unk_token="?", pad_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {"vocab_size": len(vocabulary), "bos_token_id": 201, "eos_token_id": 202, "max_position_embeddings": 77}
    config = CLIPConfig(
        text_config=sizes | text, vision_config=sizes | {"image_size": 16, "patch_size": 4}, projection_dim=12
    )
    CLIPModel(config).save_pretrained(folder)
    return str(folder)


def test_short_texts_are_what_clip_makes_of_them(checkpoint):
    space, clip = joint_space(checkpoint, torch.device("cpu")), CLIPModel.from_pretrained(checkpoint)
    embedded = space.embed_texts(["w1 w2 w3", "w4", ""])
    for vectors, ids in zip(embedded, ([201, 1, 2, 3, 202], [201, 4, 202], [201, 202]), strict=True):
        expected = clip.get_text_features(torch.tensor([ids]), return_dict=True).pooler_output
        torch.testing.assert_close(vectors, expected, **NEAR)


def test_long_texts_are_read_to_their_end(checkpoint):
    space = joint_space(checkpoint, torch.device("cpu"))
    long = " ".join(WORDS[:160])
    (vectors,) = space.embed_texts([long])
    assert vectors.shape == (3, 12)
    pieces = [" ".join(WORDS[start : start + 75][: 160 - start]) for start in (0, 75, 150)]
    torch.testing.assert_close(vectors, torch.cat(space.embed_texts(pieces)), **NEAR)
    (other,) = space.embed_texts([" ".join(reversed(WORDS[:160]))])
    assert not torch.allclose(vectors[0], other[0])  # the first piece depends on the text


def test_words_come_one_by_one_and_then_the_whole(checkpoint):
    space, clip = joint_space(checkpoint, torch.device("cpu")), CLIPModel.from_pretrained(checkpoint)
    short, empty, long = space.embed_words(["w1 w2 w3", "", " ".join(WORDS[:100])])
    states = clip.text_model(torch.tensor([[201, 1, 2, 3, 202]])).last_hidden_state
    expected = clip.text_projection(states)[0, 1:]
    expected[-1] /= expected[-1].norm()
    torch.testing.assert_close(short, expected, **NEAR)
    assert empty.shape == (1, 12) and long.shape == (101, 12)
    pieces = space.embed_words([" ".join(WORDS[:75]), " ".join(WORDS[75:100])])
    torch.testing.assert_close(long[:-1], torch.cat([piece[:-1] for piece in pieces]), **NEAR)
    torch.testing.assert_close(long[-1], (pieces[0][-1] + pieces[1][-1]) / 2, **NEAR)


def test_eadp_reads_the_question_in_a_batch_as_alone_and_beside_cdpruner(checkpoint):
    model, inputs, questions = tiny_llava(), prompts((5, 7), (5, 7)), ["w1 w2", " ".join(WORDS[50:170])]
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(2, 1, 1, 1)
    pruners = [
        fp.build_pruner("eadp", budget=4, clip=checkpoint, beta=8),
        fp.build_pruner("cdpruner", budget=4, clip=checkpoint),
    ]
    alone = [fp.generate(model, pruner, inputs, questions=questions, max_new_tokens=1).trace for pruner in pruners]
    found = answer_together(model, pruners, inputs, questions=questions, max_new_tokens=1, do_sample=False)
    for outcome, trace in zip(found.outcomes, alone, strict=True):
        assert [kept.tolist() for kept in outcome.trace.kept[0]] == [kept.tolist() for kept in trace.kept[0]]
    assert alone[0].kept[0][0].tolist() != alone[0].kept[0][1].tolist()
    single = {"input_ids": inputs["input_ids"][1:], "pixel_values": inputs["pixel_values"][1:]}
    trace = fp.generate(model, pruners[0], single, questions=questions[1:], max_new_tokens=1).trace
    assert trace.kept[0][0].tolist() == alone[0].kept[0][1].tolist()


def test_patches_are_normalised_and_projected(checkpoint):
    model, space = tiny_llava(), joint_space(checkpoint, torch.device("cpu"))
    vision = fp.encode_images(model, prompts((5, 7))["pixel_values"])
    expected = space.visual_projection(model.model.vision_tower.post_layernorm(vision.features))
    torch.testing.assert_close(space.embed_patches(model, vision.features), expected)


def test_the_question_decides_in_a_batch_as_alone(checkpoint):
    model, inputs = tiny_llava(), prompts((5, 7), 11, (5, 7))
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(2, 1, 1, 1)
    pruner = fp.build_pruner("cdpruner", budget=4, clip=checkpoint)
    questions = ["w1 w2", "w3", " ".join(WORDS[50:170])]
    trace = fp.generate(model, pruner, inputs, questions=questions, max_new_tokens=1).trace
    single = {"input_ids": inputs["input_ids"][2:], "pixel_values": inputs["pixel_values"][1:]}
    alone = fp.generate(model, pruner, single, questions=questions[2:], max_new_tokens=1).trace
    assert trace.kept[0][2].tolist() == alone.kept[0][0].tolist() != trace.kept[0][0].tolist()
    assert len(trace.kept[0][1]) == 0
    with pytest.raises(ValueError, match="questions: 'cdpruner' reads the question"):
        fp.generate(model, pruner, inputs, max_new_tokens=1)


def test_a_model_without_a_known_tower_says_what_to_do(checkpoint):
    model, inputs = tiny_llava(), prompts((5, 7))
    with pytest.raises(ValueError, match=r"relevance: 'clip' needs the text tower .* relevance='embedding'"):
        fp.generate(model, fp.build_pruner("cdpruner", budget=4), inputs, questions=["w1"], max_new_tokens=1)
    with pytest.raises(ValueError, match="clip: cannot load the CLIP checkpoint '/nowhere'"):
        fp.generate(model, fp.build_pruner("cdpruner", budget=4, clip="/nowhere"), inputs, questions=["w1"])
    assert clip_checkpoint(model.config, "mine") == "mine"
    with pytest.raises(ValueError, match="projects features of width 32, but the model's vision tower has 20"):
        joint_space(checkpoint, torch.device("cpu")).embed_patches(model, torch.zeros(1, 16, 20))


def test_a_clip_checkpoint_without_all_its_weights_is_refused(checkpoint, tmp_path):
    """transformers would draw the projection at random, and relevance with it."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "clip"))
    state = load_file(folder / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(FieldError, match=r"clip: '.*/clip' lacks text_projection.weight$"):
        joint_space(str(folder), torch.device("cpu"))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(FieldError, match="clip: cannot load the CLIP checkpoint"):
        joint_space(str(folder), torch.device("cpu"))


def test_llava_15_knows_its_clip():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tower = CLIPVisionConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    config = LlavaConfig(vision_config=tower, text_config=LlamaConfig())
    assert clip_checkpoint(config) == "openai/clip-vit-large-patch14-336"
    config.mm_vision_tower = "mine/clip"
    assert clip_checkpoint(config) == "mine/clip"


def test_instructions_are_not_part_of_the_question():
    for question, bare in {
        "What is it?\nAnswer the question using a single word or phrase.": "What is it?",
        "Which?\nA. one\nAnswer with the option's letter from the given choices directly.": "Which?\nA. one",
        "What does it say?\nReference OCR token: a, b\nAnswer the question using a single word or phrase.": (
            "What does it say?\nReference OCR token: a, b"
        ),
        "<image>\nDescribe it.": "Describe it.",
    }.items():
        assert bare_question(question) == bare


def test_embedding_relevance_reads_the_words_behind_the_image():
    """The same image and another question: another choice; another text before the image: the same."""
    model, inputs = tiny_llava(), prompts((5, 7))
    pruner = fp.build_pruner("cdpruner", budget=4, relevance="embedding")

    def kept(change) -> list[int]:
        ids = inputs["input_ids"].clone()
        change(ids)
        return fp.generate(model, pruner, inputs | {"input_ids": ids}, max_new_tokens=1).trace.kept[0][0].tolist()

    def before(ids):
        ids[0, :5] = 7

    def behind(ids):
        ids[0, -7:] = torch.arange(20, 27)

    first = kept(lambda ids: None)
    assert kept(before) == first != kept(behind)


def test_a_matrix_knows_before_it_runs_that_the_demo_has_no_text_tower(tmp_path):
    from finepruner_lmms.matrix.config import load_matrix
    from finepruner_lmms.matrix.yaml_places import ConfigError

    file = tmp_path / "study.yaml"
    rows = "methods:\n  - {method: cdpruner, budget: 64}\n  - {method: cdpruner, budget: 64, relevance: embedding}\n"
    file.write_text(f"name: study\nmodel: {{pretrained: demo}}\ndata: demo\ntasks: [pope]\n{rows}")
    with pytest.raises(ConfigError, match=r"study.yaml:6:5: methods.0.relevance: 'clip' needs the text tower"):
        load_matrix(file)


def test_relevance_by_clip_on_tiles_is_that_of_each_patch(checkpoint):
    """LLaVA-NeXT has CLIP's tower, too; its tiles are packed, and every patch keeps its place in the joint space."""
    model = tiny_model("llava_next")
    inputs = family_prompts("llava_next", (5, "a", 3, "b", 2), (2, "a", 4))
    pruner = fp.build_pruner("cdpruner", budget=4, clip=checkpoint)
    found = fp.generate(model, pruner, inputs, questions=["w1 w2", "w3"], max_new_tokens=1)
    assert [row[0] for row in found.trace.tokens_entering] == [8, 4]
    other = fp.generate(model, pruner, inputs, questions=["w1 w2", "w90 w91 w92"], max_new_tokens=1)
    assert torch.equal(found.trace.kept[0][0], other.trace.kept[0][0])
    assert not torch.equal(found.trace.kept[0][1], other.trace.kept[0][1])
    space = joint_space(checkpoint, torch.device("cpu"))
    media = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    for image in find_family("llava_next").encode(model, media).images:
        norm = model.model.vision_tower.post_layernorm
        expected = norm(image.features) @ space.visual_projection.weight.T
        torch.testing.assert_close(space.embed_patches(model, image.features), expected, rtol=1e-4, atol=1e-5)
