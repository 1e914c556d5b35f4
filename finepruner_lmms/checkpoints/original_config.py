"""Configurations of the original LLaVA code base, as those of transformers' LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.checkpoints.fetch import fetch_file
from finepruner_lmms.checkpoints.libraries import hub_errors, loguru, transformers
from finepruner_lmms.checkpoints.shape import ModelShape, VisionShape, plain_text, plain_vision
from finepruner_lmms.checkpoints.supported import check_code, check_layer, check_sizes, check_tokens
from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import load_object

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlavaConfig

_DECODER = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_DECODER_OPTIONAL = (
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "bos_token_id", "eos_token_id", "rope_theta", "rope_scaling", "attention_bias", "attention_dropout",
    "mlp_bias",
)  # fmt: skip
# what LLaVA assumes where the file is silent, and the values that transformers' LLaVA can honour
_OPTIONS: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "mm_projector_type": ("linear", ("linear", "mlp2x_gelu"), "LLaVA-1.5 has 'mlp2x_gelu'"),
    "mm_vision_select_feature": ("patch", ("patch",), "pruning counts patches, and 'cls_patch' adds the CLS token"),
    "mm_patch_merge_type": ("flat", ("flat",), "this is LLaVA-1.6; only one tile per image is read"),
    "image_aspect_ratio": (None, (None, "square", "pad"), "this is LLaVA-1.6; only one tile per image is read"),
    "mm_use_im_start_end": (False, (False, None), "the prompts of LLaVA-1.5 have no tokens around the image"),
    "mm_resampler_type": (None, (None,), "transformers' LLaVA has no resampler"),
    "s2": (False, (False, None), "only one scale per image is read"),
    "tie_word_embeddings": (False, (False, None), "LLaVA-1.5 has output weights of its own"),
    "quantization_config": (None, (None,), "take the checkpoint in 16 bit, and choose dtype"),
}
# the towers of the released checkpoints, so that planning a study needs no download
_SIZES = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 14,
}  # fmt: skip
_TOWERS = {"openai/clip-vit-large-patch14-336": 336, "openai/clip-vit-large-patch14": 224}
_CLIP = ("clip", "clip_vision_model")


def is_original(raw: dict[str, Any]) -> bool:
    """Whether a `config.json` is of the original code base; after a conversion it has `text_config`."""
    kind = str(raw.get("model_type"))
    return "text_config" not in raw and ("mm_vision_tower" in raw or kind.startswith("llava_"))


def convert_config(raw: dict[str, Any], pretrained: str) -> LlavaConfig:
    """The configuration as transformers' LLaVA has it, with the tower's name as `mm_vision_tower`.

    Image tokens are numbered from the end of the vocabulary, as in the published conversions; a tokenizer with
    tokens of its own moves them. Raises `FieldError` naming the first option that cannot be honoured.
    """
    tower = _check(raw, pretrained)
    where = f"config.json of {pretrained!r}"
    vision = tower_config(tower)
    if vision.hidden_size != raw["mm_hidden_size"]:
        raise FieldError(
            "mm_hidden_size",
            f"got {raw['mm_hidden_size']} in {where}, but the vision tower {tower!r} is {vision.hidden_size} wide; it "
            "is another tower than the checkpoint was trained with",
            value=raw["mm_hidden_size"],
        )
    try:
        text = transformers.LlamaConfig(**_decoder(raw))
    except (hub_errors.StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise FieldError(where, f"not the configuration of a Llama: {' '.join(str(error).split())}") from error
    linear = raw.get("mm_projector_type", "linear") == "linear"
    check_tokens(vision.image_size, vision.patch_size)
    check_layer(raw["mm_vision_select_layer"], vision.num_hidden_layers, "mm_vision_select_layer")
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        # a single layer is two, the second of which changes nothing
        projector_hidden_act="linear" if linear else "gelu",
        vision_feature_layer=raw["mm_vision_select_layer"],
        vision_feature_select_strategy="default",
    )
    config.mm_vision_tower = tower
    return config


def original_shape(raw: dict[str, Any], pretrained: str) -> ModelShape:
    """The sizes of what `convert_config` makes, with its errors; transformers is asked only where something is odd."""
    tower = _check(raw, pretrained)
    vision, text = _plain_tower(tower), plain_text(_decoder(raw))
    if vision is None or text is None or vision.hidden_size != raw["mm_hidden_size"]:
        return ModelShape.of(convert_config(raw, pretrained))
    check_layer(raw["mm_vision_select_layer"], vision.num_hidden_layers, "mm_vision_select_layer")
    return ModelShape(vision, text, text.vocab_size, "default", tower)


def _check(raw: dict[str, Any], pretrained: str) -> str:
    """The name of the vision tower; `FieldError` naming the first option that cannot be honoured or is missing."""
    check_code(raw, "config.json")
    where = f"config.json of {pretrained!r}"
    kind = raw.get("model_type")
    if kind not in ("llava", "llava_llama"):
        problem = f"got {kind!r} in {where}; only LLaVA on Llama ('llava', 'llava_llama') is read"
        raise FieldError("model_type", problem, value=kind)
    for option, (default, known, why) in _OPTIONS.items():
        if (value := raw.get(option, default)) not in known:
            choices = ", ".join(repr(choice) for choice in known if choice is not None)
            problem = f"got {value!r} in {where}; known: {choices or 'none'} ({why})"
            raise FieldError(option, problem, value=value)
    for field in (*_DECODER, "mm_hidden_size", "mm_vision_tower", "mm_vision_select_layer"):
        if raw.get(field) is None:
            raise FieldError(field, f"missing in {where}; the model's shape is not known without it")
    if isinstance(raw["mm_vision_select_layer"], bool) or not isinstance(raw["mm_vision_select_layer"], int):
        value = raw["mm_vision_select_layer"]
        problem = f"got {value!r} in {where}; expected the number of one layer"
        raise FieldError("mm_vision_select_layer", problem, value=value)
    check_sizes(raw)
    return find_tower(str(raw["mm_vision_tower"]), pretrained)


def _decoder(raw: dict[str, Any]) -> dict[str, Any]:
    """The entries that are a `LlamaConfig`'s."""
    return {key: raw[key] for key in (*_DECODER, *_DECODER_OPTIONAL) if key in raw}


def warn_of_aspect_ratio(raw: dict[str, Any], pretrained: str) -> None:
    """Say so where a checkpoint was made for pictures cut to a square; the prompt's side decides how they are."""
    if raw.get("image_aspect_ratio") != "pad":
        loguru.logger.warning(
            f"{pretrained!r} says image_aspect_ratio={raw.get('image_aspect_ratio')!r}: its pictures were cut, not "
            "padded, to a square; pass image_aspect_ratio=crop for the same"
        )


def tower_folder(checkpoint: Path) -> Path | None:
    """The folder of the vision tower that the checkpoint in a folder names, if it is on this machine."""
    if not (checkpoint / "config.json").is_file():
        return None
    raw = load_object(checkpoint / "config.json")
    if not is_original(raw) or not isinstance(raw.get("mm_vision_tower"), str):
        return None
    tower = Path(find_tower(raw["mm_vision_tower"], str(checkpoint)))
    return tower if tower.is_dir() else None


def find_tower(name: str, pretrained: str) -> str:
    """Where the vision tower is: a folder beside or in the checkpoint's or below the current one; else a hub id."""
    checkpoint = Path(pretrained)
    bases = [checkpoint.absolute().parent, checkpoint, Path()] if checkpoint.is_dir() else [Path()]
    for base in bases:
        if (base / name / "config.json").is_file():
            return str((base / name).absolute())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FieldError(
            "mm_vision_tower",
            f"{pretrained!r} names {name!r}, and there is no such folder beside the checkpoint, in it or here",
            value=name,
            fix="correct the entry in config.json, or put the CLIP checkpoint there",
        )
    return name


def _plain_tower(tower: str) -> VisionShape | None:
    """The vision tower's sizes; None where only `tower_config` can tell, or say what is wrong."""
    if tower in _TOWERS:
        return VisionShape(**_SIZES, image_size=_TOWERS[tower])
    try:
        raw = load_object(fetch_file(tower, "config.json"))
        check_code(raw, "config.json of the vision tower")
        part = raw.get("vision_config") if raw.get("model_type") == "clip" else raw
        if not isinstance(part, dict) or raw.get("model_type") not in _CLIP:
            return None
        check_sizes(part)
    except FieldError:
        return None
    return plain_vision(part)


def tower_config(tower: str) -> CLIPVisionConfig:
    """The vision tower's configuration. `FieldError` if it is none of CLIP's."""
    if tower in _TOWERS:
        return transformers.CLIPVisionConfig(**_SIZES, image_size=_TOWERS[tower], projection_dim=768)
    try:
        raw = load_object(fetch_file(tower, "config.json"))
        check_code(raw, "config.json of the vision tower")
        part = raw["vision_config"] if raw.get("model_type") == "clip" else raw
        check_sizes(part)
        found = transformers.CLIPVisionConfig.from_dict(part)
    except (hub_errors.StrictDataclassError, TypeError, ValueError, KeyError) as error:
        problem = f"cannot read the vision tower {tower!r}: {error}"
        raise FieldError("mm_vision_tower", problem, value=tower) from error
    if raw.get("model_type") not in _CLIP:
        kind = raw.get("model_type")
        raise FieldError("mm_vision_tower", f"{tower!r} is a {kind!r}; only CLIP towers are read", value=tower)
    return found


def tower_image_processor(tower: str) -> CLIPImageProcessorPil:
    """How the tower's pictures are resized and normalised, by the image library that LLaVA used."""
    if tower in _TOWERS:
        side = _TOWERS[tower]
        return transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    try:
        raw = load_object(fetch_file(tower, "preprocessor_config.json"))
        check_code(raw, "preprocessor_config.json of the vision tower")
        return transformers.CLIPImageProcessorPil.from_dict(raw)
    except (TypeError, ValueError) as error:
        problem = f"cannot read how {tower!r} takes its pictures: {error}"
        raise FieldError("mm_vision_tower", problem, value=tower) from error
