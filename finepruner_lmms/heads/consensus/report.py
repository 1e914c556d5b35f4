"""What consensus-diversity selection did, for people and for analysis: a block of text, and a flat record."""

from __future__ import annotations

from typing import Any

from finepruner_lmms.heads.consensus.selection import Consensus

_COMPARED = 16
_EQUAL_WEIGHTS = 1e-3  # largest relative difference of weights that changes nothing


def debug_block(found: Consensus, row: int, style: str = "code") -> str:
    """The block of the upstream code for one sample; `"doc"` is the shorter one of its documentation."""
    record = found.record(row)
    compared = min(_COMPARED, found.sparsest.shape[1])
    sparse = sorted(found.sparsest[row, :compared].tolist())
    if style == "doc":
        qualities = ", ".join(f"{name}={quality:.2f}" for name, quality in record.qualities.items())
    else:
        qualities = str([(name, f"{quality:.3f}") for name, quality in record.qualities.items()])
    digits = 2 if style == "doc" else 3
    lines = [
        f"🎯 Intelligent Consensus-Diversity: {len(record.heads)} heads",
        f"   Consensus: {len(record.consensus)} | Diversity: {len(record.diversity)}",
        f"   Dynamic threshold: {record.threshold:.{digits}f} | Complexity: {record.complexity:.{digits}f}",
        f"   Strategy qualities: {qualities}",
        f"   Selected consensus heads: {record.consensus}",
        f"   Selected diversity heads: {record.diversity}",
    ]
    if style == "code":
        lines += [
            f"   Final head indices: {record.heads}",
            f"   [COMPARISON] Simple sparsity top-{compared}: {sparse}",
            f"   [COMPARISON] Our selection: {sorted(record.heads)}",
            f"   [COMPARISON] Overlap: {len(set(sparse) & set(record.heads))}/{compared} heads",
        ]
    return "\n".join(lines)


def monitor_record(found: Consensus, row: int) -> dict[str, Any]:
    """The selection of one sample as plain values, for JSON lines."""
    record = found.record(row)
    gap, different_flat_uneven = int(found.gap[row]), found.complexity_parts[row].tolist()
    shares = record.weights[: len(record.consensus)], record.weights[len(record.consensus) :]
    branch = _branch(record.complexity, bool(record.consensus))
    inert = [
        step
        for step, idle in (
            ("diversity", not record.diversity),
            ("complexity", record.target == gap),
            ("weights", max(record.weights) < (1 + _EQUAL_WEIGHTS) * min(record.weights)),
        )
        if idle
    ]
    return {
        "preset": found.preset,
        "qualities": record.qualities,
        "counts": dict(zip(found.names, found.chosen[row].tolist(), strict=True)),
        "consistency": float(found.consistency[row]),
        "tau": record.threshold,
        "complexity": record.complexity,
        **dict(zip(("complexity_D", "complexity_E", "complexity_V"), different_flat_uneven, strict=True)),
        "gap": gap,
        "target": record.target,
        "n_heads": len(record.heads),
        "consensus": record.consensus,
        "diversity": record.diversity,
        "weights": record.weights,
        "share_consensus": sum(shares[0]),
        "share_diversity": sum(shares[1]),
        "branch": branch,
        "inert": inert,
        "nan_guarded": bool(found.flat[row]),
    }


def _branch(complexity: float, agreed: bool) -> str:
    """Which way the number and the kind of heads were found."""
    if not agreed:
        return "fallback"
    return "high" if complexity > 0.7 else "low" if complexity < 0.3 else "gap"
