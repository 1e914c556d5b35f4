"""The pruning methods, one per file. Importing this package registers them; plug-ins follow when they are asked for."""

from typing import Any

from finepruner_lmms.pruners import (
    blind,
    cdpruner,
    coreprune,
    divprune,
    downsample,
    eadp,
    fastervlm,
    fastv,
    finepruner,
    hawk,
    hiprune,
    holov,
    mmtok,
    pdrop,
    pool,
    priortr,
    prunesid,
    random,
    scope,
    sparsevlm,
    tops,
    uniform,
    vanilla,
    visionzip,
    vispruner,
    visualheads,
    vscan,
)
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Reduction, Stage, TwoStage, VisionPruner
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.registry import (
    build_pruner,
    canonical_name,
    known_methods,
    method_class,
    parameter_names,
    register,
)

METHODS: list[str]
"""The sorted names of all methods, those registered since and those of installed plug-ins included."""


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        return known_methods()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "METHODS",
    "DecoderContext",
    "DecoderPruner",
    "Pruner",
    "Reduction",
    "Selection",
    "Stage",
    "TwoStage",
    "VisionPruner",
    "blind",
    "build_pruner",
    "canonical_name",
    "cdpruner",
    "coreprune",
    "divprune",
    "downsample",
    "eadp",
    "fastervlm",
    "fastv",
    "finepruner",
    "hawk",
    "hiprune",
    "holov",
    "method_class",
    "mmtok",
    "parameter_names",
    "pdrop",
    "pool",
    "priortr",
    "prunesid",
    "random",
    "register",
    "scope",
    "sparsevlm",
    "tops",
    "uniform",
    "vanilla",
    "visionzip",
    "vispruner",
    "visualheads",
    "vscan",
]
