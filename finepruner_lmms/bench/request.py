"""What a user asks of the bench, checked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlavaConfig

from finepruner_lmms.bench.method import Method
from finepruner_lmms.bench.shapes import SHAPES
from finepruner_lmms.checkpoints.load import check_pruner, choose_device, read_config
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.errors import FieldError, check_choice, check_integer
from finepruner_lmms.pruners import build_pruner
from finepruner_lmms.pruners.written import read_method

EXECUTIONS = ("auto", "eager", "graphs", "both")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHOWN = ("fastv", "pdrop", "sparsevlm", "vispruner")


@dataclass(frozen=True)
class Request:
    """A checked request. `pretrained` is None where `like` names a shape, and the other way round."""

    pretrained: str | None
    like: str | None
    methods: tuple[Method, ...]
    batches: tuple[int, ...]
    executions: tuple[str, ...]
    tokens: int
    text: int
    rounds: int
    device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Of the model, for titles and folders."""
        return self.like or str(self.pretrained).rstrip("/").rpartition("/")[2]


def check_request(
    *,
    pretrained: str | None = None,
    like: str | None = None,
    methods: str = "",
    batch: str = "1,8,32",
    execution: str = "auto",
    tokens: int = 16,
    text: int = 60,
    rounds: int = 7,
    device: str = "auto",
    dtype: str = "auto",
) -> Request:
    """The request, or `FieldError` naming the option, its value and what would be right. No weights are read."""
    if (pretrained is None) == (like is None):
        problem = "are both given" if like else "is missing, and --like too"
        shapes = ", ".join(SHAPES)
        raise FieldError("--pretrained", problem, fix=f"give a checkpoint, or --like with a shape of: {shapes}")
    check_choice("--execution", execution, EXECUTIONS)
    check_integer("--tokens", tokens, 2)
    check_integer("--text", text, 4, 2048)
    check_integer("--rounds", rounds, 1)
    check_choice("--dtype", dtype, ["auto", *DTYPES])
    if like is not None:
        check_choice("--like", like, SHAPES)
    try:
        chosen = choose_device(device)
    except FieldError as error:
        raise error.renamed("--device") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise FieldError("--device", f"got {device!r}, but torch sees no GPU", value=device, fix="use cpu")
    if execution in ("graphs", "both") and chosen.type != "cuda":
        problem = f"got {execution!r}; CUDA graphs need a GPU, and the device is {chosen.type!r}"
        raise FieldError("--execution", problem, value=execution, fix="use auto or eager")
    config = SHAPES[like].config() if like is not None else read_config(str(pretrained))
    return Request(
        pretrained,
        like,
        parse_methods(methods, config, random_weights=like is not None),
        parse_batches(batch),
        ("eager", "graphs") if execution == "both" else (execution,),
        tokens,
        text,
        rounds,
        chosen,
        (torch.bfloat16 if chosen.type == "cuda" else torch.float32) if dtype == "auto" else DTYPES[dtype],
    )


def parse_batches(text: str) -> tuple[int, ...]:
    """`"1,8,32"`: ascending, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise FieldError("--batch", f"got {text!r}; expected batch sizes such as 1,8,32", value=text)
    return tuple(sorted({int(part) for part in parts}))


def parse_methods(text: str, config: LlavaConfig, *, random_weights: bool) -> tuple[Method, ...]:
    """`"fastv:64,finepruner:25%:heads=4"`: vanilla first, then what is named, checked against the model's sizes."""
    named = [part.strip() for part in text.split(",")] if text.strip() else _default_methods(config)
    found = [Method("vanilla", build_pruner("vanilla"))]
    for part in named:
        method = Method(*read_method(part))
        try:
            check_pruner(method.pruner, config) if not random_weights else _check_random(method, config)
        except FieldError as error:
            raise FieldError("--methods", f"{part!r}: {error.problem}", value=part, fix=error.fix) from error
        if method not in found:
            found.append(method)
    return tuple(found)


def _check_random(method: Method, config: LlavaConfig) -> None:
    """As `check_pruner`, for a model without CLIP's text tower."""
    geometry = Geometry.of(config)
    method.pruner.schedule(geometry.num_layers, geometry.num_visual_tokens)
    method.pruner.check_heads(geometry.num_heads)
    before, _ = method.pruner.parts(geometry.num_visual_tokens)
    if before is not None and before.reads_question == "clip":
        problem = "reads the question through CLIP's text tower, which random weights do not have"
        raise FieldError("relevance", problem, fix="write it with relevance=embedding, or measure a checkpoint")
    if before is not None and before.reads_question == "keywords":
        problem = "reads the question's keywords, and random weights have no tokenizer"
        raise FieldError("words", problem, fix="write it with words=all, or measure a checkpoint")


def _default_methods(config: LlavaConfig) -> Sequence[str]:
    """A few methods at 64 of 576 tokens, or at the smallest share that a shallow model allows."""
    geometry = Geometry.of(config)
    named = []
    for name in _SHOWN:
        for share in (9, 4, 2):
            budget = max(geometry.num_visual_tokens // share, 1)
            try:
                build_pruner(name, budget=budget).schedule(geometry.num_layers, geometry.num_visual_tokens)
            except FieldError:  # out of reach at this depth
                continue
            named.append(f"{name}:{budget}")
            break
    return named
