"""Ranked lists for people, for programs and for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate

from fastreid_star.inference.gallery import Gallery, RankedList
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole
from fastreid_star.structures import Modality

AMONG = ("other", "visible", "infrared", "all")
CSV_COLUMNS = ("query", "query_modality", "rank", "similarity", "name", "index")


@dataclass(frozen=True)
class Answer:
    """What a gallery says to one query.

    Args:
        query: its name.
        modality: the query's.
        among: which entries were ranked, of :data:`AMONG`, never `other`.
        ranked: the entries most like it.
    """

    query: str
    modality: Modality
    among: str
    ranked: RankedList


def ask(
    gallery: Gallery,
    features: torch.Tensor,
    names: Sequence[str],
    modalities: Sequence[Modality],
    *,
    k: int = 10,
    among: str = "other",
) -> list[Answer]:
    """Rank a gallery for some queries.

    Args:
        gallery: what is ranked.
        features: [Q, D].
        names, modalities: of the queries, Q each.
        k: entries of a list.
        among: `other`: the entries of the modality that the query is not of; `visible`, `infrared` or `all`.

    Raises:
        UserError: `among` is none of these, or as :meth:`Gallery.search`.
    """
    if among not in AMONG:
        raise UserError(f"among is {among!r}: choose one of {', '.join(AMONG)}")
    answers: dict[int, Answer] = {}  # by row, one modality after the other
    for modality in sorted(set(modalities)):
        rows = [row for row, other in enumerate(modalities) if other == modality]
        kind = _other(modality).name.lower() if among == "other" else among
        found = gallery.search(features[rows], k, modality=None if kind == "all" else kind)
        for row, ranked in zip(rows, found, strict=True):
            answers[row] = Answer(names[row], modality, kind, ranked)
    return [answers[row] for row in range(len(names))]


def to_table(answers: Sequence[Answer]) -> str:
    """One table a query, under a line that names it."""
    parts = []
    for answer in answers:
        what = "entries of both modalities" if answer.among == "all" else f"{answer.among} entries"
        rows = [(rank, f"{similarity:.4f}", name) for rank, similarity, name, _ in _rows(answer)]
        table = tabulate(
            rows,
            headers=("rank", "similarity", "name"),
            colalign=("right", "right", "left"),
            disable_numparse=True,
        )
        parts.append(f"{answer.query} ({answer.modality.name.lower()}) among {what}:\n{table}")
    return "\n\n".join(parts)


def to_json(answers: Sequence[Answer], gallery: Gallery) -> str:
    """A list of queries, each with its ranked entries and what the gallery knows of them."""
    modalities = gallery.modalities
    content: list[dict[str, Any]] = [
        {
            "query": answer.query,
            "modality": answer.modality.name.lower(),
            "among": answer.among,
            "results": [
                {
                    "rank": rank,
                    "similarity": similarity,
                    "name": name,
                    "index": index,
                    "modality": modalities[index].name.lower(),
                    "metadata": gallery.metadata[index],
                }
                for rank, similarity, name, index in _rows(answer)
            ],
        }
        for answer in answers
    ]
    return json.dumps(content, indent=1) + "\n"


def to_csv(answers: Sequence[Answer]) -> str:
    """One line a query and entry, under a line with the names of the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for answer in answers:
        for rank, similarity, name, index in _rows(answer):
            writer.writerow(
                (answer.query, answer.modality.name.lower(), rank, similarity, name, index)
            )
    return text.getvalue()


def write_lists(path: str, lists: str) -> None:
    """Write what :func:`to_json` or :func:`to_csv` gave, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_whole(path, lambda file: file.write(lists.encode()))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _rows(answer: Answer) -> list[tuple[int, float, str, int]]:
    ranked = answer.ranked
    values = zip(ranked.similarities.tolist(), ranked.names, ranked.indices.tolist(), strict=True)
    return [(rank, *value) for rank, value in enumerate(values, start=1)]


def _other(modality: Modality) -> Modality:
    return Modality.VISIBLE if modality is Modality.INFRARED else Modality.INFRARED
