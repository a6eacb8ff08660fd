"""Plain restatements of the published evaluations: one loop a query, distances from a function."""

import numpy as np


def stable_unique(values):
    return list(dict.fromkeys(values))


def by_loops(queries, gallery, distance, removed, *, by_identity, ranks=(1, 5, 10, 20)):
    """Rank-k, mAP and mINP of the queries with a match.

    Args:
        queries, gallery: lists of images.
        distance: of a query and a gallery image.
        removed: whether a query leaves a gallery image out.
        by_identity: only the first image of each identity counts in the CMC.
    """
    hits, precisions, penalties = [], [], []
    for query in queries:
        left = [image for image in gallery if not removed(query, image)]
        left.sort(key=lambda image: distance(query, image))
        pids = [image.pid for image in left]
        if query.pid not in pids:
            continue
        listed = stable_unique(pids) if by_identity else pids
        hits.append([query.pid in listed[:k] for k in ranks])
        places = [place for place, pid in enumerate(pids, start=1) if pid == query.pid]
        precisions.append(np.mean([n / place for n, place in enumerate(places, start=1)]))
        penalties.append(len(places) / places[-1])
    return [*np.mean(hits, axis=0), np.mean(precisions), np.mean(penalties)]


def measures(result):
    """The same measures of one of our results."""
    return [*result.cmc, result.mAP, result.mINP]
