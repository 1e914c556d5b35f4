"""Processors: tokenizer, pictures and chat template of a checkpoint, completed by what its config.json says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, LlavaConfig, LlavaProcessor

from finepruner_lmms.checkpoints.prompts import IMAGE, chat_template
from finepruner_lmms.checkpoints.sentencepiece_tokenizer import read_sentencepiece
from finepruner_lmms.checkpoints.supported import check_code
from finepruner_lmms.errors import FieldError, first_line, show
from finepruner_lmms.files import load_object

_READ_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError)


class PicturesOnly:
    """Stands for the processor of a checkpoint without a tokenizer: pictures can be prepared, text cannot."""

    def __init__(self, image_processor: Any, name: str) -> None:
        self.image_processor = image_processor
        self._name = name

    @property
    def tokenizer(self) -> Any:
        """There is none."""
        self._refuse()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Text is part of what a processor takes."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise FieldError(
            "pretrained",
            f"{self._name!r} holds no tokenizer, so it can be given token ids only",
            value=self._name,
            fix="put its tokenizer.model there (LLaVA-1.5 has Vicuna's)",
        )


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, from tokenizer.json or else tokenizer.model; None if it holds neither."""
    if (folder / "tokenizer_config.json").is_file():
        check_code(load_object(folder / "tokenizer_config.json"), "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        try:
            return AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
        except Exception as error:
            problem = f"cannot read the tokenizer in {str(folder)!r}: {first_line(error)}"
            raise FieldError("tokenizer.json", problem, value=str(folder)) from error
    if (folder / "tokenizer.model").is_file():
        return read_sentencepiece(folder, padding_side="left")
    return None


def read_processor(folder: Path, config: LlavaConfig, name: str) -> Any:
    """The processor of a Hugging Face checkpoint; pictures only where the folder holds no tokenizer.

    How many placeholders an image has is the model's business: patch size, CLS token and strategy are the ones of
    `config`, whatever the processor's files say or leave out. `FieldError` naming the file that is damaged or does not
    belong to this model.
    """
    pictures = _image_processor(folder, config)
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        return PicturesOnly(pictures, name)
    _name_image_token(tokenizer, config)
    _name_padding(tokenizer, config)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=_template(folder) or getattr(tokenizer, "chat_template", None),
        image_token=tokenizer.convert_ids_to_tokens(config.image_token_id),
    )


def read_family_processor(folder: Path, config: Any, name: str) -> Any:
    """The processor of a Hugging Face checkpoint of another family than LLaVA-1.5, with left padding.

    How many placeholders an image has is told by the family's own processor. `FieldError` naming what is damaged or
    missing, or does not belong to this model.
    """
    for file in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if (folder / file).is_file():
            check_code(load_object(folder / file), file)
    tokenizer = read_tokenizer(folder)  # says what is wrong with it, where something is
    if tokenizer is None:
        raise FieldError("pretrained", f"{name!r} holds no tokenizer", value=name, fix="put its tokenizer.json there")
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except _READ_ERRORS as error:
        problem = f"cannot read the processor in {str(folder)!r}: {first_line(error)}"
        raise FieldError("processor_config.json", problem, value=str(folder)) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        problem = f"{str(folder)!r} holds no processor of {config.model_type}: {type(processor).__name__}"
        raise FieldError("processor_config.json", problem, value=str(folder))
    tokenizer.padding_side = "left"
    _check_colours(processor.image_processor)
    wanted, given = config.image_token_id, getattr(processor, "image_token_id", None)
    if given != wanted:
        problem = f"got {wanted} in config.json, but the processor's placeholder is {given}; they are not of one model"
        raise FieldError("image_token_index", problem, value=wanted)
    _name_padding(tokenizer, config)
    return processor


def check_template(processor: Any) -> None:
    """Raise `FieldError` unless the checkpoint has a chat template that shows one image per question."""
    if isinstance(processor, PicturesOnly):
        _ = processor.tokenizer  # says that there is none
    if not processor.chat_template:
        raise FieldError(
            "conv", "'chat_template' needs the checkpoint's own template, and it has none", fix="use conv=vicuna_v1"
        )
    try:
        shown = chat_template(processor, "?", True).count(IMAGE)
    except Exception as error:
        problem = f"the checkpoint's chat template cannot be filled in: {first_line(error)}"
        raise FieldError("conv", problem, value="chat_template", fix="use conv=vicuna_v1") from error
    if shown != 1:
        problem = f"the checkpoint's chat template writes {IMAGE} {shown} times for a question about one image"
        raise FieldError("conv", problem, value="chat_template", fix="use conv=vicuna_v1")


def check_sizes(image_processor: Any, config: LlavaConfig) -> None:
    """Raise `FieldError` unless pictures come out in the size that the vision tower takes."""
    side = config.vision_config.image_size
    cropped = getattr(image_processor, "do_center_crop", False)
    sizes = dict((image_processor.crop_size if cropped else image_processor.size) or {})
    _check_colours(image_processor)
    if set(sizes.values()) != {side}:
        problem = f"makes pictures of {sizes}, but the vision tower in config.json takes {side} by {side}"
        raise FieldError("preprocessor_config.json", problem, value=sizes)


def _check_colours(image_processor: Any) -> None:
    """Raise `FieldError` where colours would be divided by nothing, or become no numbers."""
    for name, least in (("image_mean", -1e6), ("image_std", 1e-6)):
        value: Any = getattr(image_processor, name, None)
        numbers: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
        if value is not None and not all(type(one) in (int, float) and least <= one <= 1e6 for one in numbers):
            problem = f"got {show(value)} for {name}; expected three finite numbers"
            fix = "take the file that came with the checkpoint"
            raise FieldError("preprocessor_config.json", problem, value=value, fix=fix)


def _image_processor(folder: Path, config: LlavaConfig) -> Any:
    files = [file for file in ("preprocessor_config.json", "processor_config.json") if (folder / file).is_file()]
    for file in files:
        check_code(load_object(folder / file), file)  # or it says which one is damaged
    try:
        # the resampling LLaVA-1.5 was evaluated with; torchvision's differs by up to 0.03 in a normalised pixel
        found = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except _READ_ERRORS as error:
        problem = f"cannot read how {str(folder)!r} takes its pictures: {first_line(error)}"
        raise FieldError("preprocessor_config.json", problem, value=str(folder)) from error
    check_sizes(found, config)
    return found


def _template(folder: Path) -> Any:
    try:
        return LlavaProcessor.get_processor_dict(str(folder))[0].get("chat_template")
    except _READ_ERRORS as error:
        problem = f"cannot read the chat template in {str(folder)!r}: {first_line(error)}"
        raise FieldError("chat_template", problem, value=str(folder)) from error


def _name_image_token(tokenizer: Any, config: LlavaConfig) -> None:
    """Let `<image>` be the placeholder that the model looks for; a tokenizer that ends just before it is given it."""
    wanted = config.image_token_id
    if IMAGE not in tokenizer.get_vocab() and len(tokenizer) == wanted:
        tokenizer.add_tokens([IMAGE], special_tokens=True)
    known = getattr(tokenizer, "image_token", None) or IMAGE
    given = tokenizer.get_vocab().get(known)
    if given != wanted:
        what = f"has {known!r} as number {given}" if given is not None else f"does not know {known!r}"
        problem = f"got {wanted} in config.json, but the tokenizer {what}; they are not of one model"
        raise FieldError("image_token_index", problem, value=wanted)


def _name_padding(tokenizer: Any, config: LlavaConfig) -> None:
    """Padding is masked, so any token will do where none is named; but not the placeholder of the image."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == config.image_token_id:
        known = [tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token]
        tokenizer.pad_token = next((token for token in known if token), tokenizer.convert_ids_to_tokens(0))
