"""What each family says of its visual tokens before the language model, against the tower's own attention maps."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from finepruner_lmms.engine.families.family import Encoded
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.prompt_reading import read_prompt
from finepruner_lmms.engine.tower_reading import early_layer
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish
from finepruner_lmms.testing.families import FAMILIES, family_prompts, tiny_model

ROWS = {"llava": [(5, "a", 3), (2, "b", 3)]}
SEVERAL = [(5, "a", 3, "b", 2), (3,), (2, "a", 4)]
VIDEOS = ("llava_onevision", "qwen2_5_vl", "qwen3_vl")
seen: list[Tensor] = []


def remembering(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Eager attention that keeps its maps."""
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    weights = (query @ key.transpose(2, 3) * scale).softmax(-1)
    seen.append(weights)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("remembering", remembering)


def encoded(
    which: str, rows: list[Any], wish: TowerWish = NOTHING_MORE
) -> tuple[Any, dict[str, Any], Encoded, list[int]]:
    model = tiny_model(which)
    family = family_of(model)
    inputs = family_prompts(which, *rows)
    layout = read_prompt(family, model.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    sizes = {number: group.num_visual_tokens for group in layout.groups for number in group.number}
    counts = [sizes[number] for number in sorted(sizes)]
    media = {name: inputs[name] for name in family.media if name in inputs}
    return model, inputs, family.encode(model, media, counts, wish), counts


def rows_of(which: str) -> list[Any]:
    return ROWS.get(which, SEVERAL)


@pytest.mark.parametrize("which", FAMILIES)
def test_encoded_images_are_those_that_the_prompt_shows_without_newlines(which: str) -> None:
    model, inputs, found, counts = encoded(which, rows_of(which))
    if counts:
        assert [image.num_visual_tokens for image in found.images] == counts
    entering: dict[str, Tensor] = {}
    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(
        lambda _m, _a, named: entering.update(inside=named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    family = family_of(model)
    layout = read_prompt(family, model.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    if not layout.groups:
        visual = entering["inside"][inputs["input_ids"] == model.config.image_token_id]
        torch.testing.assert_close(visual, torch.cat([image.projected[0] for image in found.images]))
    for group in layout.groups:
        for row, places, number in zip(group.rows, group.places, group.number, strict=True):
            columns = layout.columns[row][places]
            image = found.images[number]
            torch.testing.assert_close(entering["inside"][row, columns], image.projected[0], rtol=1e-4, atol=1e-5)
            assert image.grid == group.grid
            assert image.features.shape[:2] == image.projected.shape[:2]


@pytest.mark.parametrize("which", FAMILIES)
def test_features_stand_in_the_order_of_the_tokens_that_the_projector_makes_of_them(which: str) -> None:
    model, _, found, _ = encoded(which, rows_of(which))
    for image in found.images:
        if image.projector is not None:
            projected = image.project(image.features)
        else:
            merged = image.features[0].view(-1, model.config.vision_config.hidden_size)
            projected = model.model.visual.merger(merged)[None]
        torch.testing.assert_close(projected, image.projected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["llava", "llava_next-mistral", "internvl"])
def test_cls_and_received_attention_are_those_of_the_layer_that_is_projected(which: str) -> None:
    model, inputs, found, _ = encoded(which, [(5, "a", 3)], wish=TowerWish(received=True))
    maps = maps_of(model, inputs)
    layer = model.config.vision_feature_layer
    assert layer < 0  # then hidden states and maps count from the same end
    own = maps[layer]
    (image,) = found.images
    for got, whole in ((image.cls_attention, own[:, :, 0, 1:]), (image.received_attention, own[:, :, 1:, 1:].mean(2))):
        wanted = packed(model, inputs, whole.transpose(1, 2)).T
        torch.testing.assert_close(got[0], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", ["llava", "llava_next-mistral", "internvl"])
def test_attention_of_an_early_layer_is_that_layers(which: str) -> None:
    model, inputs, found, _ = encoded(which, [(5, "a", 3)], wish=TowerWish(early=1))
    own = maps_of(model, inputs)[0]
    (image,) = found.images
    assert image.received_attention is None
    received = own[:, :, 1:, 1:].mean(2)
    for got, whole in ((image.early_cls_attention, own[:, :, 0, 1:]), (image.early_received, received)):
        wanted = packed(model, inputs, whole.transpose(1, 2)).T
        torch.testing.assert_close(got[0], wanted, rtol=1e-4, atol=1e-6)


def test_an_early_layer_that_the_tower_does_not_have_is_refused() -> None:
    with pytest.raises(FieldError, match=r"tower_layer: got 40; this vision tower has layers 1 to "):
        encoded("llava", [(5, "a", 3)], wish=TowerWish(early=40))


def test_a_share_of_the_depth_is_the_nearest_layer_of_the_tower() -> None:
    assert [early_layer(TowerWish(early=Fraction(9, 24)), depth) for depth in (24, 27, 3, 1)] == [8, 9, 0, 0]


def maps_of(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """The attention maps of the tower's calls, in order."""
    tower = family_of(model).tower(model)
    before = tower.config._attn_implementation
    tower.set_attn_implementation("remembering")
    seen.clear()
    images = {name: value for name, value in inputs.items() if name in family_of(model).media and "video" not in name}
    try:
        with torch.no_grad():
            model.model.get_image_features(**images)
    finally:
        tower.set_attn_implementation(before)
    return list(seen)


def packed(model: Any, inputs: dict[str, Any], values: Tensor) -> Tensor:
    """`[T, patches, K]` → `[N, K]`, by hand for the one picture of a prompt."""
    tiles, patches, width = values.shape
    side = round(patches**0.5)
    if model.config.model_type == "llava":
        return values[0]
    if model.config.model_type == "internvl":
        squares = values.view(tiles, side // 2, 2, side // 2, 2, width)
        return squares.mean((2, 4)).reshape(-1, width)
    newline = torch.full((width,), torch.inf)
    parts, _ = model.model.pack_image_features([values], inputs["image_sizes"], "default", newline)
    return parts[0][parts[0].isfinite().all(-1)]


@pytest.mark.parametrize("which", ["qwen2_5_vl", "qwen3_vl"])
def test_received_attention_of_merged_patches_is_the_mean_over_the_four(which: str) -> None:
    model, inputs, found, _ = encoded(which, [(5, "a", 3, "b", 1)], wish=TowerWish(received=True))
    maps = maps_of(model, inputs)
    pictures = len(found.images)
    last = maps[-pictures:]  # its last layer lets every picture see itself, in a call of its own
    order = torch.arange(sum(image.num_visual_tokens for image in found.images))
    if which == "qwen2_5_vl":
        from transformers.vision_utils import get_vision_window_index

        vision = model.config.vision_config
        assert max(vision.fullatt_block_indexes) == vision.depth - 1
        order, _ = get_vision_window_index(
            inputs["image_grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size
        )
    whole = torch.cat([one[0].mean(1).unflatten(-1, (-1, 4)).mean(-1) for one in last], dim=-1)
    wanted = torch.empty_like(whole)
    wanted[:, order] = whole
    got = torch.cat([image.received_attention[0] for image in found.images], dim=-1)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_received_attention_of_onevision_leaves_newlines_out() -> None:
    model, inputs, found, _ = encoded("llava_onevision", [(5, "a", 3)], wish=TowerWish(received=True))
    own = maps_of(model, inputs)[-1].mean(2).transpose(1, 2)
    newline = torch.full((own.shape[-1],), torch.inf)
    (whole,), _ = model.model.pack_image_features([own], inputs["image_sizes"], newline, "anyres_max_9")
    got = found.images[0].received_attention[0].T
    torch.testing.assert_close(got, whole[whole.isfinite().all(-1)], rtol=1e-4, atol=1e-6)
    assert found.images[0].cls_attention is None


@pytest.mark.parametrize("which", VIDEOS)
def test_videos_are_encoded_in_the_order_of_their_placeholders(which: str) -> None:
    model, inputs, found, _ = encoded(which, [(5, "v", 3), (2, "a", 4)], wish=TowerWish(received=True))
    family = family_of(model)
    layout = read_prompt(family, model.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    entering: dict[str, Tensor] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, named: entering.update(inside=named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    everything = [*found.images, *found.videos]
    assert len(found.videos) == (layout.groups and sum(len(group.number) for group in layout.groups) - 1)
    for group in layout.groups:
        for row, places, number in zip(group.rows, group.places, group.number, strict=True):
            image = everything[number]
            assert image.grid == group.grid
            assert image.received_attention is not None
            assert image.received_attention.shape[-1] == group.num_visual_tokens
            inside = entering["inside"][row, layout.columns[row][places]]
            torch.testing.assert_close(inside, image.projected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", FAMILIES)
def test_what_is_said_of_an_image_does_not_depend_on_its_batch(which: str) -> None:
    _, _, together, _ = encoded(which, rows_of(which), wish=TowerWish(received=True))
    _, _, alone, _ = encoded(which, rows_of(which)[-1:], wish=TowerWish(received=True))
    for name, value in alone.images[0].tensors().items():
        if name == "sample_keys":
            assert torch.equal(value, together.images[-1].tensors()[name])
        torch.testing.assert_close(value, together.images[-1].tensors()[name], rtol=1e-4, atol=1e-5)


def test_onevision_shrinks_what_is_said_of_patches_as_it_shrinks_tokens() -> None:
    """Of a picture with more tiles than the checkpoint's limit, whose tokens are means of neighbours."""
    model = copy.deepcopy(tiny_model("llava_onevision"))
    family = family_of(model)
    inputs = family_prompts("llava_onevision", (5, "a", 3))
    before = family.described(model.config, inputs)[0]
    model.config.vision_aspect_ratio = "anyres_max_1"
    model.config.image_grid_pinpoints = [[24, 24]]
    sizes = torch.tensor([[24, 24]])
    pixels = torch.rand(1, 5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    media = {"pixel_values": pixels, "image_sizes": sizes, "batch_num_images": torch.tensor([1])}
    (span,) = family.described(model.config, media)
    assert span.num_visual_tokens == 9 + 9 != before.num_visual_tokens  # four tiles of 3 × 3 became one
    assert span.num_visual_tokens == family.most_visual_tokens(model.config)
    found = family.encode(model, media, wish=TowerWish(received=True))
    (image,), (packed,) = found.images, found.outputs["image"].pooler_output
    kept = torch.ones(span.length, dtype=torch.bool)
    kept[list(span.separators)] = False
    torch.testing.assert_close(packed[kept], image.projected[0])
    torch.testing.assert_close(packed[~kept], model.model.image_newline.expand(len(span.separators), -1))
    assert image.received_attention is not None
    assert image.received_attention.shape[-1] == image.features.shape[1] == span.num_visual_tokens


@pytest.mark.parametrize("which", ["llava_next", "llava_onevision"])
def test_tokens_fill_the_grids_that_are_told_of_tiles(which: str) -> None:
    """The whole picture, then one grid of all tiles: each patch stands where its row and column say."""
    model, inputs, found, _ = encoded(which, [(5, "a", 3)])
    (image,), config = found.images, model.config
    size = tuple(inputs["image_sizes"][0].tolist())
    side = config.vision_config.image_size // config.vision_config.patch_size
    down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    y, x = torch.meshgrid(torch.arange(down * side), torch.arange(across * side), indexing="ij")
    tiles = torch.stack([y, x], -1).unflatten(0, (down, side)).unflatten(2, (across, side))
    tiles = tiles.permute(0, 2, 1, 3, 4).reshape(down * across, side * side, 2).float()
    own = family_of(model).pack(config, torch.cat([tiles[:1], tiles]), size, torch.full((2,), torch.inf))
    own = own[own.isfinite().all(-1)]
    assert image.tiled and len(image.sheets) == 2 and image.grids == image.sheets
    (_, rows, columns), (_, more_rows, more_columns) = image.sheets
    assert len(own) == image.num_visual_tokens == rows * columns + more_rows * more_columns
    for places, wide in ((own[: rows * columns], columns), (own[rows * columns :], more_columns)):
        steps = places.view(-1, wide, 2).diff(dim=0)
        assert (steps == torch.tensor([1.0, 0.0])).all()
        assert (places.view(-1, wide, 2).diff(dim=1) == torch.tensor([0.0, 1.0])).all()


def test_every_tile_of_internvl_is_a_grid_of_its_own() -> None:
    _, _, found, _ = encoded("internvl", [(5, "a", 3), (3, "s", 2)])
    many, one = found.images
    side = round(one.num_visual_tokens**0.5)
    assert one.grids == ((1, side, side),)
    assert many.grids == ((1, side, side),) * (many.num_visual_tokens // side**2) and len(many.grids) > 1
