"""What methods kept of a picture as a page: one HTML file, nothing to load from elsewhere, and no script in it."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from finepruner_lmms.asking.compared import Comparison, Seen, Share, Stage
from finepruner_lmms.asking.show import check_places
from finepruner_lmms.asking.views import Mask, Picture
from finepruner_lmms.output import html

_LARGEST = 672
"""Pixels of a picture's longer side in a page."""
_VEIL = 200
"""Of 255: how much of black covers a dropped token."""
_PAPER = """
:root{color-scheme:light dark;--ink:#1d1d1f;--soft:#5c5c61;--paper:#fff;--line:#d4d4d8;--right:#176f34;--wrong:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#ececf0;--soft:#a5a5ad;--paper:#17171a;--line:#3d3d44;--right:#5fce84;
--wrong:#ff8a80}}
body{box-sizing:border-box;font:15px/1.5 system-ui,sans-serif;margin:0 auto;padding:1.5rem 1rem;max-width:84rem;
color:var(--ink);background:var(--paper)}
@media print{body{max-width:none}}
"""
STYLE = """
.kept,.kept *{box-sizing:border-box}
.kept .asked{font-size:1.3rem;margin:0 0 .2rem;overflow-wrap:anywhere;white-space:pre-line}
.kept .method{font-size:1.05rem;margin:0}
.kept p{margin:.2rem 0}.kept .soft{color:var(--soft);font-size:.88rem;overflow-wrap:anywhere}
.kept .scroll{overflow-x:auto;margin:1rem 0}.kept table{border-collapse:collapse;min-width:100%}
.kept th,.kept td{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
.kept td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.kept th.number{text-align:right}
.kept .methods{display:flex;flex-wrap:wrap;gap:1.2rem}
.kept section{border-top:1px solid var(--line);padding-top:.7rem;max-width:100%}
.kept .stages{display:flex;flex-wrap:wrap;gap:.8rem;margin-top:.5rem}
.kept figure{margin:0;width:15rem;max-width:100%}
.kept .method,.kept .answer{max-width:15rem;overflow-wrap:anywhere}
.kept th[scope=row]{min-width:7rem;overflow-wrap:anywhere}
.kept .shown{position:relative;display:block;line-height:0}.kept .shown img{width:100%;margin:0}
.kept .shown img+img{position:absolute;inset:0;height:100%;image-rendering:pixelated;transition:opacity .15s}
.kept .evidence{position:absolute;border:2px solid #fff;outline:1.5px solid #000}
.kept .shown:hover img+img,.kept .shown:focus img+img{opacity:0}
.kept .shown:focus{outline:2px solid var(--ink);outline-offset:2px}
@media(max-width:36rem){.kept figure,.kept .method,.kept .answer{width:100%;max-width:none}.kept section{width:100%}}
.kept figcaption{font-size:.85rem;color:var(--soft);margin-top:.2rem}
.kept .answer{font-size:1.05rem;overflow-wrap:anywhere}
.kept .right{color:var(--right)}.kept .wrong{color:var(--wrong)}
@media print{.kept .shown{break-inside:avoid}}
"""
"""Of a `body` inside an element of the class `kept`; the colours `--ink`, `--soft`, `--line`, `--right` and `--wrong`
are the page's around it."""


def page(found: Comparison) -> str:
    """The page: the question, a table of answers and times, and each method's picture at each stage."""
    title = html(" ".join(found.question.split()))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_PAPER}{STYLE}</style>"
    )
    main = f'<main class="kept">{body(found)}</main>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{main}</body></html>\n'


def body(found: Comparison, level: int = 1) -> str:
    """What the page shows, for another page that has `STYLE`; its headings begin at `level`."""
    for picture in found.pictures:
        check_places(picture)
    pictures = [_picture(picture) for picture in found.pictures]
    expected = "" if found.expected is None else f"<p>Right answer: {html(found.expected)}</p>"
    about = f'<p class="soft">{html(found.about)}</p>' if found.about else ""
    sections = "".join(_section(found, row, pictures, level + 1) for row in found.rows if not row.problem)
    framed = " Framed: the evidence, what an answer needs." if found.evidence else ""
    question = "\n".join(html(line) for line in found.question.split("\n"))
    parts = [
        f'<h{level} class="asked">{question}</h{level}>{expected}{about}',
        '<p class="soft">Dark: the visual tokens that are no longer there as they were. Point at a picture, or reach '
        f"it with the Tab key, to see all of it.{framed}</p>",
        _table(found),
        f'<div class="methods">{sections}</div>',
    ]
    return "".join(parts)


def _table(found: Comparison) -> str:
    head = (
        '<th scope="col">method</th><th scope="col">visual tokens</th><th scope="col">answer</th>'
        '<th scope="col" class="number">first token</th><th scope="col" class="number">whole answer</th>'
    )
    lines = []
    for row in found.rows:
        tokens = "; ".join(stage.title for stage in row.stages) or found.whole(row)
        times = "".join(f'<td class="number">{seconds(one)}</td>' for one in (row.first_token, row.seconds))
        if row.problem:
            lines.append(f'<tr><th scope="row">{html(row.label)}</th><td colspan="4">{html(row.problem)}</td></tr>')
        else:
            name = f'<th scope="row">{html(row.label)}</th>'
            lines.append(f"<tr>{name}<td>{html(tokens)}</td><td>{_answer(row)}</td>{times}</tr>")
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Answers and times">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _section(found: Comparison, row: Seen, pictures: list[str], level: int) -> str:
    stages = row.stages or (found.everything(),)
    figures = [
        _figure(found, row, stage, number, sheet, pictures[number])
        for stage in stages
        for number, picture in enumerate(found.pictures)
        for sheet in picture.sheets
    ]
    return (
        f'<section><h{level} class="method">{html(row.label)}</h{level}><p class="answer">{_answer(row)}</p>'
        f'<div class="stages">{"".join(figures)}</div></section>'
    )


def _figure(found: Comparison, row: Seen, stage: Stage, number: int, sheet: int, uri: str) -> str:
    picture, kept = found.pictures[number], stage.kept[number]
    title = stage.title if row.stages else found.whole(row)
    parts = [title]
    if len(found.pictures) > 1:
        parts.append(f"picture {number + 1}: {int(kept.sum())} of {len(kept)}")
    if len(picture.sheets) > 1:
        parts.append("in tiles" if sheet else "as a whole")
    if not number and row.stages and (part := found.evidence_kept(stage)) is not None:
        parts.append(f"{part:.0%} of the evidence")
    if stage.heads is not None:
        parts.append(f"heads {', '.join(map(str, stage.heads))}")
    frames = "" if number else "".join(map(_frame, found.evidence))
    said = html(f"{row.label}: {'; '.join(parts)}")
    return (
        f'<figure><span class="shown" tabindex="0" role="img" aria-label="{said}">'
        f'<img alt="" src="{uri}"><img alt="" src="{_mask(picture, stage.shown(number), sheet)}">{frames}</span>'
        f"<figcaption>{html('; '.join(parts))}</figcaption></figure>"
    )


def _frame(part: Share) -> str:
    left, top, right, bottom = (100 * side for side in part)
    place = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
    return f'<span class="evidence" style="{place}"></span>'


def _answer(row: Seen) -> str:
    kind, mark = ("", "") if row.right is None else ("right", "✓ ") if row.right else ("wrong", "✗ ")
    return f'<span class="{kind}">{mark}“{html(row.text)}”</span>'


def seconds(value: float | None) -> str:
    """A time with three digits, or a dash."""
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _size(picture: Picture) -> tuple[int, int]:
    scale = min(1.0, _LARGEST / max(picture.image.size))
    width, height = picture.image.size
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _picture(picture: Picture) -> str:
    """As a data URI. JPEG, which every browser shows."""
    file = io.BytesIO()
    picture.image.resize(_size(picture), Image.Resampling.LANCZOS).save(file, "JPEG", quality=88)
    return _uri("jpeg", file)


def _mask(picture: Picture, kept: Mask, sheet: int) -> str:
    """What is dropped, as a dark veil of the size of the picture in the page."""
    shown = Picture(Image.new("L", _size(picture)), picture.views, picture.length, picture.separators)
    image = Image.fromarray(shown.light(kept, sheet).astype(np.uint8))
    image.putpalette([0, 0, 0, 0, 0, 0])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes([_VEIL, 0]), optimize=True)
    return _uri("png", file)


def _uri(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
