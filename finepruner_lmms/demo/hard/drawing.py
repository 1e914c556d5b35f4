"""How a crowded scene looks."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from finepruner_lmms.demo.hard.things import COLORS, SIZES, Scrap, Thing
from finepruner_lmms.demo.outlines import SHAPES, noise, shape_mask
from finepruner_lmms.demo.scenes import IMAGE_SIZE, PATCH, digit_samples, photograph_paths

_CROPS, _MASKS = 120, 24
_RADII = {"small": (4.2, 5.6), "medium": (9.0, 12.0), "large": (15.5, 19.0)}
_PLAY = {"small": 1.0, "medium": 1.8, "large": 1.8}  # pixels around the middle
_FRAME = 2
_PIECES = 6
_DIGIT = 10  # pixels
FORMS = 23  # of a training digit, beside its own
_GROUND = 60, 205


def draw(split: str, index: int, grid: int, things: Sequence[Thing], scraps: Sequence[Scrap]) -> np.ndarray:
    """The pixels of the scene number `index` of a split, `[14 grid, 14 grid, 3]` uint8."""
    rng, side = random.Random(f"hard pixels {split} {index}"), grid * PATCH
    canvas = _window(rng, _backgrounds(split), side, side).astype(np.float32)
    for scrap in scraps:
        _paste(canvas, scrap, rng, split)
    for thing in things:
        color = np.array([value + rng.randint(-14, 14) for value in COLORS[thing.color]], dtype=np.float32)
        left, top, right, bottom = thing.box()
        tile = canvas[top:bottom, left:right]
        if thing.is_plate:
            _draw_plate(tile, color, thing, rng, split)
        else:
            alpha = _masks()[thing.name, thing.size][rng.randrange(_MASKS)]
            tile[:] = tile * (1 - alpha) + color * alpha
    x, y = rng.randrange(IMAGE_SIZE), rng.randrange(IMAGE_SIZE)
    canvas += noise(IMAGE_SIZE)[y : y + side, x : x + side] * 0.6
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _window(rng: random.Random, pictures: tuple[np.ndarray, ...], width: int, height: int) -> np.ndarray:
    picture = pictures[rng.randrange(len(pictures))]
    x, y = rng.randint(0, IMAGE_SIZE - width), rng.randint(0, IMAGE_SIZE - height)
    window = picture[y : y + height, x : x + width]
    return window[:, ::-1] if rng.random() < 0.5 else window


def _paste(canvas: np.ndarray, scrap: Scrap, rng: random.Random, split: str) -> None:
    """A piece of a photograph, sharp and in full colour: it catches the eye, and nobody asks about it.

    Of some, the one with the most in it: a plain one would be a square.
    """
    x, y, width, height = (PATCH * side for side in (scrap.x, scrap.y, scrap.width, scrap.height))
    pieces = [_window(rng, _sharp(split), width, height) for _ in range(_PIECES)]
    canvas[y : y + height, x : x + width] = max(pieces, key=lambda piece: float(piece.std()))


def _draw_plate(tile: np.ndarray, color: np.ndarray, plate: Thing, rng: random.Random, split: str) -> None:
    """Handwritten digits, light on dark, in a frame."""
    tile[:] = color
    tile[_FRAME:-_FRAME, _FRAME:-_FRAME] = rng.randint(45, 65)
    for place, digit in enumerate(plate.name):
        samples = digit_masks(split)[int(digit)]
        alpha = samples[rng.randrange(len(samples))]
        size = len(alpha)
        x, y = place * PATCH + (PATCH - size) // 2, (PATCH - size) // 2
        inner = tile[y : y + size, x : x + size]
        inner[:] = inner * (1 - alpha) + 250 * alpha


@functools.cache
def digit_masks(split: str) -> dict[int, tuple[np.ndarray, ...]]:
    """Alpha masks `[10, 10, 1]` of handwritten digits; few people wrote them, so training has each in many forms."""
    rng, found = random.Random(f"hard digits {split}"), {}
    for digit, samples in digit_samples(split).items():
        masks = []
        for sample in map(Image.fromarray, samples):
            masks.append(_alpha(sample.resize((_DIGIT, _DIGIT), Image.Resampling.BICUBIC)))
            if split == "train":
                masks += [_alpha(_written_anew(sample, rng)) ** rng.uniform(0.65, 1.5) for _ in range(FORMS)]
        found[digit] = tuple(masks)
    return found


def _alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)[..., None] / 255


def _written_anew(sample: Image.Image, rng: random.Random) -> Image.Image:
    """A digit as another hand might write it: turned, slanted, wider or narrower, and beside its place."""
    turn, slant = math.radians(rng.uniform(-15, 15)), rng.uniform(-0.25, 0.25)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    stretch = np.diag([sample.width / _DIGIT / rng.uniform(0.85, 1.15) for _ in range(2)])
    to_sample = rotation @ np.array([[1, slant], [0, 1]]) @ stretch
    middle = np.array([_DIGIT / 2 + rng.uniform(-0.75, 0.75) for _ in range(2)])
    offset = np.array(sample.size) / 2 - to_sample @ middle
    matrix = (*to_sample[0], offset[0], *to_sample[1], offset[1])
    return sample.transform((_DIGIT, _DIGIT), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


@functools.cache
def _sharp(split: str) -> tuple[np.ndarray, ...]:
    """Small pieces of the photographs, enlarged: `[336, 336, 3]` uint8."""
    return _crops(split, "crops", 120, 400)


@functools.cache
def _backgrounds(split: str) -> tuple[np.ndarray, ...]:
    """Large pieces of the photographs as sharp as they are, a little paler; never as dark as a black thing nor as
    bright as a white one."""
    rng, paler = random.Random(f"hard backgrounds {split}"), []
    for crop in _crops(split, "wide crops", 300, 2000):
        pixels = crop.astype(np.float32)
        pixels = 0.7 * pixels + 0.3 * pixels.mean(-1, keepdims=True)
        veil = rng.uniform(0.1, 0.3)
        pixels = pixels * (1 - veil) + rng.uniform(70, 170) * veil
        paler.append(np.clip(pixels, *_GROUND).astype(np.uint8))
    return tuple(paler)


def _crops(split: str, purpose: str, least: int, most: int) -> tuple[np.ndarray, ...]:
    """Squares of the photographs of `least` to `most` pixels a side, as far as they are that large, at one size."""
    rng = random.Random(f"hard {purpose} {split}")
    photographs = [Image.open(path).convert("RGB") for path in photograph_paths(split)]
    crops = []
    for number in range(_CROPS):
        photograph = photographs[number % len(photographs)]
        side = rng.randint(least, min(most, *photograph.size))
        x, y = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
        crop = photograph.crop((x, y, x + side, y + side))
        crops.append(np.asarray(crop.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)))
    return tuple(crops)


@functools.cache
def _masks() -> dict[tuple[str, str], tuple[np.ndarray, ...]]:
    """Alpha masks of each shape and size, jittered in radius, place and angle."""
    rng, masks = random.Random("hard masks"), {}
    for size, patches in SIZES.items():
        side = patches * PATCH
        for shape in SHAPES:
            drawn = []
            for _ in range(_MASKS):
                play = _PLAY[size]
                middle = side / 2 + rng.uniform(-play, play), side / 2 + rng.uniform(-play, play)
                drawn.append(shape_mask(shape, side, rng.uniform(*_RADII[size]), middle, rng.uniform(-8, 8)))
            masks[shape, size] = tuple(drawn)
    return masks
