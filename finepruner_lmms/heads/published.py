"""Heads of LLaVA's language model that others found to look at what a question is about: their lists, as published.

Layers and heads are counted from 0. A list tells which heads answered to one task on one model; that they guide pruning
on another is a hypothesis. Figures of others are facts about their models; nothing here was measured by us.
"""

from __future__ import annotations

from finepruner_lmms.heads.profile import HeadProfile

_VOTES = {
    (14, 24): 571, (14, 26): 406, (14, 29): 246, (10, 29): 217, (10, 23): 207,
    (10, 8): 154, (11, 14): 131, (15, 5): 122, (14, 18): 106, (14, 3): 102,
}  # fmt: skip
_OCR = (
    (14, 24), (15, 14), (15, 12), (21, 30), (16, 19), (12, 16), (14, 18), (11, 15), (11, 14), (13, 11),
    (24, 29), (24, 3), (8, 25), (16, 24), (18, 30), (13, 23), (11, 17), (14, 7), (9, 8), (13, 9),
)  # fmt: skip

LOCALISATION = HeadProfile(
    name="localisation",
    model="LLaVA-1.5-7B",
    task="in how many of 1,000 referring expressions the last token's attention was compact and on the image",
    source="https://arxiv.org/abs/2503.06287",
    layers=32,
    heads=32,
    weights=tuple((layer, head, float(votes)) for (layer, head), votes in _VOTES.items()),
)
OCR = HeadProfile(
    name="ocr",
    model="LLaVA-1.6-7B",
    task="the 20 heads that found most words while the model transcribed 1,000 pages; known by rank, so all alike",
    source="https://arxiv.org/abs/2506.05344",
    layers=32,
    heads=32,
    weights=tuple((layer, head, 1.0) for layer, head in _OCR),
)
SHARED = HeadProfile(
    name="localisation-ocr",
    model="LLaVA-1.5-7B",
    task="the heads that a list of localisation heads and one of reading heads have in common, all alike",
    source="https://arxiv.org/abs/2503.06287",
    layers=32,
    heads=32,
    weights=tuple((layer, head, 1.0) for layer, head in ((14, 24), (14, 18), (11, 14), (11, 17))),
)
PUBLISHED = {profile.name: profile for profile in (LOCALISATION, SHARED, OCR)}
