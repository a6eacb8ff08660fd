"""Ranked lists of a gallery for query tracklets: as text, JSON, CSV and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate

from fastreid_star.data.tracklets import TrackletInput, as_modality
from fastreid_star.errors import UserError
from fastreid_star.evaluation.rerank import Reranking, build_reranking
from fastreid_star.files import prepare_output, write_output
from fastreid_star.inference.features import PICTURE, compute, find_tracklets
from fastreid_star.inference.gallery import Gallery, RankedList, require_single_features
from fastreid_star.inference.pictures import prepare_pictures, write_pictures
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.inference.threshold import Threshold, require_both_modalities
from fastreid_star.structures import Modality

AMONG = ("other", "visible", "infrared", "all")
CSV_COLUMNS = ("query", "query_modality", "rank", "similarity", "name", "index")


@dataclass(frozen=True)
class Answer:
    """The ranked list of one query.

    Args:
        query: the query's name.
        modality: the query's modality, in lower case.
        among: which entries were ranked: visible, infrared or all.
        ranked: the entries most similar to it.
        reranking: what was applied to the features, in words; empty: nothing.
        threshold: entries whose similarity is above it are taken for the query's person; None:
            there is none.
    """

    query: str
    modality: str
    among: str
    ranked: RankedList
    reranking: str = ""
    threshold: float | None = None

    @property
    def nobody(self) -> bool:
        """Whether the query's person is not in the gallery, by the threshold."""
        return self.threshold is not None and bool(self.ranked.similarities[0] <= self.threshold)

    def rows(self) -> list[tuple[int, float, str, int]]:
        """Rank, similarity, name and position in the gallery of each entry."""
        found = self.ranked
        values = zip(found.similarities.tolist(), found.names, found.indices.tolist(), strict=True)
        return [(rank, *value) for rank, value in enumerate(values, start=1)]


def search(
    predictor: StarPredictor,
    gallery: str,
    queries: Sequence[str],
    *,
    modality: str | None = None,
    skeletons: str = "",
    top: int = 10,
    among: str = "other",
    json_file: str = "",
    csv_file: str = "",
    pictures: str = "",
    threshold: Threshold | float | None = None,
    add_skeletons: Callable[[list[TrackletInput]], list[TrackletInput]] = list,
    batch_size: int | None = None,
    num_workers: int = 2,
) -> list[Answer]:
    """Rank a saved gallery for own tracklets, with the re-ranking of the predictor's config.

    Args:
        predictor: the model that the gallery was made with.
        gallery: the gallery's folder.
        queries: folders of tracklets and videos.
        modality, skeletons: of the queries, see
            :func:`~fastreid_star.inference.features.find_tracklets`.
        top: the length of each list.
        among: which entries are ranked: ``other``, those of the modality that the query does not
            have; ``visible``, ``infrared`` or ``all``.
        json_file, csv_file: also write the lists to these files.
        pictures: also write a picture of each query and its first ten entries into this folder.
        threshold: a query whose most similar entry is not above it has nobody in the gallery: that
            of the run, :attr:`StarPredictor.threshold`, or a number; None: every query has a list.
        add_skeletons: gives the queries that have no skeletons some.
        batch_size: tracklets in a batch; None: TEST.IMS_PER_BATCH.
        num_workers: processes that decode images.

    Returns:
        a ranked list for each query. :func:`to_table` formats them.

    Raises:
        UserError: an argument is wrong, the gallery was made with another model, a query cannot be
            used, or a file cannot be written.
    """
    reranking = build_reranking(predictor.cfg)
    require_single_features(reranking)  # before the features are computed
    for path in filter(None, (json_file, csv_file)):
        prepare_output(path)
    if pictures:
        prepare_pictures(pictures)
    entries = Gallery.load(gallery, predictor)
    found = find_tracklets(queries, modality, skeletons)
    if isinstance(threshold, Threshold):
        _check_threshold(reranking, among, found.modalities)
        threshold = threshold.value
    features = compute(predictor, add_skeletons(found.tracklets), batch_size, num_workers)
    answers = rank(
        entries,
        features,
        found.names,
        found.modalities,
        k=top,
        among=among,
        reranking=reranking,
        threshold=threshold,
    )
    if json_file:
        text = to_json(answers, entries)
        write_output(json_file, lambda file: file.write(text.encode()))
    if csv_file:
        table = to_csv(answers).encode(errors="surrogateescape")  # names need not be UTF-8
        write_output(csv_file, lambda file: file.write(table))
    if pictures:
        lists = []
        for answer, known in zip(answers, found.metadata, strict=True):
            rows = answer.rows()
            files = [known[PICTURE], *(entries.metadata[row[3]].get(PICTURE) for row in rows)]
            captions = [("query", answer.query)]
            captions += [(f"{rank}: {value:.3f}", name) for rank, value, name, _ in rows]
            lists.append((answer.query, files, captions))
        write_pictures(pictures, lists)
    return answers


def rank(
    gallery: Gallery,
    features: torch.Tensor,
    names: Sequence[str],
    modalities: Sequence[Modality],
    *,
    k: int = 10,
    among: str = "other",
    reranking: Reranking | None = None,
    threshold: float | None = None,
) -> list[Answer]:
    """Rank a gallery for queries of both modalities.

    Args:
        gallery: the gallery.
        features: ``[Q, D]`` or ``[Q, P, D]``.
        names, modalities: of the Q queries.
        k: the length of each list.
        among: see :func:`search`.
        reranking: see :meth:`Gallery.search`.
        threshold: see :class:`Answer`.

    Raises:
        UserError: `among` is unknown; and see :meth:`Gallery.search`.
    """
    if among not in AMONG:
        raise UserError(f"among is {among!r}: choose one of {', '.join(AMONG)}")
    answers: dict[int, Answer] = {}  # by query
    for modality in sorted(set(modalities)):
        own = modality.name.lower()
        kind = among
        if among == "other":
            kind = "infrared" if modality == Modality.VISIBLE else "visible"
        rows = [row for row, other in enumerate(modalities) if other == modality]
        only = None if kind == "all" else kind
        found = gallery.search(features[rows], k, modality=only, reranking=reranking)
        applied = "" if reranking in (None, Reranking()) else str(reranking)
        for row, ranked in zip(rows, found, strict=True):
            answers[row] = Answer(names[row], own, kind, ranked, applied, threshold)
    return [answers[row] for row in range(len(names))]


def _check_threshold(reranking: Reranking, among: str, modalities: Sequence[Modality]) -> None:
    """Raise a UserError if similarities are other ones than those of a run's threshold."""
    if reranking != Reranking():
        raise UserError(
            f"the threshold of a run is for similarities without re-ranking ({reranking}): switch "
            "re-ranking off, or give a number"
        )
    if among in ("visible", "infrared"):
        require_both_modalities(modalities, [as_modality(among)])
    elif among == "all":
        require_both_modalities(modalities, modalities)


def to_table(answers: Sequence[Answer]) -> str:
    """A text table for each query, below a line that names it."""
    parts = []
    for answer in answers:
        among = "entries of both modalities" if answer.among == "all" else f"{answer.among} entries"
        applied = f", re-ranked: {answer.reranking}" if answer.reranking else ""
        if answer.threshold is not None:
            above = int((answer.ranked.similarities > answer.threshold).sum())
            nobody = "" if above else "nobody in the gallery: "
            applied += f": {nobody}{above} above the threshold {answer.threshold:.4f}"
        table = tabulate(
            [(rank, f"{value:.4f}", name) for rank, value, name, _ in answer.rows()],
            headers=("rank", "similarity", "name"),
            colalign=("right", "right", "left"),
            disable_numparse=True,
        )
        parts.append(f"{answer.query} ({answer.modality}) among {among}{applied}:\n{table}")
    return "\n\n".join(parts)


def to_json(answers: Sequence[Answer], gallery: Gallery) -> str:
    """A JSON list of queries, each with its ranked entries and their metadata."""
    content = []
    for answer in answers:
        results = [
            {
                "rank": rank,
                "similarity": value,
                "name": name,
                "index": index,
                "modality": gallery.modalities[index].name.lower(),
                "metadata": gallery.metadata[index],
            }
            for rank, value, name, index in answer.rows()
        ]
        query: dict[str, Any] = {
            "query": answer.query,
            "modality": answer.modality,
            "among": answer.among,
        }
        if answer.reranking:
            query["reranking"] = answer.reranking
        if answer.threshold is not None:
            query |= {"threshold": answer.threshold, "nobody": answer.nobody}
        content.append({**query, "results": results})
    return json.dumps(content, indent=1) + "\n"


def to_csv(answers: Sequence[Answer]) -> str:
    """CSV with a header, and a line for each query and entry.

    With a threshold a last column, ``same_person``, has 1 for entries above it and 0 for others.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    limited = any(answer.threshold is not None for answer in answers)
    writer.writerow([*CSV_COLUMNS, *(["same_person"] if limited else [])])
    for answer in answers:
        limit = answer.threshold
        for row in answer.rows():
            same = [] if limit is None else [int(row[1] > limit)]
            writer.writerow([answer.query, answer.modality, *row, *same])
    return text.getvalue()
