"""The `model_args` of lmms-eval: one table of keys, checked before any weight is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from finepruner_lmms.asking.settings import ASPECT_RATIOS, CONVERSATIONS, Evaluation, ImageSettings, evaluation
from finepruner_lmms.engine.execution import EXECUTIONS
from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.errors import FieldError, check_choice, check_integer, nearest, show
from finepruner_lmms.files import expand_home
from finepruner_lmms.lazy import np
from finepruner_lmms.pruners import Pruner, build_pruner, canonical_name, parameter_names
from finepruner_lmms.pruners.registry import check_budget_given, known_parameters

_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
MOST_BATCH = 65_536
"""And no more: such a batch, cache or answer fits no machine, and the number is a slip of the hand."""
_MOST_NEW_TOKENS = 1_000_000
_MOST_MEGABYTES = 100_000_000
_DEVICE = re.compile(r"auto|cpu|(cuda|xpu|npu|mps)(:(0|[1-9][0-9]?))?")
_CACHE_PLACES = ("device", "host")
_CACHE_DTYPES = ("auto", "float16", "bfloat16")
_DTYPES = ("auto", "float16", "bfloat16", "float32")
_PICTURE_SIZES = ("min_pixels", "max_pixels", "max_tiles", "num_frames")
_MOST_PIXELS = 2**40
# other names of the same argument
_SYNONYMS = {"visual_token_num": "budget", "H": "heads"}
# what lmms-eval passes to every model of its own accord
_HOST = {"max_batch_size"}


@dataclass(frozen=True)
class ModelArguments:
    """Everything that can be set from the command line, the method's own parameters in `method_arguments`."""

    pretrained: str = "llava-hf/llava-1.5-7b-hf"
    method: str = "vanilla"
    method_arguments: dict[str, Any] = field(default_factory=dict)
    conv: str = "auto"
    """`auto` is the family's own: `vicuna_v1` for LLaVA-1.5, the checkpoint's chat template for all others."""
    image_aspect_ratio: str = "auto"
    """Of LLaVA-1.5, where `auto` is `pad`; the four that follow are of other families (`asking.settings`)."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    num_frames: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    """`auto`: the layers of a model that is larger than one GPU are spread over all GPUs of one process."""
    attn_implementation: str = "sdpa"
    execution: str = "auto"
    """How `generate` runs: `eager`, or recorded and replayed, `graphs`; `auto` is `graphs` on a GPU."""
    batch_size: int = 1
    max_new_tokens: int | None = None
    image_cache: int = 1024
    """Megabytes of encoded images that are kept between questions and between methods."""
    image_cache_place: str = "device"
    image_cache_dtype: str = "auto"
    image_chunk: int | None = None
    """Images that go through the vision tower together, always so many: 1 on a CPU and 8 elsewhere, unless set."""
    debug: bool = False
    monitor: bool | str = False

    @classmethod
    def parse(cls, arguments: dict[str, Any]) -> ModelArguments:
        """Read what lmms-eval parsed from `--model_args`. `FieldError` naming the argument, the value and the fix."""
        given = {key: _plain(value) for key, value in arguments.items() if value is not None and key not in _HOST}
        method = _take_method(given)
        own = {f.name for f in fields(cls)} - {"method", "method_arguments"}
        for key in given:
            # asked only where it matters, since the methods of all installed packages are loaded for it
            if key not in own and key not in (known := known_parameters()):
                everything = sorted({*own, *known, *_SYNONYMS, "method", "enable_dynamic_selection"})
                hint = nearest(key, everything)
                problem = f"unknown argument {show(key)}{hint}; known: {', '.join(everything)}"
                raise FieldError(key or "model_args", problem, value=given[key])
        settings = {key: given.pop(key) for key in own & set(given)}
        for name in ("batch_size", "max_new_tokens", "image_cache", "image_chunk", *_PICTURE_SIZES):
            if name in settings:
                settings[name] = _integer(name, settings[name])
        if "pretrained" in settings:  # a folder's name may be a number, which lmms-eval reads as one
            settings["pretrained"] = expand_home(str(settings["pretrained"]))
        parsed = cls(method=method, method_arguments=given, **settings)
        parsed._check()
        return parsed

    def with_method(self, arguments: dict[str, Any]) -> ModelArguments:
        """The same settings with another method; `arguments` replaces method and parameters as a whole."""
        given = {key: _plain(value) for key, value in arguments.items() if value is not None}
        method = _take_method(given)
        return replace(self, method=method, method_arguments=given)

    def build_pruner(self) -> Pruner:
        """The pruner; `ValueError` for a parameter that the method does not read or that is out of range."""
        return build_pruner(self.method, **self.method_arguments)

    def evaluation(self, family: Family) -> Evaluation:
        """The prompt and the image settings for a family. `FieldError` for what it does not read."""
        return evaluation(family, self)

    def settled(self, family: Family) -> ModelArguments:
        """The same with everything said that a family decides. `FieldError` for what it does not read."""
        found = self.evaluation(family)
        ratio = found.images.image_aspect_ratio or "auto"
        return replace(self, conv=found.conv, **(found.images._asdict() | {"image_aspect_ratio": ratio}))

    def canonical(self) -> str:
        """The arguments that change an answer, in a fixed order: the same text for the same answers."""
        pruner = self.build_pruner()
        shown = {"pretrained": self.pretrained, "method": pruner.name, "budget": pruner.budget, **pruner.parameters()}
        rest = ("conv", *ImageSettings._fields, "dtype", "attn_implementation", "max_new_tokens")
        shown |= {key: value for key in rest if (value := getattr(self, key)) != "auto" or key == "dtype"}
        if self.image_cache_dtype != "auto":
            shown["image_cache_dtype"] = self.image_cache_dtype
        return ",".join(f"{key}={value}" for key, value in shown.items() if value is not None)

    def _check(self) -> None:
        check_choice("conv", self.conv, CONVERSATIONS)
        check_choice("image_aspect_ratio", self.image_aspect_ratio, ASPECT_RATIOS)
        check_choice("dtype", self.dtype, _DTYPES)
        check_choice("attn_implementation", self.attn_implementation, _ATTENTION)
        check_choice("execution", self.execution, EXECUTIONS)
        if self.device_map is not None:
            check_choice("device_map", self.device_map, ("auto",))
            if self.device != "auto":
                problem = f"got 'auto' with device={show(self.device)}; each says where weights go"
                raise FieldError("device_map", problem, value=self.device_map, fix="give one of them")
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            problem = f"got {show(self.device)}; expected auto, cpu, cuda or cuda:<number>, from 0 to 99"
            raise FieldError("device", problem, value=self.device)
        check_integer("batch_size", self.batch_size, 1, MOST_BATCH)
        check_integer("image_cache", self.image_cache, 0, _MOST_MEGABYTES)
        check_choice("image_cache_place", self.image_cache_place, _CACHE_PLACES)
        check_choice("image_cache_dtype", self.image_cache_dtype, _CACHE_DTYPES)
        if self.image_chunk is not None:
            check_integer("image_chunk", self.image_chunk, 1, MOST_BATCH)
        for name in _PICTURE_SIZES:
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1, _MOST_PIXELS)
        if self.max_new_tokens is not None:
            check_integer("max_new_tokens", self.max_new_tokens, 1, _MOST_NEW_TOKENS)
        if not self.pretrained.strip() or "\0" in self.pretrained:
            problem = f"got {show(self.pretrained)}; expected a hub id (owner/name), a folder, or demo"
            raise FieldError("pretrained", problem, value=self.pretrained)
        if not isinstance(self.monitor, bool) and not (isinstance(self.monitor, str) and self.monitor.strip()):
            problem = f"got {show(self.monitor)}; expected true, false, or the folder to write to"
            raise FieldError("monitor", problem, value=self.monitor)
        if not isinstance(self.debug, bool):
            raise FieldError("debug", f"got {show(self.debug)}; expected true or false", value=self.debug)
        check_budget_given(self.build_pruner())


def _take_method(given: dict[str, Any]) -> str:
    """Take method and synonyms out of `given`; what is left under the methods' own names stays in it."""
    for synonym, name in _SYNONYMS.items():
        if synonym in given:
            if name in given:
                raise FieldError(synonym, f"is the same argument as {name!r}", fix="give one of them")
            given[name] = given.pop(synonym)
    method = given.pop("method", None)
    if _flag("enable_dynamic_selection", given.pop("enable_dynamic_selection", False)):
        if (
            method not in (None, "finepruner", "fastv+finepruner")
            or given.get("head_strategy", "consensus") != "consensus"
        ):
            asked = f"method={method!r}, head_strategy={given.get('head_strategy')!r}"
            problem = f"stands for method=finepruner,head_strategy=consensus; it cannot be combined with {asked}"
            raise FieldError("enable_dynamic_selection", problem, value=True)
        method, given["head_strategy"] = "finepruner", "consensus"
    method = "vanilla" if method is None else str(method)
    for name in ("heads", "layer", "seed"):
        if name in given and name in parameter_names(method):
            given[name] = _integer(name, given[name])
    if "clip" in given and type(given["clip"]) in (int, float):  # as with pretrained
        given["clip"] = str(given["clip"])
    if isinstance(given.get("budget"), float):
        given["budget"] = _integer("budget", given["budget"])
    return canonical_name(method)


def _plain(value: Any) -> Any:
    """Python's own number for one of numpy's, which is none where types are checked or JSON is written."""
    if type(value) in (str, int, float, bool, dict, list):  # most are, and then numpy need not be loaded
        return value
    return value.item() if isinstance(value, np.generic) else value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise FieldError(name, f"got {show(value)}; expected true or false", value=value)
    return value


def _integer(name: str, value: Any) -> int:
    """A whole number, also as the text or float that lmms-eval makes of it."""
    if not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if number == int(number) if number == number and abs(number) < 2**53 else False:
            return int(number)
    hint = " or a share such as '22%'" if name == "budget" else ""
    raise FieldError(name, f"got {show(value)}; expected a whole number{hint}", value=value)
