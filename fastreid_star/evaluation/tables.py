"""Results of both directions as a text table and a JSON file, those of each query as a CSV file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from fastreid_star.evaluation.retrieval import RetrievalResult
from fastreid_star.files import write_whole
from fastreid_star.structures import Modality, Tracklet

_QUERY = ("direction", "tracklet", "pid", "camid", "modality", "first_frame", "n_matches")
_RESULT = ("first_match_rank", "AP", "INP", "top1_pid", "top1_tracklet", "top1_similarity")
CSV_COLUMNS = (*_QUERY, *_RESULT)


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format results as a plain-text table, in percent: I2V, V2I and their mean of each run.

    A run whose protocol has I2V alone has one row.

    Args:
        rows: name of the run (may be empty) -> the metrics that an evaluator has returned.

    Raises:
        ValueError: the runs have different ranks, or a run has no metrics.
    """
    table, columns = [], None
    for name, metrics in rows.items():
        names = [key.partition("/")[2] for key in metrics if key.startswith("I2V/")]
        columns = columns or names
        if not names or names != columns:
            raise ValueError(f"run {name!r} has the columns {names}, expected {columns}")
        ways = directions_of(metrics)
        for way in ways:
            values = [metrics[f"{way}/{column}"] for column in columns]
            table.append([f"{name} {way}".strip(), *values])
        if len(ways) > 1:
            means = (mean_of_directions(metrics, column) for column in columns)
            table.append([f"{name} mean".strip(), *means])
    return tabulate(table, headers=["%", *(columns or ())], tablefmt="pipe", floatfmt=".2f")


def directions_of(metrics: Mapping[str, float]) -> list[str]:
    """``I2V`` and ``V2I``, or the one that the protocol has."""
    return [way for way in ("I2V", "V2I") if any(key.startswith(f"{way}/") for key in metrics)]


def mean_of_directions(metrics: Mapping[str, float], name: str) -> float:
    """The mean of a measure over the directions."""
    values = [metrics[f"{way}/{name}"] for way in directions_of(metrics)]
    return sum(values) / len(values)


def write_query_csv(
    path: str | os.PathLike,
    directions: Mapping[str, tuple[RetrievalResult, np.ndarray, np.ndarray]],
    tracklets: Sequence[Tracklet],
) -> None:
    """Write one row for each direction and query.

    `tracklet` and `top1_tracklet` are positions in `tracklets`; AP and INP are fractions in full
    precision. The rank, AP and INP of a query without a match are empty, and so is the top 1 of a
    query with an empty gallery.

    Args:
        path: the file; its folder is created.
        directions: name -> results, positions of the queries, positions of the gallery entries.
        tracklets: all test tracklets.
    """
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for name, (result, query, gallery) in directions.items():
        found = result.per_query
        for row, index in enumerate(query.tolist()):
            tracklet = tracklets[index]
            modality = Modality(tracklet.modality).name.lower()
            cells: list[object] = [
                name,
                index,
                tracklet.pid,
                tracklet.camid,
                modality,
                Path(tracklet.path(0)).as_posix(),  # the same slashes on every system
            ]
            cells.append(found.n_matches[row])
            measures: list[object] = ["", "", ""]
            top1: list[object] = ["", "", ""]
            if found.valid[row]:
                measures = [found.first_match[row], float(found.ap[row]), float(found.inp[row])]
            if found.top1[row] >= 0:
                position = int(gallery[found.top1[row]])
                top1 = [tracklets[position].pid, position, float(found.top1_similarity[row])]
            writer.writerow([*cells, *measures, *top1])
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def write_results(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Write the protocol and the metrics of an evaluation as JSON; the folder is created."""
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    text = json.dumps(summary, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
