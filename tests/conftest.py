"""What the tests share. Nothing is downloaded.

`make test` shares the files among two processes (pytest-xdist, `--dist loadfile`): a file's tests run in one process
and in order, so that what a module-scoped fixture made is made once. `make test-fast` leaves out what is marked `slow`.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers

from finepruner_lmms.testing import IMAGE, PAD, VISUAL, alone, prompts, rounding, tiny_llava

__all__ = ["IMAGE", "PAD", "VISUAL", "alone", "prompts", "rounding", "tiny_llava"]


def pytest_configure(config: pytest.Config) -> None:
    wanted = os.environ.get("FINEPRUNER_TEST_TRANSFORMERS", transformers.__version__)
    if transformers.__version__ != wanted:
        raise pytest.UsageError(f"transformers {wanted} is to be tested, {transformers.__version__} was imported")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first: a long file at the end would leave one of two processes idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
