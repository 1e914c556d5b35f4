"""The greedy loops as kernels of their own choose what the loops in plain torch choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finepruner_lmms.heads import consensus
from finepruner_lmms.heads.consensus import steps
from finepruner_lmms.ops import fused
from finepruner_lmms.ops.selection import unit_vectors
from finepruner_lmms.pruners import cdpruner, divprune, vispruner

HERE = Path(__file__).parent


def tokens(kind: str, batch: int, size: int, device: str = "cpu") -> torch.Tensor:
    """Random tokens; of low rank, so that no token gains anything in the end; or each of them several times."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(batch, size, 16 if kind == "low rank" else 200, generator=generator)
    return (x[:, torch.arange(size) // 3] if kind == "equal tokens" else x).to(device)


def chosen_by_all_loops(kind: str, batch: int, size: int, count: int, device: str = "cpu") -> list[torch.Tensor]:
    """What the four loops choose."""
    x = tokens(kind, batch, size, device)
    kernel = cdpruner.conditional_kernel(x, torch.linspace(0.1, 1, size, device=device).expand(batch, -1))
    unit = unit_vectors(x)
    rows = unit[:, :40].softmax(-1)
    found = [consensus.select_batch(rows, preset, 7) for preset in consensus.PRESETS]
    order = [(f.order + 1) * (torch.arange(f.order.shape[1], device=device) < f.count[:, None]) for f in found]
    return [
        cdpruner.greedy_map(kernel, count),
        divprune.farthest_points(1 - unit @ unit.mT, count),
        vispruner.diverse_tokens(x, count),
        *order,
    ]


CASES = [  # an interpreter takes seconds for each
    ("random", 3, 70, 70),
    ("random", 1, 33, 1),
    *((kind, 2, 40, 21) for kind in ("random", "low rank", "equal tokens")),
]


def compare(device: str) -> None:
    """Both ways for every case."""
    for case in CASES:
        as_kernels = chosen_by_all_loops(*case, device)
        with fused.plain_loops():
            plain = chosen_by_all_loops(*case, device)
        for ours, theirs in zip(as_kernels, plain, strict=True):
            assert torch.equal(ours, theirs), case


@pytest.mark.slow
def test_kernels_choose_what_the_loops_choose():
    """Interpreted, in a process of its own: Triton decides that when it is imported."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "all kernels ran\n", done.stdout + done.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for a GPU")
def test_compiled_kernels_choose_what_the_loops_choose():
    assert fused.kernels_for(torch.eye(3, device="cuda")[None]) is not None
    compare("cuda")


def test_without_a_gpu_the_loops_are_plain():
    assert fused.kernels_for(torch.eye(3)[None]) is None


def main() -> None:
    """Let the kernels run on the CPU, in Triton's interpreter, and compare."""
    from finepruner_lmms.ops import one_kernel

    ran = set[str]()

    class Watched:
        def __getattr__(self, name):
            ran.add(name)
            return getattr(one_kernel, name)

    for module in (cdpruner, divprune, vispruner, steps):
        module.kernels_for = lambda values: None if fused._plain else Watched()
    compare("cpu")
    print("all kernels ran" if ran == {"greedy_map", "farthest_points", "diverse_tokens", "unlike_heads"} else ran)


if __name__ == "__main__":
    main()
