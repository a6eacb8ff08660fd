"""Both directions of visible-infrared retrieval from one extraction of every tracklet.

I2V: the infrared tracklets query the visible ones. V2I: the reverse. Each tracklet's feature is computed once; it is
a query in one direction and a gallery entry in the other, unless the dataset says which of both it is.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from fastreid.evaluation.evaluator import DatasetEvaluator
from fastreid.utils import comm
from tabulate import tabulate
from torch.nn import functional as F

from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import (
    DEFAULT_RANKS,
    RetrievalResult,
    check_features,
    check_ranks,
    evaluate_retrieval,
    evaluate_similarity,
    shorten,
)
from fastreid_star.files import write_whole
from fastreid_star.structures import Modality, Tracklet

logger = logging.getLogger(__name__)

MAX_SHARED = (
    2**28
)  # similarities, one GiB of them: more are not kept for the other direction, but computed twice
CSV_COLUMNS = (
    "direction",
    "tracklet",
    "pid",
    "camid",
    "modality",
    "first_frame",
    "n_matches",
    "first_match_rank",
    "AP",
    "INP",
    "top1_pid",
    "top1_tracklet",
    "top1_similarity",
)


class Sides(NamedTuple):
    """Who looks for whom: positions among all test tracklets, ascending.

    Usually each tracklet is a query of one direction and in the gallery of the other, and `i2v_query` equals
    `v2i_gallery`, `v2i_query` equals `i2v_gallery`. Where the dataset lists its queries, no position is in two of them.

    Args:
        i2v_query, v2i_gallery: infrared tracklets.
        i2v_gallery, v2i_query: visible ones.
    """

    i2v_query: np.ndarray
    i2v_gallery: np.ndarray
    v2i_query: np.ndarray
    v2i_gallery: np.ndarray

    def same_tracklets(self) -> bool:
        """Whether each tracklet is a query of one direction and in the gallery of the other."""
        return np.array_equal(self.i2v_query, self.v2i_gallery) and np.array_equal(
            self.v2i_query, self.i2v_gallery
        )


@dataclass(frozen=True, eq=False)
class CrossModalResults:
    """Both directions and the protocol they were measured under.

    Args:
        i2v: infrared queries, visible gallery.
        v2i: visible queries, infrared gallery.
        sides: which tracklets they are.
        dataset_name, min_frames, camera_filter: the protocol.

    Raises:
        ValueError: the directions are not those of `sides`, or not of the same ranks.
    """

    i2v: RetrievalResult
    v2i: RetrievalResult
    sides: Sides
    dataset_name: str
    min_frames: int
    camera_filter: bool

    def __post_init__(self) -> None:
        sizes = tuple(map(len, self.sides))
        if (self.i2v.queries, self.i2v.gallery, self.v2i.queries, self.v2i.gallery) != sizes:
            raise ValueError(
                "I2V must use all of {} queries and {} gallery entries, V2I of {} and {}".format(
                    *sizes
                )
            )
        if self.i2v.ranks != self.v2i.ranks:
            raise ValueError(f"I2V has ranks {self.i2v.ranks}, V2I {self.v2i.ranks}")

    def metrics(self) -> OrderedDict[str, float]:
        """Plain numbers in percent, ``I2V/Rank-1`` to ``mean/mINP``, and ``metric``, which selects the best model."""
        metrics = OrderedDict()
        for direction, result in (("I2V", self.i2v), ("V2I", self.v2i)):
            for rank, value in zip(result.ranks, result.cmc, strict=True):
                metrics[f"{direction}/Rank-{rank}"] = 100 * value
            metrics[f"{direction}/mAP"] = 100 * result.mAP
            metrics[f"{direction}/mINP"] = 100 * result.mINP
        for name in (f"Rank-{self.i2v.ranks[0]}", "mAP", "mINP"):
            metrics[f"mean/{name}"] = _mean(metrics, name)
        metrics["metric"] = metrics["mean/mAP"]
        return metrics

    def protocol(self) -> str:
        """What the numbers were measured on and how, in three lines."""
        length = (
            f"tracklets of at least {self.min_frames} frames"
            if self.min_frames > 1
            else "tracklets of any length"
        )
        camera = "removed from" if self.camera_filter else "kept in"
        lines = [f"{self.dataset_name}: {length}; same identity and camera {camera} the gallery"]
        for direction, result in (("I2V", self.i2v), ("V2I", self.v2i)):
            query, gallery = (
                ("infrared", "visible") if direction == "I2V" else ("visible", "infrared")
            )
            lines.append(
                f"{direction}: {result.queries:,} {query} queries x {result.gallery:,} {gallery} gallery tracklets, "
                f"{result.identities:,} identities, {result.valid_queries:,} valid queries"
            )
        return "\n".join(lines)


def cross_modal_results(
    features: torch.Tensor | np.ndarray,
    tracklets: Sequence[Tracklet],
    *,
    min_frames: int,
    dataset_name: str,
    ranks: Sequence[int] = DEFAULT_RANKS,
    camera_filter: bool = True,
    keep_similarity: bool = False,
) -> CrossModalResults:
    """Evaluate I2V and V2I by cosine similarity.

    Args:
        features: [N, D], one row a tracklet, of any length: they are L2-normalized here.
        tracklets: N, of both modalities, in any order. One with a `role`, ``query`` or ``gallery``, is only that; all
            others are a query of one direction and in the gallery of the other.
        min_frames: the minimum length that the dataset has applied. Part of the protocol; checked, not applied.
        dataset_name: for the protocol and for messages.
        ranks: the k at which CMC is reported.
        camera_filter: leave gallery entries with the query's identity and camera out.
        keep_similarity: return the similarities of both directions as well.

    Raises:
        UserError: a feature is NaN or infinite, one modality is missing, a tracklet is too short, no query has a match.
        ValueError: not one feature a tracklet.
    """
    sides = _check_tracklets(tracklets, min_frames, dataset_name)
    features = torch.as_tensor(features).detach().to("cpu", torch.float32)
    if features.ndim != 2 or len(features) != len(tracklets):
        raise ValueError(
            f"{len(tracklets)} tracklets need features [{len(tracklets)}, D], got {list(features.shape)}"
        )
    check_features(features, dataset_name)
    features = F.normalize(features, dim=1)
    pids = np.array([tracklet.pid for tracklet in tracklets])
    camids = np.array([tracklet.camid for tracklet in tracklets])

    def direction(
        name: str,
        query: np.ndarray,
        gallery: np.ndarray,
        similarity: np.ndarray | None = None,
        keep: bool = False,
    ) -> RetrievalResult:
        labels = (pids[query], pids[gallery], camids[query], camids[gallery])
        try:
            if similarity is not None:
                return evaluate_similarity(
                    similarity, *labels, ranks=ranks, camera_filter=camera_filter
                )
            return evaluate_retrieval(
                features[query],
                features[gallery],
                *labels,
                ranks=ranks,
                camera_filter=camera_filter,
                keep_similarity=keep,
            )
        except UserError as error:
            raise UserError(f"{dataset_name}, {name}, min_frames {min_frames}: {error}") from None

    # One product serves both directions where both have the same tracklets: V2I's is the transpose of I2V's.
    shared = sides.same_tracklets() and len(sides.i2v_query) * len(sides.i2v_gallery) <= MAX_SHARED
    i2v = direction("I2V", sides.i2v_query, sides.i2v_gallery, keep=shared or keep_similarity)
    transposed = i2v.similarity.T if shared and i2v.similarity is not None else None
    v2i = direction("V2I", sides.v2i_query, sides.v2i_gallery, transposed, keep=keep_similarity)
    return CrossModalResults(
        i2v=i2v if keep_similarity else replace(i2v, similarity=None),
        v2i=replace(v2i, similarity=transposed) if shared and keep_similarity else v2i,
        sides=sides,
        dataset_name=dataset_name,
        min_frames=min_frames,
        camera_filter=camera_filter,
    )


class CrossModalEvaluator(DatasetEvaluator):
    """Collects each tracklet's feature, from all processes, and evaluates both directions.

    Args:
        tracklets: what the test loader shows, in the dataset's order: queries, then gallery. See
            :func:`cross_modal_results` for what their roles mean.
        min_frames: the minimum length that the dataset has applied.
        dataset_name: for the protocol and for messages.
        ranks: the k at which CMC is reported.
        camera_filter: leave gallery entries with the query's identity and camera out.
        csv_path: where the per-query table goes; None writes none. See :func:`write_query_csv`.

    Raises:
        UserError: one modality is missing, a tracklet is shorter than `min_frames`, or `ranks` are no ranks. Known
            before the first feature is extracted, so it is said before.
    """

    def __init__(
        self,
        *,
        tracklets: Sequence[Tracklet],
        min_frames: int,
        dataset_name: str,
        ranks: Sequence[int] = DEFAULT_RANKS,
        camera_filter: bool = True,
        csv_path: str | os.PathLike | None = None,
    ):
        _check_tracklets(tracklets, min_frames, dataset_name)
        self.tracklets = list(tracklets)
        self.min_frames = min_frames
        self.dataset_name = dataset_name
        self.ranks = check_ranks(ranks)
        self.camera_filter = camera_filter
        self.csv_path = csv_path
        self.reset()

    def reset(self) -> None:
        """Forget every feature."""
        self._indexes: list[torch.Tensor] = []
        self._features: list[torch.Tensor] = []

    def process(self, inputs: Mapping[str, torch.Tensor], outputs: torch.Tensor) -> None:
        """Keep the features of one batch, as float32 on the CPU.

        Args:
            inputs: the batch; ``index`` [B] holds the positions of its clips in `tracklets`, as integers on the host.
            outputs: [B, D], the model's features.

        Raises:
            ValueError: not one feature an index.
        """
        index = inputs["index"]
        if outputs.ndim != 2 or index.shape != outputs.shape[:1]:
            raise ValueError(
                f"index {list(index.shape)} and features {list(outputs.shape)} must be [B] and [B, D]"
            )
        self._indexes.append(index.detach().to("cpu", torch.int64, copy=True))
        self._features.append(outputs.detach().to("cpu", torch.float32, copy=True))

    def evaluate(self) -> OrderedDict[str, float]:
        """Gather, evaluate, log the table and write the CSV.

        Returns:
            :meth:`CrossModalResults.metrics` in the main process, an empty dict in the others.

        Raises:
            AssertionError: the tracklets were not each seen exactly once.
            UserError: see :func:`cross_modal_results`.
        """
        # One tensor a process: pickling thousands of small ones would be slower than the gather itself.
        own = (torch.cat(self._indexes), torch.cat(self._features)) if self._indexes else None
        gathered = comm.gather(own, dst=0)
        if not comm.is_main_process():
            return OrderedDict()
        parts = [part for part in gathered if part is not None]
        indexes = (
            torch.cat([part[0] for part in parts]) if parts else torch.empty(0, dtype=torch.int64)
        )
        _check_coverage(indexes.tolist(), len(self.tracklets))

        shuffled = torch.cat([part[1] for part in parts])
        features = torch.empty_like(shuffled)
        features[indexes] = shuffled
        results = cross_modal_results(
            features,
            self.tracklets,
            min_frames=self.min_frames,
            dataset_name=self.dataset_name,
            ranks=self.ranks,
            camera_filter=self.camera_filter,
        )
        logger.info("%s\n%s", results.protocol(), format_table({"": results}))
        if self.csv_path is not None:
            write_query_csv(self.csv_path, results, self.tracklets)
            logger.info("per-query results: %s", self.csv_path)
        return results.metrics()


def format_table(rows: Mapping[str, CrossModalResults | Mapping[str, float]]) -> str:
    """Results as a plain-text table: three rows a run, I2V, V2I and their mean; values in percent.

    Args:
        rows: name of the run (may be empty) -> its results, or the metrics that an evaluator has returned.

    Raises:
        ValueError: no runs, or runs with different ranks.
    """
    table, columns = [], None
    for name, run in rows.items():
        metrics = run.metrics() if isinstance(run, CrossModalResults) else run
        names = [key.partition("/")[2] for key in metrics if key.startswith("I2V/")]
        if not names or (columns is not None and names != columns):
            raise ValueError(
                f"run {name!r} has the columns {names}, expected {columns or 'those of both directions'}"
            )
        columns = names
        for direction in ("I2V", "V2I"):
            table.append(
                [
                    f"{name} {direction}".strip(),
                    *(metrics[f"{direction}/{column}"] for column in columns),
                ]
            )
        table.append([f"{name} mean".strip(), *(_mean(metrics, column) for column in columns)])
    if columns is None:
        raise ValueError("no results to print")
    return tabulate(table, headers=["%", *columns], tablefmt="pipe", floatfmt=".2f")


def write_query_csv(
    path: str | os.PathLike, results: CrossModalResults, tracklets: Sequence[Tracklet]
) -> None:
    """Write one row a query and direction, I2V first, queries in the order of `tracklets`.

    `tracklet` and `top1_tracklet` are positions in `tracklets`; AP and INP are fractions, in full precision. Cells
    without a value are empty: the rank, AP and INP of a query without a match, the top-1 of one with an empty gallery.
    The file appears complete or not at all: an interrupted run leaves the previous one as it was.
    """
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    sides = results.sides
    writer.writerows(_csv_rows("I2V", results.i2v, sides.i2v_query, sides.i2v_gallery, tracklets))
    writer.writerows(_csv_rows("V2I", results.v2i, sides.v2i_query, sides.v2i_gallery, tracklets))
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def _csv_rows(
    direction: str,
    result: RetrievalResult,
    query: np.ndarray,
    gallery: np.ndarray,
    tracklets: Sequence[Tracklet],
) -> Iterator[tuple[object, ...]]:
    per_query = result.per_query
    for row, index in enumerate(query.tolist()):
        tracklet = tracklets[index]
        measures: tuple[object, ...] = ("", "", "")
        top1: tuple[object, ...] = ("", "", "")
        if per_query.valid[row]:
            measures = (
                int(per_query.first_match[row]),
                float(per_query.ap[row]),
                float(per_query.inp[row]),
            )
        if per_query.top1[row] >= 0:
            position = int(gallery[per_query.top1[row]])
            top1 = (tracklets[position].pid, position, float(per_query.top1_similarity[row]))
        yield (
            direction,
            index,
            tracklet.pid,
            tracklet.camid,
            Modality(tracklet.modality).name.lower(),
            tracklet.path(0),
            int(per_query.n_matches[row]),
            *measures,
            *top1,
        )


def _mean(metrics: Mapping[str, float], name: str) -> float:
    """Mean of both directions."""
    return (metrics[f"I2V/{name}"] + metrics[f"V2I/{name}"]) / 2


def _check_tracklets(tracklets: Sequence[Tracklet], min_frames: int, dataset_name: str) -> Sides:
    """Who looks for whom, and that the protocol is the one it claims to be."""
    # A tracklet always has a frame: the CSV names the first.
    short = [
        index for index, tracklet in enumerate(tracklets) if len(tracklet) < max(min_frames, 1)
    ]
    if short:
        raise UserError(
            f"{dataset_name}: {len(short)} of {len(tracklets)} tracklets have fewer than {max(min_frames, 1)} frames, "
            f"index {shorten(short)}: apply DATASETS.MIN_FRAMES when the dataset is read"
        )
    infrared = np.array(
        [tracklet.modality == Modality.INFRARED for tracklet in tracklets], dtype=bool
    )
    roles = [getattr(tracklet, "role", None) for tracklet in tracklets]
    query = np.array([role != "gallery" for role in roles], dtype=bool)
    gallery = np.array([role != "query" for role in roles], dtype=bool)
    sides = Sides(
        i2v_query=np.flatnonzero(infrared & query),
        i2v_gallery=np.flatnonzero(~infrared & gallery),
        v2i_query=np.flatnonzero(~infrared & query),
        v2i_gallery=np.flatnonzero(infrared & gallery),
    )
    if not all(map(len, sides)):
        raise UserError(
            f"{dataset_name}: {len(sides.i2v_query)} infrared and {len(sides.v2i_query)} visible queries, "
            f"{len(sides.v2i_gallery)} infrared and {len(sides.i2v_gallery)} visible gallery entries; all are needed: "
            f"check the dataset's lists and the minimum length (DATASETS.MIN_FRAMES is {min_frames})"
        )
    return sides


def _check_coverage(indexes: Sequence[int], size: int) -> None:
    """Every position from 0 to `size` - 1 exactly once."""
    seen = Counter(indexes)
    missing = [index for index in range(size) if index not in seen]
    repeated = [index for index, times in seen.items() if times > 1]
    unknown = [index for index in seen if not 0 <= index < size]
    if missing or repeated or unknown:
        found = [
            f"{len(group)} {what} (index {shorten(group)})"
            for what, group in (
                ("missing", missing),
                ("seen more than once", repeated),
                ("unknown", unknown),
            )
            if group
        ]
        raise AssertionError(
            f"{size} tracklets must each be seen exactly once: {'; '.join(found)}; the test loader must show the "
            "whole dataset, once over all processes"
        )
