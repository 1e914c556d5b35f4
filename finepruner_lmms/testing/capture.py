"""Capturing a method's choice in a CUDA graph: what the guards stand in for, where there is a GPU.

For `scripts/gpu_check.py` and whoever writes a method: `capture_choice` of every `Way` must say that the replay
chooses what an ordinary call does, from other values than those that were there when it was captured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.pruners import DecoderContext
from finepruner_lmms.pruners.vision_outputs import VisionOutputs
from finepruner_lmms.testing.samples import RandomFirstLayer


@dataclass(frozen=True)
class Captured:
    """A choice as a CUDA graph: `replay` runs it, `result` are the tensors that it writes."""

    graph: Any
    result: tuple[Tensor, ...]

    def replay(self) -> tuple[Tensor, ...]:
        """Choose again from what now stands in the captured inputs."""
        self.graph.replay()
        return self.result


def random_images(batch: int, seed: int, question: str, device: str = "cuda", **sizes: int) -> VisionOutputs:
    """Encoded images of LLaVA-1.5-7B's sizes, or of `visual`, `features`, `projected`, `heads` and `joint` ones."""
    n, c, d = sizes.get("visual", 576), sizes.get("features", 1024), sizes.get("projected", 4096)
    heads, joint = sizes.get("heads", 16), sizes.get("joint", 768)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    projector = draw(c, d) / c**0.5
    return VisionOutputs(
        features=draw(batch, n, c),
        projected=draw(batch, n, d),
        cls_attention=draw(batch, heads, n).softmax(-1),
        image_embeds=draw(batch, n, joint),
        text_embeds=[draw(1, joint if question == "clip" else d) for _ in range(batch)],
        sample_keys=torch.randint(2**62, (batch,), generator=generator, device=device),
        keys=draw(batch, n, c // heads),
        cls_projected=draw(batch, 1, d),
        projector=lambda tokens: tokens @ projector.to(tokens.dtype),
        received_attention=draw(batch, heads, n).softmax(-1),
        early_received=draw(batch, heads, n).softmax(-1),
        early_cls_attention=draw(batch, heads, n).softmax(-1),
        first_layer=RandomFirstLayer.draw(d, generator, heads=32, head_dim=max(d // 32, 1)),
    )


def random_state(batch: int, seed: int, device: str = "cuda", **sizes: int) -> dict[str, Tensor]:
    """What a `DecoderContext` reads, of LLaVA-1.5-7B's sizes, or of `visual`, `words`, `heads` and `width` ones."""
    n, words = sizes.get("visual", 576), sizes.get("words", 40)
    heads, width = sizes.get("heads", 32), sizes.get("width", 4096)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    return {
        "attention": draw(batch, heads, n).mul(1.5).softmax(-1),
        "next_attention": draw(batch, heads, n).mul(1.5).softmax(-1),
        "text_attention": draw(batch, heads, words, n).mul(1.5).softmax(-1),
        "hidden": draw(batch, n, width),
        "visual_embeds": draw(batch, n, width),
        "text_embeds": draw(batch, words, width),
        "values": draw(batch, heads, n, width // heads),
        "text_output": draw(batch, heads, words, width // heads),
        "rotation": draw(batch, 2, n),
        "present": torch.ones(batch, n, dtype=torch.bool, device=device),
        "text_present": torch.ones(batch, words, dtype=torch.bool, device=device),
        "prefix_lengths": torch.full((batch,), 35, device=device),
    }


def choice_from(state: dict[str, Tensor], pruner: Any, retained: int, layer: int = 2) -> tuple[Tensor, ...]:
    """What a decoder-side method chooses, and what it merges, from a `random_state`."""
    named: dict[str, Any] = {name: value for name, value in state.items() if name not in ("attention", "present")}
    named["attention_in"] = lambda earlier: state["attention"].roll(earlier, dims=-1)
    with for_choosing(state["present"].device):
        found = pruner.select(DecoderContext(layer, state["attention"], state["present"], **named), retained)
    return tuple(value for value in (found.keep, found.merged, found.heads) if value is not None)


def reduction_of(vision: VisionOutputs, pruner: Any) -> tuple[Tensor, ...]:
    """What a vision-side method keeps and makes of images."""
    with for_choosing(vision.features.device):
        reduced = pruner.reduce(vision)
    return reduced.keep, reduced.tokens


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """`torch.cuda.set_sync_debug_mode("error")` for what is inside: a wait for the device raises `RuntimeError`."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def capture(choose: Callable[[], tuple[Tensor, ...]]) -> Captured:
    """`choose` as a CUDA graph, warmed up on a stream of its own; what cannot be captured raises here."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            choose()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = choose()
    return Captured(graph, result)


def overwrite(old: Any, new: Any) -> None:
    """Put the values of `new` where those of `old` are, through lists, dictionaries and images."""
    if isinstance(old, Tensor):
        old.copy_(new)
    elif isinstance(old, VisionOutputs):
        for f in fields(old):
            overwrite(getattr(old, f.name), getattr(new, f.name))
    elif isinstance(old, dict):
        for name, value in old.items():
            overwrite(value, new[name])
    elif isinstance(old, list):
        for value, other in zip(old, new, strict=True):
            overwrite(value, other)


def capture_choice(
    pruner: Any, batch: int = 2, visual: int = 576, layers: int = 32, device: str = "cuda", **sizes: int
) -> bool:
    """Whether each part of `pruner` chooses, captured and replayed on other values, what it chooses without a graph.

    First runs it with waiting forbidden. Raises what CUDA says where it waits or cannot be captured.
    """
    before, inside = pruner.parts(visual)
    same, left = True, visual
    if before is not None:
        old, new = (
            random_images(batch, seed, before.reads_question, device, visual=visual, **sizes) for seed in (0, 1)
        )
        old = old.replace(projector=new.projector, first_layer=new.first_layer)  # weights do not change
        same = _captured_as_called(lambda images: reduction_of(images, before), old, new)
        left = before.retained(visual)
    for stage in inside.stages(layers, left) if inside is not None else ():
        states = (random_state(batch, seed, device, visual=left, **sizes) for seed in (2, 3))
        choose = functools.partial(choice_from, pruner=inside, retained=stage.retained, layer=stage.layer)
        same &= _captured_as_called(choose, *states)
        left = stage.retained + stage.merged
    return same


def _captured_as_called(choose: Callable[[Any], tuple[Tensor, ...]], old: Any, new: Any) -> bool:
    """Whether `choose`, captured with `old`, says of `new` what it says without a graph, to the last bit."""
    choose(old)
    with waiting_is_an_error():
        choose(old)
    captured = capture(lambda: choose(old))
    overwrite(old, new)
    return all(torch.equal(a, b) for a, b in zip(captured.replay(), choose(new), strict=True))
