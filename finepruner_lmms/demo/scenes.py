"""Scenes: real photographs with coloured shapes and real handwritten digits on them.

A scene is 336×336 pixels: 24×24 patches of 14 pixels, as CLIP sees an image for LLaVA-1.5. Every object fills one cell
of a 12×12 grid, that is 2×2 patches. About 25 of the 576 visual tokens show an object; the rest is background, which
is what makes pruning worth studying here.

The three splits share no photograph, no digit sample and no scene.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from finepruner_lmms.demo.outlines import SHAPES, noise, shape_mask

IMAGE_SIZE, PATCH = 336, 14
GRID = IMAGE_SIZE // PATCH
CELL = 2 * PATCH
CELLS = IMAGE_SIZE // CELL
SPLITS = ("train", "tuning", "test")

COLORS = {
    "red": (215, 38, 38),
    "green": (40, 165, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 215, 40),
    "purple": (150, 50, 190),
    "white": (245, 245, 245),
}
COLORS_ZH = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "white": "白色"}
SHAPES_ZH = {
    "circle": "圆形",
    "square": "方形",
    "triangle": "三角形",
    "star": "星形",
    "cross": "十字形",
    "ring": "环形",
}

# photographs shipped inside scikit-image and scikit-learn; sources and licences: docs/demo_model.md
_PHOTOGRAPHS = {
    "train": (
        "skimage/astronaut.png",
        "skimage/coffee.png",
        "skimage/motorcycle_left.png",
        "skimage/grass.png",
        "skimage/gravel.png",
        "skimage/brick.png",
        "skimage/coins.png",
        "skimage/hubble_deep_field.jpg",
        "sklearn/china.jpg",
    ),
    "tuning": ("skimage/rocket.jpg", "sklearn/flower.jpg"),
    "test": ("skimage/chelsea.png", "skimage/camera.png", "skimage/retina.jpg"),
}
_CROPS = 120
_MASKS = 24


@dataclass(frozen=True)
class Thing:
    """An object: `kind` "shape" or "digit", `name` ("star", "7"), and the cell `x`, `y` it fills."""

    kind: str
    name: str
    color: str
    x: int
    y: int

    def tokens(self) -> list[int]:
        """Its four visual tokens, in raster order."""
        return [(2 * self.y + dy) * GRID + 2 * self.x + dx for dy in (0, 1) for dx in (0, 1)]

    def box(self) -> list[int]:
        """Left, top, right and bottom of its cell, in pixels."""
        return [self.x * CELL, self.y * CELL, (self.x + 1) * CELL, (self.y + 1) * CELL]


@dataclass(frozen=True)
class Scene:
    """What is in a picture; the picture itself is drawn when asked for."""

    split: str
    index: int
    things: tuple[Thing, ...]

    @property
    def shapes(self) -> tuple[Thing, ...]:
        """The coloured shapes."""
        return tuple(thing for thing in self.things if thing.kind == "shape")

    @property
    def digits(self) -> tuple[Thing, ...]:
        """The digits, each in a coloured box."""
        return tuple(thing for thing in self.things if thing.kind == "digit")

    def pixels(self) -> np.ndarray:
        """`[336, 336, 3]` uint8."""
        return _draw(self)

    def image(self) -> Image.Image:
        """The picture, 336×336 RGB."""
        return Image.fromarray(self.pixels())

    def object_tokens(self) -> np.ndarray:
        """`[576]` bool: the visual tokens that show an object."""
        mask = np.zeros(GRID * GRID, dtype=bool)
        for thing in self.things:
            mask[thing.tokens()] = True
        return mask


def make_scene(split: str, index: int) -> Scene:
    """The scene number `index` of a split; the same in every process and order of calls."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}; known: {', '.join(SPLITS)}")
    rng = random.Random(f"scene {split} {index}")
    num_shapes, num_digits = rng.randint(4, 6), rng.choice((1, 1, 2))
    cells: list[tuple[int, int]] = []
    while len(cells) < num_shapes + num_digits:
        cell = rng.randrange(CELLS), rng.randrange(CELLS)
        if all(max(abs(cell[0] - x), abs(cell[1] - y)) >= 2 for x, y in cells):
            cells.append(cell)
    things = [
        Thing("digit", str(rng.randrange(10)), color, *cell)
        for cell, color in zip(cells, rng.sample(list(COLORS), num_digits), strict=False)
    ]
    seen: set[tuple[str, str]] = set()
    for cell in cells[num_digits:]:
        while True:
            repeat = len(things) > num_digits and rng.random() < 0.35  # so that there is something to count
            shape, color = things[-1].name if repeat else rng.choice(SHAPES), rng.choice(list(COLORS))
            if (shape, color) not in seen:
                break
        seen.add((shape, color))
        things.append(Thing("shape", shape, color, *cell))
    return Scene(split, index, tuple(things))


def _draw(scene: Scene) -> np.ndarray:
    rng = random.Random(f"pixels {scene.split} {scene.index}")
    backgrounds = _backgrounds(scene.split)
    canvas = backgrounds[rng.randrange(len(backgrounds))].astype(np.int16)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1].copy()
    canvas += rng.randint(-20, 20)
    for thing in scene.things:
        color = np.array([value + rng.randint(-14, 14) for value in COLORS[thing.color]], dtype=np.float32)
        x, y = thing.x * CELL, thing.y * CELL
        tile = canvas[y : y + CELL, x : x + CELL].astype(np.float32)
        if thing.kind == "shape":
            alpha = _shape_masks()[thing.name][rng.randrange(_MASKS)]
            tile = tile * (1 - alpha) + color * alpha
        else:
            slant = rng.uniform(-15, 15) if scene.split == "train" else 0.0  # few writers: vary them in training
            tile = _draw_digit(tile, color, rng, digit_samples(scene.split)[int(thing.name)], slant)
        canvas[y : y + CELL, x : x + CELL] = tile
    left, top = rng.randrange(IMAGE_SIZE), rng.randrange(IMAGE_SIZE)
    canvas += noise(IMAGE_SIZE)[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _draw_digit(
    tile: np.ndarray, color: np.ndarray, rng: random.Random, samples: tuple[np.ndarray, ...], slant: float
) -> np.ndarray:
    """A handwritten digit, white on dark, in a frame of `color`, turned by `slant` degrees."""
    tile[:] = color
    tile[3:25, 3:25] = rng.randint(5, 25)
    size = rng.randint(20, 22)
    sample = Image.fromarray(samples[rng.randrange(len(samples))]).resize((size, size), Image.Resampling.BICUBIC)
    if slant:
        sample = sample.rotate(slant, Image.Resampling.BILINEAR)
    alpha = np.asarray(sample, dtype=np.float32)[..., None] / 255
    x, y = 3 + rng.randint(0, 22 - size), 3 + rng.randint(0, 22 - size)
    inner = tile[y : y + size, x : x + size]
    tile[y : y + size, x : x + size] = inner * (1 - alpha) + 250 * alpha
    return tile


@functools.cache
def digit_samples(split: str) -> dict[int, tuple[np.ndarray, ...]]:
    """Handwritten digits of a split: digit → 8×8 uint8 images. A tenth is for tuning, a tenth for test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    owner = {8: "tuning", 9: "test"}
    samples: dict[int, list[np.ndarray]] = {digit: [] for digit in range(10)}
    for index, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        if owner.get(index % 10, "train") == split:
            samples[int(digit)].append(np.clip(image / 16 * 255, 0, 255).astype(np.uint8))
    return {digit: tuple(images) for digit, images in samples.items()}


def photograph_paths(split: str) -> list[Path]:
    """The photographs under the scenes of a split, inside the installed packages."""
    import skimage
    import sklearn

    roots = {
        "skimage": Path(skimage.__file__).parent / "data",
        "sklearn": Path(sklearn.__file__).parent / "datasets" / "images",
    }
    return [roots[package] / file for package, file in (name.split("/") for name in _PHOTOGRAPHS[split])]


@functools.cache
def _backgrounds(split: str) -> tuple[np.ndarray, ...]:
    """Crops of the photographs, softened so that objects stand out: `[336, 336, 3]` uint8 each."""
    rng = random.Random(f"backgrounds {split}")
    photographs = [Image.open(path).convert("RGB") for path in photograph_paths(split)]
    crops = []
    for number in range(_CROPS):
        photograph = photographs[number % len(photographs)]
        width, height = photograph.size
        side = rng.randint(120, min(330, width, height))
        x, y = rng.randint(0, width - side), rng.randint(0, height - side)
        crop = photograph.crop((x, y, x + side, y + side)).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
        pixels = np.asarray(crop.filter(ImageFilter.GaussianBlur(rng.uniform(1, 3))), dtype=np.float32)
        pixels = 0.55 * pixels + 0.45 * pixels.mean(-1, keepdims=True)
        veil = rng.uniform(0.35, 0.6)
        crops.append((pixels * (1 - veil) + rng.uniform(50, 150) * veil).astype(np.uint8))
    return tuple(crops)


@functools.cache
def _shape_masks() -> dict[str, tuple[np.ndarray, ...]]:
    """Alpha masks `[28, 28, 1]` of each shape, jittered in size, place and angle."""
    rng = random.Random("shape masks")
    masks: dict[str, tuple[np.ndarray, ...]] = {}
    for shape in SHAPES:
        drawn = []
        for _ in range(_MASKS):
            radius = rng.uniform(11.3, 13.4)
            middle = CELL / 2 + rng.uniform(-0.7, 0.7), CELL / 2 + rng.uniform(-0.7, 0.7)
            angle = 0.0 if shape in ("circle", "ring") else rng.uniform(-8, 8)
            drawn.append(shape_mask(shape, CELL, radius, middle, angle))
        masks[shape] = tuple(drawn)
    return masks
