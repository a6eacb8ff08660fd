"""The config keys of re-ranking, and an evaluation, a search and a report with it."""

import json

import pytest
import torch

from fastreid_star.data.build import build_clip_test_loader
from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.trainer import train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.evaluation.k_reciprocal import k_reciprocal_distances, temporal_distances
from fastreid_star.evaluation.rerank import Reranking, build_reranking
from fastreid_star.inference import Gallery, StarPredictor
from fastreid_star.inference.features import find_tracklets
from fastreid_star.inference.search import search
from fastreid_star.report.build import evaluate, report_contents
from fastreid_star.report.page import render
from fastreid_star.report.runs import read_run

from ..trained import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.getbasetemp() / "trained") / "SAD"


@pytest.fixture(scope="module")
def predictor(run):
    return StarPredictor.from_run(run, "cpu")


def configured(*options):
    return build_reranking(load_config("Synthetic/SAD_demo.yml", list(options)))


def test_the_keys_of_fast_reid_are_read():
    assert configured() == Reranking()
    assert str(configured()) == "none"
    both = configured("TEST.AQE.ENABLED", "True", "TEST.RERANK.ENABLED", "True")
    assert both == Reranking(expansion=(1, 5, 3.0), k_reciprocal=(20, 6, 0.3))
    assert str(both) == (
        "average query expansion (k 5, alpha 3) and k-reciprocal (k1 20, k2 6, lambda 0.3)"
    )
    assert configured("TEST.RERANK.TEMPORAL", "True").views == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("TEST.RERANK.ENABLED", "True", "TEST.RERANK.K1", "0"), "K1 is 0"),
        (("TEST.RERANK.ENABLED", "True", "TEST.RERANK.LAMBDA", "1.5"), "LAMBDA is 1.5"),
        (("TEST.RERANK.ENABLED", "True", "TEST.RERANK.TEMPORAL", "True"), "switch one off"),
        (("TEST.AQE.ENABLED", "True", "TEST.AQE.QE_K", "0"), "QE_K is 0"),
    ],
)
def test_wrong_keys_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        configured(*options)


def test_an_evaluation_with_temporal_re_ranking(run, tmp_path):
    """Every frame of the halves counts, and the result says what was applied."""
    options = [
        *("MODEL.WEIGHTS", str(run / "model_best.pth"), "OUTPUT_DIR", str(tmp_path)),
        *("TEST.RERANK.TEMPORAL", "True", "TEST.RANKS", "[1]"),
    ]
    arguments = ["--config-file", str(run / "config.yaml"), "--eval-only", *options]
    results = train_or_evaluate(argument_parser("test").parse_args(arguments))
    written = json.loads((tmp_path / "results_SyntheticVCM.json").read_text())
    assert written["reranking"] == "temporal (BUPTCampus)"
    assert written["metrics"] == results
    assert "re-ranked: temporal (BUPTCampus)" in (tmp_path / "log.txt").read_text()

    found = evaluate(read_run(run, ["TEST.RERANK.TEMPORAL", "True"]), "SAD")
    cfg = load_config(str(run / "config.yaml"), ["TEST.RERANK.TEMPORAL", "True"])
    loader = build_clip_test_loader(cfg, "SyntheticVCM")
    with torch.no_grad():
        features = torch.cat([found.model(batch) for batch in loader])
    views = features.unflatten(0, (3, -1))
    assert not torch.equal(views[1], views[2])
    for result, query, gallery in found.ranking.results.directions().values():
        expected = -temporal_distances(views[:, query], views[:, gallery])
        torch.testing.assert_close(torch.tensor(result.similarity), torch.tensor(expected))
    assert found.metrics["mean/mAP"] == pytest.approx(results["mean/mAP"])
    page = render("report", **report_contents([found], gradcam=False))
    assert "re-ranked: temporal (BUPTCampus)" in page
    assert "the number is the re-ranked distance, with a minus" in page


def test_a_search_is_re_ranked(run, predictor, tmp_path):
    people = sorted((run.parent / "datasets/SyntheticVCM/Test").iterdir())
    cfg = predictor.cfg
    tracklets = [str(person / "rgb") for person in people]
    entries, queries = (
        find_tracklets([str(person / name) for person in people], min_frames=12)
        for name in ("rgb", "ir")
    )
    gallery = Gallery(predictor)
    gallery.add(predictor.features(entries.tracklets), entries.names, entries.modalities)
    gallery.save(tmp_path / "gallery")
    try:
        predictor.cfg = cfg.clone()
        predictor.cfg.merge_from_list(["TEST.RERANK.ENABLED", True, "TEST.RERANK.K1", 4])
        answers = search(
            predictor,
            str(tmp_path / "gallery"),
            [str(person / "ir") for person in people],
            json_file=str(tmp_path / "lists.json"),
            num_workers=0,
        )
        predictor.cfg.merge_from_list(["TEST.RERANK.ENABLED", False, "TEST.RERANK.TEMPORAL", True])
        with pytest.raises(UserError, match="TEMPORAL False"):
            search(predictor, str(tmp_path / "gallery"), tracklets)
    finally:
        predictor.cfg = cfg
    features = torch.from_numpy(gallery.features())
    asked = predictor.features(queries.tracklets)
    expected = k_reciprocal_distances(asked, features, k1=4)
    for row, answer in zip(expected, answers, strict=True):
        order = row.argsort(kind="stable")[:10]
        assert answer.ranked.indices.tolist() == order.tolist()
        assert (-answer.ranked.similarities).tolist() == pytest.approx(row[order].tolist())
    lists = json.loads((tmp_path / "lists.json").read_text())
    assert lists[0]["reranking"] == "k-reciprocal (k1 4, k2 6, lambda 0.3)"
