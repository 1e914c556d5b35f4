"""What an answer depends on, in named parts, so that what is stored is found again and a change can be named.

Where and how fast a model runs (device, batch size, processes) is none of it, and neither is what happens to an answer
afterwards: the judge and the reports. Which code counts: see `code_identity`. Nothing here imports torch by itself.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.asking.settings import evaluation
from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol
from finepruner_lmms.data.hub import commit_of
from finepruner_lmms.data.identity import UNKNOWN_COMMIT
from finepruner_lmms.data.manifest import MANIFEST, identity_of
from finepruner_lmms.files import content_hash, read_object
from finepruner_lmms.lmms.code_identity import engine_code, method_code, other_task_code, task_code
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.sources import Sources, own_sources, short_hash

if TYPE_CHECKING:
    from finepruner_lmms.budget import BudgetValue
    from finepruner_lmms.engine.families.family import Family
    from finepruner_lmms.pruners import Pruner

LIBRARIES = {
    "torch": "does the arithmetic",
    "transformers": "is the model, prepares images and generates",
    "tokenizers": "makes tokens of a prompt, and text of an answer",
    "sentencepiece": "reads the tokenizers of checkpoints in the original format",
    "pillow": "decodes and resizes images",
    "numpy": "crops and normalises images",
    "lmms_eval": "has the tasks' prompts, reads answers and scores them",
}
"""Whose versions count, and why. `datasets`, `accelerate` and the like hand on what they are given."""
_SAYS_NOTHING = (".md", ".lock")


def answer_identity(
    pruner: Pruner,
    settings: Mapping[str, Any],
    dtype: str,
    checkpoint: str,
    num_visual_tokens: int,
    sources: Sources | None = None,
    *,
    varies: bool = False,
) -> Identity:
    """Of the answers of a model and a pruner, whatever they are asked.

    `settings` are `answer_settings`, `dtype` is a `resolved_dtype` and `checkpoint` a `checkpoint_identity`.
    """
    text = json.dumps(
        {**settings, **canonical_parameters(pruner, num_visual_tokens, varies)}, sort_keys=True, default=str
    )
    sources = own_sources() if sources is None else sources
    return Identity(
        settings=short_hash(text),
        dtype=dtype,
        checkpoint=checkpoint,
        libraries=library_versions(),
        engine=engine_code(sources),
        method=method_code(pruner, sources),
    )


def cell_identity(
    answers: Identity,
    task: str,
    limit: int | None,
    submission: bool,
    data: str,
    sources: Sources | None = None,
    *,
    definition: str = "",
    protocol: Protocol = LLAVA,
) -> Identity:
    """Of the result of a task; `data` is `data.identity.data_identity`.

    `definition` is the YAML file of a task that is none of the ten. `protocol` is what it is scored by.
    """
    scored = [] if protocol == LLAVA else [protocol]
    asked = short_hash(json.dumps([answers.settings, task, limit, submission, *scored]))
    sources = own_sources() if sources is None else sources
    code = other_task_code(definition, sources) if definition else task_code(task, submission, sources)
    return answers.model_copy(update={"settings": asked, "task": code, "data": data})


def answer_settings(model: Any, family: Family) -> dict[str, Any]:
    """The settings of a model that change its answers: of a matrix file's section, or of `ModelArguments`.

    What a family decides is told as decided. The checkpoint and the type count as parts of their own, and where it runs
    not at all. `FieldError` for a setting that the family does not read.
    """
    found = evaluation(family, model)
    settings = {"conv": found.conv, "attn_implementation": model.attn_implementation}
    settings |= {name: value for name, value in found.images._asdict().items() if value is not None}
    settings["max_new_tokens"] = model.max_new_tokens
    if model.image_cache_dtype != "auto" and family.model_type == "llava":  # images are rounded
        settings["image_cache_dtype"] = model.image_cache_dtype
    return settings


# -- settings ---------------------------------------------------------------------------------------------------------


def canonical_parameters(pruner: Pruner, num_visual_tokens: int, varies: bool = False) -> dict[str, Any]:
    """Method, budget and all parameters, defaults among them; the same for settings that mean the same.

    A budget is the number of tokens that it means, so that `64`, `"64"` and a share of that size are one. Where N
    `varies` with the image, a count and a share are never the same.
    """
    from finepruner_lmms.budget import parse_budget, plain_budget

    def meant(budget: BudgetValue) -> str:
        if varies:
            return str(plain_budget(budget))
        return str(parse_budget(budget).tokens(num_visual_tokens))

    parameters = pruner.parameters()
    if "first" in parameters and parameters["first"] is not None:
        parameters["first"] = meant(parameters["first"])
    if reads_clip(pruner, num_visual_tokens):
        parameters.pop("clip", None)  # counts by its content, with the checkpoint
    return {"method": pruner.name, "budget": meant(pruner.budget), "parameters": parameters}


def resolved_dtype(dtype: str, device: str, pretrained: str, stored: str | None = None) -> str:
    """The type that a model is computed in: what `auto` means on a device (`cpu`, `cuda`, …), or `dtype` itself.

    `stored` is the type that the checkpoint is stored in, where that is known without its config.json.
    """
    if dtype != "auto":
        return dtype
    return "float32" if device.partition(":")[0] == "cpu" else stored or _stored_type(pretrained)


def _stored_type(pretrained: str) -> str:
    """The type that a checkpoint says it is stored in."""
    from finepruner_lmms.checkpoints.configuration import read_raw_config

    raw = read_raw_config(pretrained)
    stated = raw.get("dtype") or raw.get("torch_dtype")
    return str(stated).removeprefix("torch.") if stated else "as stored"


# -- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint_identity(
    pretrained: str, pruner: Pruner | None = None, num_visual_tokens: int = 1, shape: Any = None
) -> str:
    """The content of a checkpoint, given as hub id or folder; for a hub id its commit.

    A checkpoint of the original code base may have its vision tower in another one, and a method may read the question
    with a CLIP of its own: these count as well. `shape` is the model's, where it was read already.
    """
    parts = [_content_of(pretrained)]
    folder = Path(pretrained)
    tower = (read_object(folder / "config.json") or {}).get("mm_vision_tower") if folder.is_dir() else None
    if isinstance(tower, str):
        from finepruner_lmms.checkpoints.original_config import find_tower

        parts.append(_content_of(find_tower(tower, pretrained)))
    if pruner is not None and reads_clip(pruner, num_visual_tokens):
        from finepruner_lmms.checkpoints.configuration import read_shape
        from finepruner_lmms.engine.clip_names import clip_checkpoint

        before, _ = pruner.parts(num_visual_tokens)
        parts.append(_content_of(clip_checkpoint(shape or read_shape(pretrained), getattr(before, "clip", None))))
    return " ".join(dict.fromkeys(parts))


def _content_of(folder_or_id: str) -> str:
    folder = Path(folder_or_id)
    if not folder.is_dir():
        return f"{folder_or_id}@{commit_of(folder_or_id, 'model') or UNKNOWN_COMMIT}"
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    # what `prepare` and people write down about a checkpoint is no part of it
    files = [file for file in files if file.name != MANIFEST and file.suffix not in _SAYS_NOTHING]
    return identity_of((file.name, content_hash(file)) for file in files)


def reads_clip(pruner: Pruner, num_visual_tokens: int) -> bool:
    """Whether the method reads the question with a CLIP checkpoint."""
    try:
        before, _ = pruner.parts(num_visual_tokens)
    except ValueError:  # a composition that cannot reach its budget, which is reported elsewhere
        return False
    return before is not None and before.reads_question == "clip"


# -- libraries --------------------------------------------------------------------------------------------------------


@functools.cache
def library_versions() -> dict[str, str]:
    """The versions of `LIBRARIES`."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    """As `metadata.version`, which parses all that a library says of itself, its README included."""
    text = metadata.distribution(name).read_text("METADATA") or ""
    found = re.search(r"^Version: *(\S+)$", text.partition("\n\n")[0], re.MULTILINE)
    return metadata.version(name) if found is None else found[1]
