"""The table of results, and the file with a row for each query."""

import numpy as np
import pytest
import torch

from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.evaluation.tables import CSV_COLUMNS, format_table, write_query_csv
from fastreid_star.structures import Modality

from .toy import PROTOCOL, feed, make_tracklet, read_csv, toy


def count_matches(tracklet, tracklets):
    """By the definition, camera rule included."""
    return sum(
        other.modality != tracklet.modality
        and other.pid == tracklet.pid
        and other.camid != tracklet.camid
        for other in tracklets
    )


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_shows_runs_side_by_side():
    results = cross_modal_results(*toy(), **PROTOCOL)
    metrics = cross_modal_results(*toy(seed=1), **PROTOCOL).metrics()
    # The metrics an evaluator returned, and fast-reid adds the dataset's name to.
    header, rule, *rows = cells(
        format_table({"untrained": results.metrics(), "trained": {**metrics, "dataset": "Toy"}})
    )
    assert header == ["%", "Rank-1", "Rank-5", "Rank-10", "Rank-20", "mAP", "mINP"]
    assert set("".join(rule)) <= set(":-")
    names = [
        f"{run} {direction}"
        for run in ("untrained", "trained")
        for direction in ("I2V", "V2I", "mean")
    ]
    assert [row[0] for row in rows] == names
    assert rows[0][1:] == [
        f"{100 * value:.2f}" for value in (*results.i2v.cmc, results.i2v.mAP, results.i2v.mINP)
    ]
    assert rows[4][5] == f"{metrics['V2I/mAP']:.2f}"
    assert rows[5][5] == f"{metrics['metric']:.2f}"
    assert rows[5][2] == f"{(metrics['I2V/Rank-5'] + metrics['V2I/Rank-5']) / 2:.2f}"
    with pytest.raises(ValueError, match="columns"):
        format_table({"a": metrics, "b": {"I2V/Rank-1": 1.0, "V2I/Rank-1": 1.0}})


def test_the_csv_has_a_row_for_each_query_and_direction(tmp_path):
    features, tracklets = toy()
    path = tmp_path / "new" / "per_query.csv"
    evaluator = CrossModalEvaluator(tracklets=tracklets, csv_path=path, **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    metrics = evaluator.evaluate()
    rows = read_csv(path)
    assert list(rows[0]) == list(CSV_COLUMNS)
    assert [row["direction"] for row in rows] == ["I2V"] * 30 + ["V2I"] * 40
    assert [int(row["tracklet"]) for row in rows] == list(range(70))
    assert [path.name for path in path.parent.iterdir()] == ["per_query.csv"]

    unit = features / features.norm(dim=1, keepdim=True)
    for row in rows:
        index, top1 = int(row["tracklet"]), int(row["top1_tracklet"])
        tracklet = tracklets[index]
        assert (int(row["pid"]), int(row["camid"])) == (tracklet.pid, tracklet.camid)
        assert row["modality"] == tracklet.modality.name.lower()
        assert row["first_frame"] == tracklet.path(0)
        assert tracklets[top1].modality != tracklet.modality
        assert int(row["top1_pid"]) == tracklets[top1].pid
        assert float(row["top1_similarity"]) == pytest.approx(
            float(unit[index] @ unit[top1]), abs=1e-6
        )
        assert (row["first_match_rank"] == "1") == (tracklets[top1].pid == tracklet.pid)
        assert int(row["n_matches"]) == count_matches(tracklet, tracklets)

    for direction in ("I2V", "V2I"):
        mine = [row for row in rows if row["direction"] == direction]
        for column, measure in (("AP", "mAP"), ("INP", "mINP")):
            mean = 100 * np.mean([float(row[column]) for row in mine if row[column]])
            assert mean == pytest.approx(metrics[f"{direction}/{measure}"], abs=1e-12)


def test_the_csv_leaves_out_what_does_not_exist(tmp_path):
    # V2I, one gallery entry (1, camera 1): tracklet 2 has no match, tracklet 3 has its whole gallery removed.
    tracklets = [
        make_tracklet(1, 1, Modality.INFRARED),
        make_tracklet(1, 2, Modality.VISIBLE),
        make_tracklet(2, 1, Modality.VISIBLE),
        make_tracklet(1, 1, Modality.VISIBLE),
    ]
    results = cross_modal_results(torch.eye(4) + 1, tracklets, **PROTOCOL)
    write_query_csv(tmp_path / "per_query.csv", results.directions(), tracklets)
    rows = read_csv(tmp_path / "per_query.csv")
    assert [int(row["n_matches"]) for row in rows] == [1, 1, 0, 0]
    measures = ("first_match_rank", "AP", "INP")
    top1 = ("top1_pid", "top1_tracklet", "top1_similarity")
    assert (
        [rows[2][name] for name in measures] == [rows[3][name] for name in measures] == ["", "", ""]
    )
    assert [rows[2][name] for name in top1[:2]] == ["1", "0"]
    assert [rows[3][name] for name in top1] == ["", "", ""]
