"""The report's ROC curve and its table are those of the evaluation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.evaluation.verification import verify
from fastreid_star.report import build, plots, verification

from .conftest import HOSTILE
from .page import Page


@pytest.fixture
def metrics(star):
    found = star.ranking
    rules = {"min_frames": 12, "dataset_name": "SyntheticVCM", "roc": True}
    return cross_modal_results(found.features, found.tracklets, **rules).metrics()


def test_the_table_has_the_results_of_the_evaluation(both, metrics):
    (table,) = [table for table in Page(both).tables if "STAR TPR of the pairs" in str(table)]
    assert table[0] == ["percent, at FPR or FAR of", "10 %", "1 %", "0.1 %"]
    for row, key in zip(table[1:4], ("ROC/TPR@FPR", "DIR/I2V@FAR", "DIR/V2I@FAR"), strict=True):
        rates = ("1e-01", "1e-02", "1e-03")
        assert row[1:] == [f"{metrics[f'{key}={rate}']:.2f}" for rate in rates]
    assert [row[0] for row in table[4:]] == [
        f"{HOSTILE} {what}" for what in ("TPR of the pairs", "DIR, I2V", "DIR, V2I")
    ]
    text = " ".join(Page(both).text.split())
    assert f"STAR: equal error rate {metrics['ROC/EER']:.2f} %" in text


def test_the_curve_is_that_of_the_pairs(star, sad, monkeypatch):
    lines = {}

    def draw(plot, **_):
        axes = SimpleNamespace(
            plot=lambda x, y, **look: [lines.setdefault(look["linestyle"], (x, y))],
            set_xscale=lambda scale: lines.setdefault("scale", scale),
            set_ylim=lambda *_: None,
            xaxis=SimpleNamespace(set_major_formatter=lambda _: None),
        )
        assert set(plot(axes)) == {"STAR", HOSTILE}

    monkeypatch.setattr(plots, "draw", draw)
    verification.verification([star, sad])
    assert lines.pop("scale") == "log"
    for (x, y), e in zip(lines.values(), (star, sad), strict=True):
        pairs = verify(e.ranking.results, e.ranking.tracklets).pairs
        for false, true in zip(x[:-1], y[:-1], strict=True):
            assert true == pytest.approx(100 * pairs.true_accepts(false / 100))
        assert x[-1] == y[-1] == 100
        assert np.all(np.diff(x) > 0)


def test_a_run_that_was_asked_for_it_is_compared_with_one_that_was_not(star, sad):
    found = verify(star.ranking.results, star.ranking.tracklets)
    results = replace(star.ranking.results, verification=found)
    asked = replace(star, ranking=replace(star.ranking, results=results))
    assert asked.metrics["ROC/EER"] == 100 * found.pairs.equal_error_rate()
    for main, other in ((asked, sad), (sad, asked)):
        gain = main.metrics["I2V/mAP"] - other.metrics["I2V/mAP"]
        assert build.compare(main, other, 1)["rows"][0][1][0] == pytest.approx(gain)


def test_it_is_left_out_without_pairs_of_two_people(star, monkeypatch):
    one = [SimpleNamespace(pid=1, camid=tracklet.camid) for tracklet in star.ranking.tracklets]
    ranking = SimpleNamespace(results=star.ranking.results, tracklets=one)
    assert verification.verification([SimpleNamespace(name="a", ranking=ranking)]) is None
