"""Every method's choice in plain Python and NumPy, for one image: what the shared checks compare with.

Written from the papers and the released code's behaviour, without any of the package's functions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray


def best(scores, count: int) -> list[int]:
    """The `count` largest, the lower index on a tie, ascending."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def array(tensor) -> ndarray:
    return tensor[0].double().numpy()


def cosine(a: ndarray, b: ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# -- vision side ------------------------------------------------------------------------------------------------------


def vanilla(_pruner, _vision, _count):
    raise AssertionError("vanilla chooses nothing")


def random(pruner, vision, count):
    # which tokens is up to the generator; what can be asked is that they are as many, and the same every time
    again = pruner.select_visual(vision)[0]
    assert int(again.sum()) == count
    return again.nonzero().squeeze(1).tolist()


def uniform(_pruner, vision, count):
    side = math.isqrt(vision.features.shape[1])
    rows = max((r for r in range(1, count + 1) if count % r == 0 and r <= count // r <= min(side, 2 * r)), default=None)
    assert rows is not None, "the reference knows grids only"
    columns = count // rows
    middle = lambda i, n: (2 * i + 1) * side // (2 * n)  # noqa: E731
    return [middle(y, rows) * side + middle(x, columns) for y in range(rows) for x in range(columns)]


def pool(_pruner, _vision, _count):
    return []


def fastervlm(_pruner, vision, count):
    return best(array(vision.cls_attention).mean(0), count)


def visionzip(_pruner, vision, count):
    contextual = math.floor(count * 10 / 64 + 0.5)
    return best(array(vision.cls_attention).sum(0), count - contextual - 1)


def vispruner(pruner, vision, count):
    scores, features = array(vision.cls_attention).mean(0), array(vision.features)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    important = int(count * pruner.important_ratio)
    kept, rest = order[:important], order[important:]
    while len(rest) > count - important and count > important:
        even, odd = rest[::2], rest[1::2]
        removed = min(8, len(rest) - (count - important), len(even))
        nearest = [max(cosine(features[a], features[b]) for b in odd) for a in even]
        by_similarity = sorted(range(len(even)), key=lambda i: (-nearest[i], i))
        rest = [even[i] for i in by_similarity[removed:]] + odd
    return sorted(kept + (rest if count > important else []))


def divprune(_pruner, vision, count):
    tokens = array(vision.projected)
    size = len(tokens)
    distance = [[1 - cosine(tokens[i], tokens[j]) for j in range(size)] for i in range(size)]
    lonely = [min(distance[i][j] for j in range(size) if j != i) for i in range(size)]
    picked = [max(range(size), key=lambda i: (lonely[i], -i))]
    while len(picked) < count:
        left = [i for i in range(size) if i not in picked]
        picked.append(max(left, key=lambda i: (min(distance[i][j] for j in picked), -i)))
    return sorted(picked)


def cdpruner(pruner, vision, count):
    tokens, words = array(vision.projected), vision.text_embeds[0].double().numpy()
    if pruner.relevance == "clip":
        tokens_seen, sign = array(vision.image_embeds), -1
    else:
        tokens_seen, sign = tokens, 1
    relevance = np.array([sign * np.mean([cosine(token, word) for word in words]) for token in tokens_seen])
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance[None]
    picked: list[int] = []
    rank = np.linalg.matrix_rank(unit)
    while len(picked) < min(count, rank):
        left = [i for i in range(len(tokens)) if i not in picked]
        gains = [np.linalg.slogdet(kernel[np.ix_([*picked, i], [*picked, i])])[1] for i in left]
        picked.append(left[int(np.argmax(gains))])
    rest = sorted((i for i in range(len(tokens)) if i not in picked), key=lambda i: (-kernel[i, i], i))
    return sorted(picked + rest[: count - len(picked)])


# -- decoder side -----------------------------------------------------------------------------------------------------


def fastv(_pruner, context, count):
    return best(array(context.attention).mean(0), count)


def pdrop(_pruner, context, count):
    return best(array(context.attention).mean(0), count)


def finepruner(_pruner, context, count):
    attention = array(context.attention)
    heads = best(attention.sum(1), 4)
    return best(attention[heads].mean(0), count)


def sparsevlm(_pruner, context, count):
    visual, words = array(context.visual_embeds), array(context.text_embeds)
    there = context.text_present[0].numpy()
    logits = visual @ words[there].T
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares = (shares / shares.sum(1, keepdims=True)).mean(0)
    raters = np.flatnonzero(there)[shares > shares.mean()]
    return best(array(context.text_attention)[:, raters].mean((0, 1)), count)
