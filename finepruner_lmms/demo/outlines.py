"""Outlines of the shapes, and noise as a sensor has it: what the pictures of both worlds are drawn with."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
_ZOOM = 4


def shape_mask(shape: str, side: int, radius: float, middle: tuple[float, float], angle: float) -> np.ndarray:
    """Alpha `[side, side, 1]` in 0..1 of a shape of that `radius` (pixels) around `middle`, turned by `angle`°."""
    canvas = Image.new("L", (side * _ZOOM, side * _ZOOM))
    x, y, reach = middle[0] * _ZOOM, middle[1] * _ZOOM, radius * _ZOOM
    pen, box = ImageDraw.Draw(canvas), (x - reach, y - reach, x + reach, y + reach)
    if shape == "circle":
        pen.ellipse(box, fill=255)
    elif shape == "ring":
        pen.ellipse(box, outline=255, width=int(reach * 0.36))
    else:
        pen.polygon(_corners(shape, x, y, reach, math.radians(angle)), fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255


def _corners(shape: str, x: float, y: float, radius: float, angle: float) -> list[tuple[float, float]]:
    if shape == "triangle":
        points = [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    elif shape == "square":
        points = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    elif shape == "star":
        spokes = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5) for i in range(10)]
        points = [(length * math.sin(turn), -length * math.cos(turn)) for length, turn in spokes]
    else:
        arm = 0.36
        quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm)]
        points = quarter + [(-px, -py) for px, py in quarter]
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + radius * (px * cos - py * sin), y + radius * (px * sin + py * cos)) for px, py in points]


@functools.cache
def noise(size: int) -> np.ndarray:
    """Sensor noise `[2 size, 2 size, 3]`, of which each picture takes a window."""
    return np.random.default_rng(0).normal(0, 5, (2 * size, 2 * size, 3)).astype(np.int16)
