"""Ranking HITSZ-VCM's test set in both directions against loops over the queries."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fastreid.evaluation.rank import evaluate_rank
from tqdm import tqdm

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.process import MB, in_own_process
from fastreid_star.benchmark.timing import Timing
from fastreid_star.evaluation.cross_modal import CrossModalResults, cross_modal_results
from fastreid_star.structures import Modality, Tracklet

CAMERAS, IDENTITIES = 12, 427


@dataclass(frozen=True)
class Size:
    """How much is ranked.

    Args:
        infrared, visible: tracklets.
        width: D.
    """

    infrared: int = 5159
    visible: int = 5643
    width: int = 2048


def figures(options: Options) -> Iterator[Figure]:
    """Ranking HITSZ-VCM's whole test set in both directions, against loops over the queries."""
    yield from compare(Size(), options, queries=100 if options.quick else None)


def compare(size: Size, options: Options, *, queries: int | None) -> Iterator[Figure]:
    """Time and memory of both directions, in turns with a short loop, whose ranks must be the same, and fast-reid's.

    Args:
        queries: how many of a direction the loops go through, evenly spread; their time is scaled up to all. None: all.

    Raises:
        RuntimeError: the two rank differently.
    """
    features, tracklets = make(size)
    loop = Loops(features, tracklets, size.infrared)
    todo = [
        query
        for first, count in ((0, size.infrared), (size.infrared, size.visible))
        for query in first + np.linspace(0, count - 1, min(queries or count, count), dtype=int)
    ]
    rounds = options.rounds
    ours, ranked, short, plain = [], [], 0.0, 0.0
    with tqdm(
        total=rounds + len(todo), desc="evaluation", disable=not options.progress, leave=False
    ) as bar:
        for chunk in (todo[start::rounds] for start in range(rounds)):
            start = time.perf_counter()
            results = rank(features, tracklets)
            ours.append(time.perf_counter() - start)
            bar.update()
            start = time.perf_counter()
            for query in chunk:
                ranked.append((query, loop.rank(query)))
                bar.update()
            short += time.perf_counter() - start
            start = time.perf_counter()
            loop.rank_by_fastreid(np.array(chunk))
            plain += time.perf_counter() - start
    check_equal(ranked, results, size)
    timing, scale = Timing(tuple(ours)), len(tracklets) / len(todo)
    how = (
        "all its queries" if len(todo) == len(tracklets) else f"scaled up from {len(todo)} queries"
    )
    how = f"{how}, in turns with {rounds} times ours, the median; {size.infrared:,} x {size.visible:,} x {size.width}"
    yield Figure.against(
        "ranking_seconds",
        timing.median,
        "s",
        plain * scale,
        f"the plain loop over the queries in numpy, fast-reid's without its Cython module, {how}",
    )
    yield Figure.against(
        "ranking_seconds_over_short_loop",
        timing.median,
        "s",
        short * scale,
        f"the shortest such loop, a product and a sort a query, which gives the very ranks, {how}",
    )
    growth = in_own_process(make_and_rank, size).growth
    yield Figure(
        "ranking_memory_mb",
        growth / MB,
        "MB",
        note="growth of a process of its own, its features included",
    )


def make(size: Size) -> tuple[torch.Tensor, list[Tracklet]]:
    """Features ``[N, D]``, infrared first, and their tracklets; those of an identity are alike.

    A feature is 0, 1 or -1 in each place, as many of them not 0 as a power of 4: its length is a power of 2, so what is
    normalized and multiplied has no rounding in it. Two programs that rank by it must agree in every rank, however they
    add, and with its many ties they must break ties alike.
    """
    rng = np.random.default_rng(0)
    total = size.infrared + size.visible
    places = 4 ** int(math.log(size.width, 4))
    pids = rng.integers(IDENTITIES, size=total)
    support = np.stack([rng.permutation(size.width)[:places] for _ in range(IDENTITIES)])
    signs = rng.choice(np.array([-1, 1], np.float32), (IDENTITIES, places))
    features = np.zeros((total, size.width), np.float32)
    for row, pid in enumerate(pids):
        features[row, support[pid]] = np.where(rng.random(places) < 0.45, -signs[pid], signs[pid])
    cameras = rng.integers(1, CAMERAS + 1, size=total)
    tracklets = [
        Tracklet(
            int(pid),
            int(camera),
            Modality.INFRARED if row < size.infrared else Modality.VISIBLE,
            "",
            (f"{pid}/{row}.jpg",),
        )
        for row, (pid, camera) in enumerate(zip(pids, cameras, strict=True))
    ]
    return torch.from_numpy(features), tracklets


def rank(features: torch.Tensor, tracklets: Sequence[Tracklet]) -> CrossModalResults:
    """Both directions, as an evaluation does it."""
    return cross_modal_results(features, tracklets, min_frames=1, dataset_name="benchmark")


def make_and_rank(size: Size) -> None:
    """What a process of its own does: features come to be, and are ranked."""
    rank(*make(size))


class Loops:
    """Query by query, in two ways: in as few calls of numpy as it takes, and as the field does it.

    Features are normalized once, untimed.

    Args:
        features: ``[N, D]``, infrared first.
        tracklets: N.
        infrared: how many are.
    """

    def __init__(self, features: torch.Tensor, tracklets: Sequence[Tracklet], infrared: int):
        array = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
        pids = np.array([tracklet.pid for tracklet in tracklets])
        cameras = np.array([tracklet.camid for tracklet in tracklets])
        self.infrared = infrared
        self.queries = (array, pids, cameras)
        # the gallery of an infrared query, and that of a visible one
        self.galleries = tuple(
            tuple(part[rows] for part in self.queries)
            for rows in (slice(infrared, None), slice(infrared))
        )

    def rank(self, query: int) -> tuple[int, float, float]:
        """Rank of the first match, average precision and inverse negative penalty; 0, NaN, NaN without a match."""
        feature, pid, camera = (part[query] for part in self.queries)
        features, pids, cameras = self.galleries[int(query >= self.infrared)]
        order = np.argsort(-(features @ feature), kind="stable")
        match = pids[order] == pid
        match = match[~(match & (cameras[order] == camera))]
        ranks = np.flatnonzero(match) + 1
        if not len(ranks):
            return 0, math.nan, math.nan
        return (
            int(ranks[0]),
            float(np.mean(np.arange(1, len(ranks) + 1) / ranks)),
            len(ranks) / int(ranks[-1]),
        )

    def rank_by_fastreid(self, queries: np.ndarray) -> None:
        """What fast-reid does with these queries: the distances of all at once, and then its loop in Python."""
        for gallery, rows in zip(
            self.galleries, (queries < self.infrared, queries >= self.infrared), strict=True
        ):
            features, pids, cameras = (part[queries[rows]] for part in self.queries)
            if len(features):
                distances = 1 - features @ gallery[0].T
                evaluate_rank(distances, pids, gallery[1], cameras, gallery[2], use_cython=False)


def check_equal(
    ranked: Sequence[tuple[int, tuple[int, float, float]]], results: CrossModalResults, size: Size
) -> None:
    """Hold the loop's results against ours, query by query.

    Raises:
        RuntimeError: they differ.
    """
    for query, (first, precision, penalty) in ranked:
        direction, row = (
            (results.i2v, query) if query < size.infrared else (results.v2i, query - size.infrared)
        )
        ours = direction.per_query
        same = ours.first_match[row] == first
        same &= np.allclose(
            [ours.ap[row], ours.inp[row]], [precision, penalty], rtol=1e-12, atol=0, equal_nan=True
        )
        if not same:
            raise RuntimeError(
                f"query {query}: first match {ours.first_match[row]}, AP {ours.ap[row]}, INP {ours.inp[row]}, but the "
                f"short loop has {first}, {precision}, {penalty}"
            )
