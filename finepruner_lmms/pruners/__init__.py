"""The pruning methods, one per file. Importing this package registers them; plug-ins follow when they are asked for."""

from typing import Any

from finepruner_lmms.pruners import (
    blind,
    cdpruner,
    coordinates,
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
    merge,
    mmtok,
    pdrop,
    pool,
    priortr,
    prunesid,
    random,
    random_tail,
    restore,
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
from finepruner_lmms.pruners.corrector import Corrector
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.registry import (
    build_pruner,
    canonical_name,
    known_correctors,
    known_methods,
    method_class,
    parameter_names,
    register,
    register_corrector,
)

METHODS: list[str]
"""The sorted names of all methods, those registered since and those of installed plug-ins included."""
CORRECTORS: list[str]
"""The sorted names of all correctors, which are written behind a method: `divprune+merge`."""


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        return known_methods()
    if name == "CORRECTORS":
        return known_correctors()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CORRECTORS",
    "METHODS",
    "Corrector",
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
    "coordinates",
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
    "merge",
    "method_class",
    "mmtok",
    "parameter_names",
    "pdrop",
    "pool",
    "priortr",
    "prunesid",
    "random",
    "random_tail",
    "register",
    "register_corrector",
    "restore",
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
