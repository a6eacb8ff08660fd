"""The results of an evaluation in both directions: measures, protocol, a summary for a file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.retrieval import RetrievalResult
from fastreid_star.evaluation.tables import mean_of_directions
from fastreid_star.structures import Trials


class Sides(NamedTuple):
    """Queries and gallery of both directions, as ascending positions among all test tracklets.

    Usually every tracklet is a query of one direction and a gallery entry of the other: `i2v_query`
    equals `v2i_gallery`, and `v2i_query` equals `i2v_gallery`. If the dataset lists its queries,
    the four are disjoint. With :class:`~fastreid_star.structures.Trials` they are those of the
    first trial, in its order, and the last two are empty if the protocol has no V2I.
    """

    i2v_query: np.ndarray  # infrared
    i2v_gallery: np.ndarray  # visible
    v2i_query: np.ndarray  # visible
    v2i_gallery: np.ndarray  # infrared


@dataclass(frozen=True, eq=False)
class CrossModalResults:
    """The results of both directions, and their protocol.

    Args:
        i2v: infrared queries, visible gallery.
        v2i: visible queries, infrared gallery; None: the protocol has no such direction.
        sides: the tracklets of each.
        modalities: direction -> names of the modalities of its queries and gallery.
        dataset_name, min_frames, camera_filter: the protocol.
        reranking: what was applied to the features.
        protocol_name: the name of the protocol, for a dataset on which several are in use.
        trials: of a protocol that has some.
    """

    i2v: RetrievalResult
    v2i: RetrievalResult | None
    sides: Sides
    modalities: Mapping[str, tuple[str, str]]
    dataset_name: str
    min_frames: int
    camera_filter: bool
    reranking: Reranking
    protocol_name: str
    trials: Trials | None

    def directions(self) -> dict[str, tuple[RetrievalResult, np.ndarray, np.ndarray]]:
        """Results, positions of the queries and positions of the gallery, by direction."""
        found = {"I2V": (self.i2v, *self.sides[:2])}
        return found if self.v2i is None else {**found, "V2I": (self.v2i, *self.sides[2:])}

    def metrics(self) -> OrderedDict[str, float]:
        """Percentages, ``I2V/Rank-1`` to ``mean/mINP``; ``metric`` selects the best checkpoint."""
        metrics = OrderedDict()
        for direction, (result, _, _) in self.directions().items():
            for rank, value in zip(result.ranks, result.cmc, strict=True):
                metrics[f"{direction}/Rank-{rank}"] = 100 * value
            metrics[f"{direction}/mAP"] = 100 * result.mAP
            metrics[f"{direction}/mINP"] = 100 * result.mINP
        for name in (f"Rank-{self.i2v.ranks[0]}", "mAP", "mINP"):
            metrics[f"mean/{name}"] = mean_of_directions(metrics, name)
        metrics["metric"] = metrics["mean/mAP"]
        return metrics

    def summary(self) -> dict[str, Any]:
        """The protocol, the re-ranking and the metrics, for a JSON file."""
        return {
            "dataset": self.dataset_name,
            "protocol": self.protocol_name or None,
            "min_frames": self.min_frames,
            "camera_filter": self.camera_filter,
            "reranking": str(self.reranking),
            "tracklets": dict(zip(self.sides._fields, map(len, self.sides), strict=True)),
            "trials": 1 if self.trials is None else len(self.trials.directions["I2V"]),
            "metrics": self.metrics(),
        }

    def protocol(self) -> str:
        """The protocol, the re-ranking if any, and the numbers of queries and gallery entries."""
        frames = f"at least {self.min_frames} frames" if self.min_frames > 1 else "any length"
        camera = "removed from" if self.camera_filter else "kept in"
        name = f", protocol {self.protocol_name}" if self.protocol_name else ""
        lines = [
            f"{self.dataset_name}{name}: tracklets of {frames}; same identity and camera {camera} "
            "the gallery"
        ]
        if self.trials is not None:
            lines.append(_describe(self.trials))
        if self.reranking != Reranking():
            lines.append(f"re-ranked: {self.reranking}")
        for direction, (result, _, _) in self.directions().items():
            query, gallery = self.modalities[direction]
            queries, entries = result.similarity.shape
            lines.append(
                f"{direction}: {queries:,} {query} queries x {entries:,} {gallery} gallery "
                f"tracklets, {result.identities:,} identities, {result.per_query.valid.sum():,} "
                "valid queries"
            )
        return "\n".join(lines)


def _describe(trials: Trials) -> str:
    """One line about the rules of trials."""
    parts = [f"mean over {len(trials.directions['I2V'])} trials; the first has these numbers"]
    parts += [
        f"queries of camera {query} skip camera {gallery}"
        for query, gallery in sorted(trials.skipped)
    ]
    parts += ["ranks of the CMC count identities"] if trials.by_identity else []
    return "; ".join(parts)
