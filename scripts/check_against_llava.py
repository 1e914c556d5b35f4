"""Compare a checkpoint of the original LLaVA code base with what that code itself makes of it.

    python scripts/check_against_llava.py liuhaotian/llava-v1.5-7b --image photo.jpg --question "What is this?"

The `llava` package asks for versions that cannot live beside this project's, so it gets an environment of its own
below `--work`, made once. It loads the checkpoint, prompts, preprocesses and answers with its own functions; the same
is done here, and both are shown side by side: ids of the prompt, pixel values, logits of the prompt, greedy answer.
Exit status: 0 equal, 1 not, 2 the comparison could not be made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.checkpoints.load import read_raw_config
from finepruner_lmms.checkpoints.original_config import is_original
from finepruner_lmms.checkpoints.prompts import prompt_ids, vicuna_v1
from finepruner_lmms.engine.geometry import Geometry

HERE = Path(__file__).resolve().parent
LLAVA = "llava-torch==1.2.2.post1"
# the newest versions that llava's code runs with; the rest is what its imports need
NEEDS = [
    "transformers==4.37.2", "accelerate==0.27.2", "numpy<2", "pillow", "sentencepiece", "protobuf", "safetensors",
    "requests",
]  # fmt: skip
QUESTION = "What is in the image?\nAnswer the question using a single word or phrase."
# float32 on a CPU; in 16 bit the two implementations round at different places
TOLERANCE = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 3e-1}


def main() -> int:
    """Compare, print, and say in the exit status whether both are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or hub id, in the original format")
    parser.add_argument("--image", type=Path, action="append", help="may be given several times; else a made-up one")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--tokens", type=int, default=16, help="how long the greedy answer may be")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs") / "llava", help="where the environment is")
    parser.add_argument("--torch", default=f"torch=={torch.__version__.partition('+')[0]}", help="its torch, for pip")
    arguments = parser.parse_args()
    try:
        raw = read_raw_config(arguments.checkpoint)
        if not is_original(raw):
            raise ValueError(f"checkpoint: {arguments.checkpoint!r} is not in the format of the original code base")
        python = environment(arguments.work.absolute(), arguments.torch)
        with tempfile.TemporaryDirectory() as folder:
            images = arguments.image or [made_up(Path(folder) / "made-up.png")]
            theirs = run_original(python, arguments, images, Path(folder))
            return compare(arguments, images, theirs)
    except (ValueError, OSError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2


def environment(work: Path, torch_spec: str) -> Path:
    """The Python of an environment with `llava` in it, made if it is not there."""
    folder, python = work / "environment", work / "environment" / "bin" / "python"
    done, wanted = folder / "finished.json", {"torch": torch_spec, "needs": NEEDS, "llava": LLAVA}
    if done.is_file() and json.loads(done.read_text()) == wanted:
        return python
    steps = [
        ("a fresh environment", [sys.executable, "-m", "venv", "--clear", str(folder)]),
        (f"{torch_spec} and what llava imports", pip(python, torch_spec, *NEEDS)),
        (f"{LLAVA}, without what it asks for", pip(python, "--no-deps", LLAVA)),
        ("trying it", [str(python), "-c", "import llava.model.builder"]),
    ]
    for number, (what, command) in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {what}", flush=True)
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-12:])
            raise ValueError(f"{what}: failed with status {result.returncode}\n{tail}")
    done.write_text(json.dumps(wanted))
    return python


def pip(python: Path, *packages: str) -> list[str]:
    """The command that installs `packages`."""
    return [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]


def made_up(file: Path) -> Path:
    """A picture of gradients and edges, wider than high, so that padding and resampling matter."""
    width, height = 451, 300
    row, column = torch.arange(height)[:, None], torch.arange(width)[None]
    channels = [(column * 255 // width).expand(height, -1), (row * 255 // height).expand(-1, width)]
    channels.append(((row // 23 + column // 31) % 2 * 255).expand(height, width))
    Image.fromarray(torch.stack(channels, -1).to(torch.uint8).numpy()).save(file)
    return file


def run_original(python: Path, arguments: argparse.Namespace, images: list[Path], folder: Path) -> list[dict[str, Any]]:
    """What the original code computes, one record per image."""
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise ValueError(f"--image: no such file: {', '.join(missing)}")
    checkpoint = Path(arguments.checkpoint)
    job = {
        "checkpoint": str(checkpoint.absolute()) if checkpoint.is_dir() else arguments.checkpoint,
        "images": [str(image.absolute()) for image in images],
        "question": arguments.question, "tokens": arguments.tokens, "dtype": arguments.dtype,
        "device": arguments.device, "out": str(folder / "theirs.safetensors"),
    }  # fmt: skip
    # a tower named by a relative path is one of this folder for the original code, and of the checkpoint's for us
    where = checkpoint.absolute().parent if checkpoint.is_dir() else Path.cwd()
    print(f"the original code answers about {len(images)} images", flush=True)
    command = [str(python), "-W", "ignore", str(HERE / "original_llava.py"), json.dumps(job)]
    result = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-12:])
        raise ValueError(f"the original code failed with status {result.returncode}\n{tail}")
    found = load_file(folder / "theirs.safetensors")
    names = ("ids", "pixels", "logits", "answer")
    return [{n: found[f"{i}.{n}"] for n in names if f"{i}.{n}" in found} for i in range(len(images))]


def compare(arguments: argparse.Namespace, images: list[Path], theirs: list[dict[str, Any]]) -> int:
    """Compute the same here and print both; 0 if they are equal."""
    model, processor = fp.load_model(arguments.checkpoint, arguments.dtype, arguments.device)
    geometry, tolerance, rows = Geometry.of(model.config), TOLERANCE[arguments.dtype], []
    text = vicuna_v1(arguments.question, has_image=True)
    has_tokenizer = "ids" in theirs[0]
    for image, their in zip(images, theirs, strict=True):
        with Image.open(image) as opened:
            pixels = preprocess(processor.image_processor, opened)
        if has_tokenizer:
            short = prompt_ids(processor.tokenizer, text, -200, 1)
            rows.append((image.name, "prompt ids", len(their["ids"]), len(short), their["ids"].tolist() == short))
        else:
            short = [*list(range(3, 23)), -200, *list(range(23, 43))]
        rows.append(row(image.name, "pixel values", their["pixels"], pixels, 1e-6))
        ids = [n for s in short for n in ([geometry.image_token_id] * geometry.num_visual_tokens if s == -200 else [s])]
        inputs = {"input_ids": torch.tensor([ids], device=model.device), "pixel_values": pixels[None].to(model.device)}
        with torch.no_grad():
            logits = model(**inputs | {"pixel_values": inputs["pixel_values"].to(model.dtype)}).logits[0].float().cpu()
        words = their["logits"].shape[-1]
        rows.append(row(image.name, "logits", their["logits"], logits[:, :words], tolerance))
        answer = fp.generate(
            model, fp.build_pruner("vanilla"), inputs, max_new_tokens=arguments.tokens, do_sample=False
        ).sequences[0]
        ours = trimmed(answer.tolist(), model.generation_config.eos_token_id)
        other = trimmed(their["answer"].tolist(), model.generation_config.eos_token_id)
        show = processor.tokenizer.decode if has_tokenizer else str
        rows.append((image.name, "greedy answer", show(other), show(ours), other == ours))
    if not has_tokenizer:
        print("the checkpoint holds no tokenizer: a made-up prompt of ids, and no comparison of prompts")
    header = ("image", "what", "original", "here", "equal")
    table = [header, *((*map(str, r[:4]), "yes" if r[4] else "NO") for r in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0 if all(r[4] for r in rows) else 1


def row(image: str, what: str, theirs: torch.Tensor, ours: torch.Tensor, tolerance: float) -> tuple[Any, ...]:
    """One line of the table: both means, and the largest difference against what is allowed."""
    if theirs.shape != ours.shape:
        return image, what, list(theirs.shape), list(ours.shape), False
    apart = float((theirs.float() - ours.float()).abs().max())
    note = f"mean {float(ours.float().mean()):.6f}, apart at most {apart:.1e} (allowed {tolerance:.0e})"
    return image, what, f"mean {float(theirs.float().mean()):.6f}", note, apart <= tolerance


def trimmed(ids: list[int], end: int | list[int] | None) -> list[int]:
    """The answer without its end token and what is padded behind it."""
    ends = set(end if isinstance(end, list) else [end])
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


if __name__ == "__main__":
    sys.exit(main())
