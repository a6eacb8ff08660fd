"""The losses of the catalog again, row by row, in float64.

f: features, list of D-vectors; y: identities; v: whether visible; all lists over the rows.
"""

import math

import torch
import torch.nn.functional as F


def d(a, b):
    return (a - b).norm()


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def center(f, y, identity, v=None, half=None):
    mine = [f[i] for i in range(len(f)) if y[i] == identity and (half is None or v[i] == half)]
    return sum(mine) / len(mine) if mine else None


def gap(f, y, a, published=False):
    """WRT's weighted positive less its weighted negative distance; None without a negative."""
    positive = [d(f[a], f[j]) for j in range(len(f)) if y[j] == y[a]]
    negative = [d(f[a], f[j]) for j in range(len(f)) if y[j] != y[a]]
    if not negative:
        return None
    if published:
        top = max(positive)  # the published program differentiates it, too
        up = [(x - top).exp() for x in positive]
        down = [(-x).exp() for x in negative]  # the maximum is that of zeros
        more = 1e-6
    else:
        top, low = max(positive).detach(), min(negative).detach()
        up, down, more = [(x - top).exp() for x in positive], [(low - x).exp() for x in negative], 0
    far = sum(w * x for w, x in zip(up, positive, strict=True)) / (sum(up) + more)
    near = sum(w * x for w, x in zip(down, negative, strict=True)) / (sum(down) + more)
    return far - near


def weighted_triplet(f, y, v, published=False):
    gaps = [gap(f, y, a, published) for a in range(len(f))]
    return mean(F.softplus(x) for x in gaps if x is not None)


def squared_difference(f, y, v, published=False):
    def loss(x):
        if published:
            square = min(x * x, torch.tensor(88.0, dtype=x.dtype), key=float)
        else:
            edge = math.sqrt(88)
            square = x * x if abs(x) <= edge else 88 + 2 * edge * (abs(x) - edge)
        return F.softplus(square if x > 0 else -square)

    gaps = [gap(f, y, a, published) for a in range(len(f))]
    return mean(loss(x) for x in gaps if x is not None)


def hetero_center(f, y, v):
    total = 0.0
    for identity in set(y):
        cv, ci = center(f, y, identity, v, True), center(f, y, identity, v, False)
        if cv is not None and ci is not None:
            total = total + F.relu(((cv - ci) ** 2).sum() - 0.1)
    return total


def hetero_center_triplet(f, y, v):
    found = [
        (identity, c)
        for identity in set(y)
        for half in (True, False)
        if (c := center(f, y, identity, v, half)) is not None
    ]
    losses = []
    for identity, c in found:
        others = [d(c, o) for label, o in found if label != identity]
        if others:
            own = max(d(c, o) for label, o in found if label == identity)
            losses.append(F.relu(0.3 + own - min(others)))
    return mean(losses)


def center_cluster(f, y, v):
    centers = {identity: center(f, y, identity) for identity in set(y)}
    pull = mean(d(f[i], centers[y[i]]) for i in range(len(f)))
    push = [
        mean(F.relu(0.7 - d(c, centers[other])) for other in y if other != identity)
        for identity, c in centers.items()
    ]
    return pull + mean(push)


def shared_enhancement(f, y, v):
    squares = []
    for i in range(len(f)):
        mine = [j for j in range(len(f)) if y[j] == y[i] and j != i]
        across, own = ([d(f[i], f[j]) for j in mine if (v[j] == v[i]) == s] for s in (False, True))
        if across and own:
            squares.append((mean(across) - mean(own)) ** 2)
    return mean(squares)


def discriminative_center(f, y, v):
    centers = {identity: center(f, y, identity) for identity in set(y)}
    near = []
    for identity, c in centers.items():
        others = [d(c, f[j]) for j in range(len(f)) if y[j] != identity]
        if others:
            limit = mean(others).detach() * (1 + 1e-6)
            near.append(mean(x for x in others if x <= limit))
    return (
        mean(d(f[i], centers[y[i]]) for i in range(len(f))) / max(mean(near), 1e-6) if near else 0
    )


def mean_discrepancy(f, y, v):
    losses = []
    for identity in sorted(set(y)):
        halves = [[f[i] for i in range(len(f)) if (y[i], v[i]) == (identity, h)] for h in (1, 0)]
        rows = halves[0] + halves[1]
        if not (halves[0] and halves[1]):
            continue
        n = len(rows)
        base = sum(((a - b) ** 2).sum() for a in rows for b in rows).detach() / (n * n - n)
        base = max(base, 1e-12)

        def kernel(a, b, base=base):
            square = ((a - b) ** 2).sum()
            return sum((-square / (base / 4 * 2**k)).exp() for k in range(5))

        vv, ii, vi = (
            mean(kernel(a, b) for a in halves[p] for b in halves[q])
            for p, q in ((0, 0), (1, 1), (0, 1))
        )
        losses.append(F.relu(vv + ii - 2 * vi))
    return mean(losses)


def alignment(f, y, v):
    def far(a, b):
        return (1 - F.cosine_similarity(a, b, dim=0)) / 2

    halves = []
    for half in (True, False):
        losses = []
        for i in (i for i in range(len(f)) if v[i] == half):
            own, others = (
                [far(f[i], f[j]) for j in range(len(f)) if v[j] != half and (y[j] == y[i]) == s]
                for s in (True, False)
            )
            if own and others:
                losses.append(F.softplus(mean(own) - mean(others)))
        if losses:
            halves.append(mean(losses))
    return mean(halves)


def contrastive(f, y, v):
    losses = []
    for i in range(len(f)):
        others = [j for j in range(len(f)) if v[j] != v[i]]
        scores = {j: (F.cosine_similarity(f[i], f[j], dim=0) / 0.07).exp() for j in others}
        own = [-(scores[j] / sum(scores.values())).log() for j in others if y[j] == y[i]]
        if own:
            losses.append(mean(own))
    return mean(losses)


def distillation(z, y, v):
    total = 0.0
    for half in (True, False):
        losses = []
        for i in (i for i in range(len(z)) if v[i] == half):
            teachers = [
                z[j].detach().softmax(0) for j in range(len(z)) if y[j] == y[i] and v[j] != half
            ]
            if teachers:
                losses.append(mean((t * (t.log() - z[i].log_softmax(0))).sum() for t in teachers))
        total = total + mean(losses)
    return total


def pair_mining(f, y, v, e):
    def one(near, far):  # i1 of `near`, v2 and v1 of `far`
        ids = sorted(set(y))
        i1, v1 = ({k: center(f, y, k, v, h) for k in ids} for h in (near, far))
        v2 = {k: center(e, y, k, v, far) for k in ids}
        both = [k for k in ids if i1[k] is not None and v2[k] is not None]
        total = mean(F.relu(0.2 + d(i1[k], v2[k]) - d(v1[k], v2[k]).detach()) for k in both)
        for among in (v2, v1):
            losses = []
            for k in both:
                others = [d(i1[k], c) for o, c in among.items() if o != k and c is not None]
                if others:
                    losses.append(F.relu(0.2 + d(i1[k], v2[k]) - min(others)))
            total = total + mean(losses) / 2
        return total

    return (one(False, True) + one(True, False)) / 2


def orthogonality(frames):
    return mean(
        F.cosine_similarity(a, b, dim=0) ** 2
        for clip in frames
        for s, a in enumerate(clip)
        for t, b in enumerate(clip)
        if s != t
    )
