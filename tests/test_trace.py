"""The trace: one wait for the device when it is looked at, the first error first, and copies that stand alone."""

from __future__ import annotations

import pytest
import torch
from conftest import prompts, tiny_llava
from torch.overrides import TorchFunctionMode

import finepruner_lmms as fp
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads.consensus import Consensus

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")


class CountWaits(TorchFunctionMode):
    """How often something on the device is read; what `cpu` has brought to the host is read for nothing."""

    def __enter__(self):
        self.waits, self.brought = 0, set()
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, result = getattr(func, "__name__", ""), func(*args, **(kwargs or {}))
        if name in READS and args[0].untyped_storage().data_ptr() not in self.brought:
            self.waits += 1
        if name == "cpu":
            self.brought.add(result.untyped_storage().data_ptr())
        return result


def consensus_trace():
    pruner = fp.build_pruner("finepruner", budget=10, guide="sparsevlm", head_strategy="consensus")
    return fp.generate(tiny_llava(), pruner, prompts((5, 7), 11, (2, 4), (8, 1)), max_new_tokens=1).trace


def test_a_trace_is_read_with_one_wait_however_much_there_is_to_read():
    trace = consensus_trace()
    assert len(trace.keep_masks) == 3 and len(trace.expected) > 3
    for read in (trace.check, lambda: trace.kept, lambda: trace.tokens_entering):
        with CountWaits() as counter:
            read()
        assert counter.waits == 1


def test_the_guard_that_counts_waits_counts_them():
    values = torch.rand(3)
    with CountWaits() as counter:
        values.tolist()
        bool(values.any())
        values.cpu().tolist()
    assert counter.waits == 3


def test_the_error_that_was_remembered_first_is_raised():
    first, second, third = (FieldError(name, "does not hold") for name in ("first", "second", "third"))
    trace = Trace()
    trace.expect(first, torch.tensor(True))
    trace.expect(second, torch.tensor(False))
    trace.expect(third, torch.tensor([False]))  # one number, in whatever shape
    with pytest.raises(FieldError, match="second: does") as caught:
        trace.check()
    assert caught.value is second
    trace.expect(first, torch.tensor(False))  # what failed once, or fails later, keeps its place
    with pytest.raises(FieldError, match="first: does"):
        trace.check()
    Trace().check()
    assert Trace().kept == {} and Trace().tokens_entering == []


def tensors_of(value):
    """All tensors in a trace, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return tensors_of(vars(value)) if isinstance(value, Trace | Consensus) else []


def test_a_copy_of_some_rows_does_not_change_with_what_it_was_copied_from():
    trace = consensus_trace()
    copied, expected = trace.copied(slice(1, 3)), trace.kept
    for tensor in tensors_of(trace):
        tensor.zero_()
    assert len(tensors_of(copied)) == len(tensors_of(trace)) > 40
    assert copied.has_image == (False, True)
    for layer, kept in copied.kept.items():
        assert all(map(torch.equal, kept, expected[layer][1:3])) and len(kept[1])
    (first, *_), (details, *_) = copied.chosen_heads.values(), copied.details.values()
    assert isinstance(details, Consensus) and len(details.order) == 2 and (details.count > 0).all()
    assert first[0].shape[0] == 2 and details.weights.sum(1).tolist() == pytest.approx([1.0, 1.0])
    copied.check()
    with pytest.raises(FieldError):
        trace.check()  # its flags were written over, too


def test_details_without_rows_can_be_copied_with_all_rows_but_not_with_some():
    trace = Trace(has_image=(True, True), details={2: {"share": torch.ones(1)}})
    copied = trace.copied(slice(None))
    trace.details[2]["share"].zero_()
    assert copied.details[2]["share"].item() == 1
    with pytest.raises(FieldError, match="cannot be told apart by rows"):
        trace.copied(slice(0, 1))
