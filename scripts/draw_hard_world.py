"""The picture of docs/hard_world.md: `python scripts/draw_hard_world.py docs/hard_world.webp`.

Scenes of the tuning split; below each, one question with what its answer hangs on, framed in the picture.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finepruner_lmms.demo.hard.choices import ask
from finepruner_lmms.demo.hard.scenes import make_scene

_SHOWN = ((3, "read"), (7, "rank"), (12, "side"))
_SIDE, _GAP, _LINE = 504, 16, 26


def main(target: Path) -> None:
    """Draw and save."""
    width = len(_SHOWN) * (_SIDE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _SIDE + 2 * _LINE + 8), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for place, (index, kind) in enumerate(_SHOWN):
        scene, left = make_scene("tuning", index), place * (_SIDE + _GAP)
        question = ask(scene, kind, random.Random(0))
        if question is None:
            raise ValueError(f"scene {index} allows no question {kind!r}")
        picture = scene.image().resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        frame, scale = ImageDraw.Draw(picture), _SIDE / 336
        for x, y, right, bottom in question.evidence:
            box = [x * scale - 3, y * scale - 3, right * scale + 3, bottom * scale + 3]
            frame.rectangle([box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2], outline="black", width=6)
            frame.rectangle(box, outline="white", width=2)
        sheet.paste(picture, (left, 0))
        pen.text((left, _SIDE + 6), question.text, "black", font)
        pen.text((left, _SIDE + 6 + _LINE), question.answer, "black", font)
    sheet.save(target, "WEBP", quality=72)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
