"""Both directions of visible-infrared retrieval from one extraction of all tracklets.

I2V: infrared tracklets query visible ones. V2I: visible tracklets query infrared ones. The feature
of each tracklet is computed once. It is a query in one direction and a gallery entry in the other,
unless the dataset lists its queries, or its protocol draws the gallery in several trials.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fastreid.evaluation.evaluator import DatasetEvaluator
from fastreid.utils import comm

from fastreid_star.errors import UserError
from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.results import CrossModalResults, Sides
from fastreid_star.evaluation.retrieval import (
    DEFAULT_RANKS,
    RetrievalResult,
    check_ranks,
    evaluate_retrieval,
    mean_over_trials,
)
from fastreid_star.evaluation.similarity import check_features, normalize, shorten, similarity
from fastreid_star.evaluation.tables import format_table, write_query_csv, write_results
from fastreid_star.structures import Modality, Tracklet, Trials

logger = logging.getLogger(__name__)


def cross_modal_results(
    features: torch.Tensor | np.ndarray,
    tracklets: Sequence[Tracklet],
    *,
    min_frames: int,
    dataset_name: str,
    ranks: Sequence[int] = DEFAULT_RANKS,
    camera_filter: bool = True,
    reranking: Reranking | None = None,
    protocol_name: str = "",
    trials: Trials | None = None,
) -> CrossModalResults:
    """Evaluate I2V and V2I.

    Args:
        features: ``[N, D]``, compared by cosine, or ``[N, P, D]``, compared by the mean distance of
            the parts; see :func:`~fastreid_star.evaluation.similarity.similarity`. With temporal
            re-ranking 3 N features, of all frames, first halves and second halves.
        tracklets: N, of both modalities, in any order. A tracklet whose `role` is ``query`` or
            ``gallery`` is only that; any other is a query of one direction and a gallery entry of
            the other.
        min_frames: the minimum length that the dataset has applied. It is checked here, not
            applied.
        dataset_name: for the protocol and for messages.
        ranks: the k at which CMC is reported.
        camera_filter: remove gallery entries with the query's identity and camera.
        reranking: applied to the queries and the gallery of each direction; None: none.
        protocol_name: for messages, see :class:`CrossModalResults`.
        trials: which of the tracklets are queries and gallery entries, instead of their modality
            and role; the results are means over the trials.

    Raises:
        UserError: a feature is NaN or infinite, one modality is missing, a tracklet is too short,
            or no query has a match.
        ValueError: the number of features is not that of the tracklets.
    """
    reranking = reranking or Reranking()
    sides = _check_tracklets(tracklets, min_frames, dataset_name, trials)
    features = torch.as_tensor(features).detach().to("cpu", torch.float32)
    count = len(tracklets) * reranking.views
    if features.ndim not in (2, 3) or len(features) != count:
        raise ValueError(
            f"{len(tracklets)} tracklets need {count} features [N, D] or [N, P, D], got "
            f"{list(features.shape)}"
        )
    check_features(features, dataset_name)
    features = normalize(features)
    views = features.unflatten(0, (reranking.views, len(tracklets)))
    pids = np.array([tracklet.pid for tracklet in tracklets])
    camids = np.array([tracklet.camid for tracklet in tracklets])

    rules: dict[str, Any] = {"ranks": ranks, "camera_filter": camera_filter}
    if trials is not None:
        rules.update(skipped=trials.skipped, by_identity=trials.by_identity)

    results: dict[str, RetrievalResult] = {}

    def ranked(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[RetrievalResult]:
        for query, gallery in pairs:
            # With the same tracklets in both directions, V2I has I2V's similarities, transposed.
            if reranking != Reranking():
                values = reranking.similarity(views[:, query], views[:, gallery]).numpy()
            elif (
                results
                and np.array_equal(query, sides.i2v_gallery)
                and np.array_equal(gallery, sides.i2v_query)
            ):
                values = results["I2V"].similarity.T
            else:
                values = similarity(features[query], features[gallery]).numpy()
            labels = (pids[query], pids[gallery], camids[query], camids[gallery])
            yield evaluate_retrieval(values, *labels, **rules)

    modalities = {}
    for name, pairs in _directions(sides, trials).items():
        try:
            results[name] = mean_over_trials(ranked(pairs))
        except UserError as error:
            raise UserError(f"{dataset_name}, {name}, min_frames {min_frames}: {error}") from None
        query, gallery = (Modality(tracklets[side[0]].modality) for side in pairs[0])
        modalities[name] = (query.name.lower(), gallery.name.lower())
    return CrossModalResults(
        i2v=results["I2V"],
        v2i=results.get("V2I"),
        sides=sides,
        modalities=modalities,
        dataset_name=dataset_name,
        min_frames=min_frames,
        camera_filter=camera_filter,
        reranking=reranking,
        protocol_name=protocol_name,
        trials=trials,
    )


def _directions(
    sides: Sides, trials: Trials | None
) -> Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]:
    """Positions of queries and gallery of each trial, by direction."""
    if trials is not None:
        return trials.directions
    return {"I2V": [sides[:2]], "V2I": [sides[2:]]}


class CrossModalEvaluator(DatasetEvaluator):
    """Collect the feature of each tracklet from all processes, and evaluate both directions.

    Args:
        tracklets: the tracklets of the test loader, in the dataset's order: queries, then gallery.
        csv_path: where to write the results of each query, see :func:`write_query_csv`; None: they
            are not written.
        json_path: where to write :meth:`CrossModalResults.summary`; None: it is not written.
        protocol: `min_frames`, `dataset_name`, `ranks`, `camera_filter`, `reranking`,
            `protocol_name` and `trials` of :func:`cross_modal_results`.

    Raises:
        UserError: one modality is missing, a tracklet is shorter than `min_frames`, or `ranks` are
            not valid.
    """

    def __init__(
        self,
        *,
        tracklets: Sequence[Tracklet],
        csv_path: str | os.PathLike | None = None,
        json_path: str | os.PathLike | None = None,
        **protocol: Any,
    ):
        # Before features are extracted, which may take an hour.
        names = (protocol["min_frames"], protocol["dataset_name"], protocol.get("trials"))
        _check_tracklets(tracklets, *names)
        check_ranks(protocol.get("ranks", DEFAULT_RANKS))
        self.tracklets, self.protocol = list(tracklets), protocol
        self.csv_path, self.json_path = csv_path, json_path
        self.reset()

    def reset(self) -> None:
        """Forget all features."""
        self._indexes: list[torch.Tensor] = []
        self._features: list[torch.Tensor] = []

    def process(self, inputs: Mapping[str, torch.Tensor], outputs: torch.Tensor) -> None:
        """Store the features of one batch, as float32 on the CPU.

        Args:
            inputs: the batch; ``index`` ``[B]`` holds the positions of its clips in `tracklets`,
                those of the halves from N and 2 N on.
            outputs: ``[B, D]`` or ``[B, P, D]``, the model's features.
        """
        self._indexes.append(inputs["index"].detach().to("cpu", torch.int64, copy=True))
        self._features.append(outputs.detach().to("cpu", torch.float32, copy=True))

    def gather(self) -> torch.Tensor | None:
        """The features of all tracklets, in their order, in the main process; None in the others.

        With temporal re-ranking, those of the first halves follow, then those of the second.

        Raises:
            AssertionError: a tracklet was not seen exactly once.
        """
        # One tensor a process: pickling thousands of small ones takes longer than gathering them.
        own = (torch.cat(self._indexes), torch.cat(self._features)) if self._indexes else None
        gathered = [part for part in comm.gather(own, dst=0) if part is not None]
        if not comm.is_main_process():
            return None
        indexes = torch.cat([torch.empty(0, dtype=torch.int64), *(part[0] for part in gathered)])
        reranking = self.protocol.get("reranking") or Reranking()
        _check_coverage(indexes.tolist(), len(self.tracklets) * reranking.views)
        return torch.cat([part[1] for part in gathered])[indexes.argsort()]

    def evaluate(self) -> OrderedDict[str, float]:
        """Gather the features, evaluate, log the table and write the files.

        Returns:
            :meth:`CrossModalResults.metrics` in the main process, an empty dict in the others.

        Raises:
            AssertionError: a tracklet was not seen exactly once.
            UserError: see :func:`cross_modal_results`.
        """
        features = self.gather()
        if features is None:
            return OrderedDict()
        results = cross_modal_results(features, self.tracklets, **self.protocol)
        logger.info("%s\n%s", results.protocol(), format_table({"": results.metrics()}))
        if self.csv_path is not None:
            write_query_csv(self.csv_path, results.directions(), self.tracklets)
            logger.info("Results of each query: %s", self.csv_path)
        if self.json_path is not None:
            write_results(self.json_path, results.summary())
        return results.metrics()


def _check_tracklets(
    tracklets: Sequence[Tracklet], min_frames: int, dataset_name: str, trials: Trials | None
) -> Sides:
    """Check the tracklets against the protocol, and split them into queries and gallery entries."""
    least = max(min_frames, 1)
    short = [index for index, tracklet in enumerate(tracklets) if len(tracklet) < least]
    if short:
        raise UserError(
            f"{dataset_name}: {len(short)} of {len(tracklets)} tracklets have fewer than {least} "
            f"frames, index {shorten(short)}: apply DATASETS.MIN_FRAMES when the dataset is read"
        )
    if trials is not None:
        none = np.empty(0, dtype=np.int64)
        first = [trials.directions.get(way, [(none, none)])[0] for way in ("I2V", "V2I")]
        return Sides(*first[0], *first[1])
    infrared = np.array([t.modality == Modality.INFRARED for t in tracklets], dtype=bool)
    roles = np.array([getattr(tracklet, "role", None) for tracklet in tracklets], dtype=object)
    query, gallery = roles != "gallery", roles != "query"
    sides = Sides(
        i2v_query=np.flatnonzero(infrared & query),
        i2v_gallery=np.flatnonzero(~infrared & gallery),
        v2i_query=np.flatnonzero(~infrared & query),
        v2i_gallery=np.flatnonzero(infrared & gallery),
    )
    if not all(map(len, sides)):
        raise UserError(
            f"{dataset_name}: {len(sides.i2v_query)} infrared and {len(sides.v2i_query)} visible "
            f"queries, {len(sides.v2i_gallery)} infrared and {len(sides.i2v_gallery)} visible "
            "gallery entries; all are needed: check the dataset's lists and the minimum length "
            f"(DATASETS.MIN_FRAMES is {min_frames})"
        )
    return sides


def _check_coverage(indexes: Sequence[int], size: int) -> None:
    """Check that every position from 0 to `size` - 1 was seen exactly once."""
    expected, seen = Counter(range(size)), Counter(indexes)
    missing, surplus = sorted(expected - seen), sorted(seen - expected)
    if missing or surplus:
        raise AssertionError(
            f"{size} tracklets must each be seen exactly once: {len(missing)} missing (index "
            f"{shorten(missing)}), {len(surplus)} too often or unknown (index {shorten(surplus)}); "
            "the test loader must show the whole dataset, once over all processes"
        )
