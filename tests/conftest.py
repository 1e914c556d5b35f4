"""What the tests share. Nothing is downloaded."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from finepruner_lmms.testing import IMAGE, PAD, VISUAL, alone, prompts, tiny_llava

__all__ = ["IMAGE", "PAD", "VISUAL", "alone", "prompts", "tiny_llava"]


@pytest.fixture(autouse=True)
def one_thread():
    """Small models run faster on one thread, and the machine's other cores stay free."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def judge_of_its_own():
    """A process reads once who judges; each test may name another."""
    yield
    if task := sys.modules.get("finepruner_lmms.judge.mmvet_task"):
        task.judge_of_the_run.cache_clear()
