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
    raise AssertionError("asked although nothing is dropped")


_WORD = (1 << 64) - 1


def scrambled(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), on unsigned 64-bit numbers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def random(pruner, vision, count):
    """The best of numbers that follow from the seed, the place and the bits of the features."""
    size = vision.features.shape[1]
    bits = np.frombuffer(vision.features[0].float().numpy().tobytes(), dtype=np.int32).tolist()
    key = 0
    for place, value in zip(range(len(bits), 0, -1), bits, strict=True):
        key += scrambled((value * 0x9E3779B97F4A7C15 + scrambled(place)) & _WORD)
    key = scrambled(key & _WORD)
    own = scrambled((key + pruner.seed * 0x632BE59BD9B4E019 % 2**63) & _WORD)
    numbers = [scrambled((own + scrambled(place + 1)) & _WORD) for place in range(size)]
    signed = [number - (1 << 64) if number >> 63 else number for number in numbers]
    return best([number >> 11 for number in signed], count)


def uniform(_pruner, vision, count):
    side = math.isqrt(vision.features.shape[1])
    rows = max((r for r in range(1, count + 1) if count % r == 0 and r <= count // r <= min(side, 2 * r)), default=None)
    assert rows is not None, "the reference knows grids only"
    columns = count // rows
    middle = lambda i, n: (2 * i + 1) * side // (2 * n)  # noqa: E731
    return [middle(y, rows) * side + middle(x, columns) for y in range(rows) for x in range(columns)]


def pool(_pruner, _vision, _count):
    return []  # no token stays as it is; what it makes is compared in test_methods_vision


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


def hawk(_pruner, vision, count):
    layer = vision.first_layer
    words, keys = array(layer.queries(vision.text_embeds[0])[None]), array(layer.keys(vision.projected))
    scores = np.zeros(len(keys))
    for head in range(keys.shape[1]):
        asked = np.array([np.mean([key @ word for word in words[:, head]]) for key in keys[:, head]])
        scores += asked / np.linalg.norm(asked) / keys.shape[1]
    return best(scores, count)


def covering(worth, count):
    """Picks, each of the largest worth given those before it, the lower index on a tie."""
    size = len(worth([]))
    picked: list[int] = []
    while len(picked) < count:
        found = worth(picked)
        picked.append(max((i for i in range(size) if i not in picked), key=lambda i: (found[i], -i)))
    return sorted(picked)


def gains(similarity: ndarray, picked: list[int]) -> list[float]:
    """What each candidate, a row, adds to the best similarity of each target."""
    covered = [max([0.0, *(similarity[i][t] for i in picked)]) for t in range(len(similarity[0]))]
    return [sum(max(0.0, s - u) for s, u in zip(row, covered, strict=True)) for row in similarity]


def softmax(values) -> ndarray:
    shifted = np.exp(np.array(values) - max(values))
    return shifted / shifted.sum()


def eadp(pruner, vision, count):
    """By the words after the image, each token's meaning for the question smoothed over the grid in two loops."""
    tokens, words = array(vision.projected), vision.text_embeds[0].double().numpy()
    close = np.array([[cosine(token, word) for token in tokens] for word in words])
    shares = [softmax(100 * row) for row in close]
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in shares]
    sharpest = sorted(range(len(words)), key=lambda w: (entropy[w], w))[: max(1, len(words) // 5)]
    weights = softmax([-entropy[w] / 0.01 for w in sharpest])
    raw = 0.5 * close.mean(0) + 0.5 * sum(w * close[at] for w, at in zip(weights, sharpest, strict=True))
    scaled = (raw - raw.min() + 1e-6) / (raw.max() - raw.min() + 1e-6)
    side = math.isqrt(len(tokens))
    mirrored = lambda i: 1 if i < 0 else side - 2 if i >= side else i  # noqa: E731
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    bell = {place: math.exp(-(place[0] ** 2 + place[1] ** 2) / 2) for place in around}
    smooth = [
        sum(bell[dy, dx] * scaled[mirrored(y + dy) * side + mirrored(x + dx)] for dy, dx in around) / sum(bell.values())
        for y in range(side)
        for x in range(side)
    ]
    similarity = np.array([[smooth[j] * (1 + cosine(a, tokens[j])) / 2 for j in range(len(tokens))] for a in tokens])
    return covering(lambda picked: gains(similarity, picked), count)


def mmtok(pruner, vision, count):
    projected, features = array(vision.projected), array(vision.features)
    words = vision.text_embeds[0].double().numpy()
    text = [softmax([cosine(word, token) / 0.02 for token in projected]) / len(words) for word in words]
    seen = [softmax([cosine(a, b) / 0.2 for b in features]) / len(features) for a in features]
    similarity = np.array([*text, *(0.5 * row for row in seen)]).T
    return covering(lambda picked: gains(similarity, picked), count)


def scope(pruner, vision, count):
    features, saliency = array(vision.features), array(vision.cls_attention).sum(0)
    similarity = np.array([[cosine(a, b) for b in features] for a in features])
    return covering(lambda picked: np.array(gains(similarity, picked)) * saliency, count)


def hiprune(pruner, vision, count):
    cls, patches = array(vision.cls_attention).mean(0), array(vision.received_attention).mean(0)
    early_cls, early = array(vision.early_cls_attention).mean(0), array(vision.early_received).mean(0)
    size = len(cls)
    side = math.isqrt(size)
    queries = lambda own, others: (size * others + own) / (size + 1)  # noqa: E731
    anchors = best(queries(early_cls, early), round(count * pruner.alpha / 5))
    cross = set(anchors)
    for y, x in (divmod(anchor, side) for anchor in anchors):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        cross |= {v * side + u for v, u in around if 0 <= v < side and 0 <= u < side}
    late = queries(cls, patches)
    rest = sorted((i for i in range(size) if i not in cross), key=lambda i: (-late[i], i))
    first = [*anchors, *sorted(cross - set(anchors))]
    return sorted([*first, *rest][:count])


def holov(_pruner, vision, count):
    attention, features = array(vision.cls_attention).mean(0), array(vision.features)
    size = len(attention)
    parts = [part.tolist() for part in np.array_split(np.arange(size), min(16, size))]
    scores = []
    for part in parts:
        unit = [features[i] / (np.linalg.norm(features[i]) + 1e-6) for i in part]
        others = [[unit[i] @ unit[j] if i != j else 0.0 for j in range(len(part))] for i in range(len(part))]
        less = max(len(part) - 1, 1)
        variances = [sum((value - sum(row) / less) ** 2 for value in row) / less for row in others]
        weights = [1000 * attention[i] for i in part]
        scale = np.mean(weights) / (np.mean(variances) + 1e-6)
        scores.append(np.mean([w + 0.09 * scale * v for w, v in zip(weights, variances, strict=True)]))
    shares = np.array(scores) / (sum(scores) + 1e-6)
    quota = np.floor(shares * count).astype(int)
    for part in sorted(range(len(parts)), key=lambda p: (-shares[p], p))[: count - quota.sum()]:
        quota[part] += 1
    kept: list[int] = []
    for part, some in zip(parts, quota, strict=True):
        kept += sorted(part, key=lambda i: (-attention[i], i))[:some]
    rest = sorted((i for i in range(size) if i not in kept), key=lambda i: (-attention[i], i))
    return sorted(kept + rest[: count - len(kept)])


def blind(_pruner, _vision, _count):
    return []


def downsample(_pruner, _vision, _count):
    return []  # no token stays as it is; what it makes is compared in test_methods_2026


def vscan(_pruner, seen, count):
    """Both halves, told apart by what they see."""
    if not hasattr(seen, "features"):
        return best(array(seen.next_attention).mean(0), count)
    deep, shallow = array(seen.cls_attention).mean(0), array(seen.early_cls_attention).mean(0)
    size = len(deep)
    side = math.isqrt(size)
    window = [(i // side // 6, i % side // 6) for i in range(size)]
    each = count // 2 // len(set(window))
    local: list[int] = []
    for one in sorted(set(window)):
        inside = [i for i in range(size) if window[i] == one]
        local += sorted(inside, key=lambda i: (-shallow[i], i))[:each]
    rest = sorted((i for i in range(size) if i not in local), key=lambda i: (-deep[i], i))
    return sorted(local + rest[: count - len(local)])


def prunesid(pruner, vision, count):
    scores, features = array(vision.cls_attention).sum(0), array(vision.features)
    size, groups = len(scores), max(count // 4, 1)
    # a randomised SVD of the centred sigmoids, channels × tokens
    matrix = (1 / (1 + np.exp(-features))).T
    matrix = matrix - matrix.mean(0)
    words = (
        scrambled((scrambled(i + 1) + pruner.seed * 0x632BE59BD9B4E019 % 2**63) & _WORD) for i in range(size * groups)
    )
    signs = np.array([-1.0 if word >> 63 else 1.0 for word in words]).reshape(size, groups)
    basis = np.linalg.qr(matrix @ signs)[0]
    for _ in range(2):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    loadings = np.abs(np.linalg.svd(basis.T @ matrix, full_matrices=False)[2].T)
    group = loadings.argmax(1)
    alike = [[cosine(features[i], features[j]) for j in range(size)] for i in range(size)]
    limit = count / 32 * np.mean([alike[i][j] for i in range(size) for j in range(i + 1, size)])
    visited = sorted(range(size), key=lambda i: (-scores[i], i))
    alone: list[list[int]] = [[] for _ in range(groups)]
    for i in visited:
        if not any(alike[i][j] > limit for j in alone[group[i]]):
            alone[group[i]].append(i)
    sizes = [int((group == g).sum()) for g in range(groups)]
    least = [min(1, n) for n in sizes]
    most = [min(5 * math.ceil(count / 64), n, len(own)) for n, own in zip(sizes, alone, strict=True)]
    while sum(most) < count:
        most = [min(m + 1, n) for m, n in zip(most, sizes, strict=True)]
    rest, total = max(count - 1 - sum(least), 0), count - 1
    until = [round(rest * sum(map(len, alone[: g + 1])) / sum(map(len, alone))) for g in range(groups)]
    quota = [min(until[g] - (until[g - 1] if g else 0) + least[g], most[g], total) for g in range(groups)]
    for g in sorted(range(groups), key=lambda g: (-len(alone[g]), g)):
        quota[g] += max(min(most[g] - quota[g], total - sum(quota)), 0)
    kept: list[int] = []
    for g in range(groups):
        aside = [i for i in visited if group[i] == g and i not in alone[g]]
        kept += [*alone[g], *aside][: quota[g]]
    return sorted(kept)


def tops(pruner, seen, count):
    """Before: by CLS attention among projected tokens. Inside: by the words' attention among hidden states."""
    if hasattr(seen, "projected"):
        relevance, tokens, weight = array(seen.cls_attention).mean(0), array(seen.projected), 0.5
    else:
        there = seen.text_present[0].numpy()
        relevance = array(seen.text_attention)[:, there].mean((0, 1))
        tokens, weight = array(seen.hidden), pruner.coverage
    similarity = np.array([[cosine(a, b) for b in tokens] for a in tokens])
    picked = best(relevance, 1)
    while len(picked) < count:
        left = [i for i in range(len(tokens)) if i not in picked]
        covered = similarity[picked].max(0)
        added = {i: sum(max(0, similarity[i, j] - covered[j]) for j in left) for i in left}
        unlike = {i: 1 - covered[i] for i in left}
        worth = dict.fromkeys(left, 0.0)
        for factor, part in ((1, relevance), (0.5, unlike), (weight, added)):
            mean = np.mean([part[i] for i in left])
            worth = {i: worth[i] + factor * part[i] / mean for i in left}
        picked.append(max(worth, key=lambda i: (worth[i], -i)))
    return sorted(picked)


def visualheads(pruner, seen, count):
    """Before: as `mmtok`. Inside: cover of hidden states, weighted by the mean of the heads' shares."""
    if hasattr(seen, "projected"):
        return mmtok(pruner, seen, count)
    shares = array(seen.attention)
    matters = (shares / shares.sum(1, keepdims=True)).mean(0)
    matters = matters / matters.max()
    similarity = matters[:, None] * centred(array(seen.hidden)) * matters
    # where nothing is gained any more, the more relevant first
    return covering(lambda picked: np.array(gains(similarity, picked)) + 1e-6 * matters, count)


def centred(tokens: ndarray) -> ndarray:
    """Cosines of tokens less their mean, to six digits."""
    apart = tokens - tokens.mean(0)
    return np.array([[round(cosine(a, b) * 2**20) / 2**20 for b in apart] for a in apart])


# -- decoder side -----------------------------------------------------------------------------------------------------


def fastv(_pruner, context, count):
    return best(array(context.attention).mean(0), count)


def coreprune(pruner, context, count):
    attention, values, outputs = array(context.text_attention), array(context.values), array(context.text_output)
    words = np.flatnonzero(context.text_present[0].numpy())
    words = words if len(words) else [attention.shape[1] - 1]

    def damage(deleted):
        moved = []
        for head in range(len(attention)):
            for word in words:
                a = attention[head, word, deleted]
                away = (a[:, None] * (values[head, deleted] - outputs[head, word])).sum(0)
                moved.append(np.linalg.norm(away) / (1 - a.sum()))
        return np.mean(moved)

    deleted = list(range(attention.shape[2]))
    while (missing := count - attention.shape[2] + len(deleted)) > 0:
        left = {i: damage([j for j in deleted if j != i]) for i in deleted}
        back = sorted(deleted, key=lambda i: (left[i], i))[: min(pruner.rescued, missing)]
        deleted = [i for i in deleted if i not in back]
    return [i for i in range(attention.shape[2]) if i not in deleted]


def pdrop(_pruner, context, count):
    return best(array(context.attention).mean(0), count)


def finepruner(_pruner, context, count):
    attention = array(context.attention)
    heads = best(attention.sum(1), 4)
    return best(attention[heads].mean(0), count)


def priortr(_pruner, context, count):
    words = array(context.text_attention)[:, context.text_present[0].numpy()].mean(0)
    asked, prior = words.mean(0) / words.mean(0).sum(), words[0] / words[0].sum()
    return best([p * math.log((p + 1e-10) / (q + 1e-10)) for p, q in zip(asked, prior, strict=True)], count)


def sparsevlm(_pruner, context, count):
    visual, words = array(context.visual_embeds), array(context.text_embeds)
    there = context.text_present[0].numpy()
    logits = visual @ words[there].T
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares = (shares / shares.sum(1, keepdims=True)).mean(0)
    raters = np.flatnonzero(there)[shares > shares.mean()]
    return best(array(context.text_attention)[:, raters].mean((0, 1)), count)


# -- correctors: each is given the corrected method, whose own reference it asks ---------------------------------------


def share_of(share: float, count: int) -> int:
    return max(0, min(math.floor(share * count + 0.5), count - 1))


def own_choice(pruner, seen, count):
    return globals()[pruner.method.name.split("+")[-1]](pruner.method, seen, count)


def anchors(tokens: ndarray, candidates: list[int], count: int) -> list[int]:
    """The dense ones that are unlike every denser one."""
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    cosines = unit @ unit.T
    density = {i: sum(cosines[i, j] for j in candidates) for i in candidates}
    worth = {}
    for i in candidates:
        denser = [cosines[i, j] for j in candidates if density[j] > density[i]]
        worth[i] = density[i] * (1 - (max(denser) if denser else 0))
    return sorted(sorted(candidates, key=lambda i: (-worth[i], i))[:count])


def with_anchors(pruner, seen, count, share):
    added = share_of(share, count)
    own = own_choice(pruner, seen, count - added)
    tokens = array(seen.projected if hasattr(seen, "projected") else seen.hidden)
    dropped = [i for i in range(len(tokens)) if i not in own]
    return sorted(own + anchors(tokens, dropped, added))


def restore(pruner, seen, count):
    return with_anchors(pruner, seen, count, pruner.corrector.restored)


def merge(pruner, seen, count):
    if hasattr(seen, "projected") and pruner.corrector.merge_into == "few":
        return with_anchors(pruner, seen, count, pruner.corrector.merged)
    return own_choice(pruner, seen, count)  # inside the model, and into kept tokens, no other token stays


def coordinates(pruner, context, count):
    places = share_of(pruner.corrector.coordinates, count)
    cosines, sines = array(context.rotation)
    real = best(cosines, places - places // 2)
    sines[real] = -np.inf
    chosen = real + best(sines, places // 2)
    rest = [i for i in range(len(cosines)) if i not in chosen]
    seen = type(context)(
        context.layer,
        context.attention[:, :, rest],
        context.present[:, rest],
        next_attention=context.next_attention[:, :, rest],
    )
    return sorted(chosen + [rest[i] for i in own_choice(pruner, seen, count - places)])


def random_tail(pruner, seen, count):
    """Of a method before the model its own choice; inside it the best of numbers that follow from seed and question."""
    if hasattr(seen, "projected"):
        return globals()[pruner.name](pruner, seen, count)
    bits = np.frombuffer(seen.text_embeds[0].float().numpy().tobytes(), dtype=np.int32).tolist()
    words = np.repeat(seen.text_present[0].numpy(), seen.text_embeds.shape[2]).tolist()
    key = 0
    for place, value, word in zip(range(len(bits), 0, -1), bits, words, strict=True):
        key += word * scrambled((value * 0x9E3779B97F4A7C15 + scrambled(place)) & _WORD)
    key = scrambled(key & _WORD)
    own = scrambled((key + pruner.corrector.tail_seed * 0x632BE59BD9B4E019 % 2**63) & _WORD)
    numbers = [scrambled((own + scrambled(place + 1)) & _WORD) for place in range(seen.present.shape[1])]
    signed = [number - (1 << 64) if number >> 63 else number for number in numbers]
    return best([number >> 11 for number in signed], count)
