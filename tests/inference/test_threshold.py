"""A threshold is computed, kept with its weights and used: in commands, in Python and on the page."""

import csv
import json
import logging
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.cli import main as cli
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.verification import share_above, threshold_at
from fastreid_star.inference import Gallery, StarPredictor, calibration, search
from fastreid_star.inference.calibration import calibrate, read_pairs
from fastreid_star.inference.features import dataset_tracklets, extract_features
from fastreid_star.inference.threshold import Threshold
from fastreid_star.structures import Modality

from ..tiny import REPOSITORY

PAGE = (REPOSITORY / "docs" / "threshold.md").read_text(encoding="utf-8")
IDENTITY = "0007"  # of the tiny test set; the demo's is 0081
PEOPLE = 11


def make_run(runs, folder):
    """A copy of the run SAD in ``demo/runs``, and the datasets beside it, as after the demo."""
    shutil.copytree(runs / "SAD", folder / "demo" / "runs" / "SAD")
    (folder / "demo" / "datasets").symlink_to(runs / "datasets")
    return folder / "demo" / "runs" / "SAD"


def make_crops(folder):
    for modality, blue in (("rgb", 0), ("ir", 60)):
        for person in range(PEOPLE):
            (folder / modality / f"p{person}").mkdir(parents=True)
            gray = 20 * person + blue // 10
            Image.new("RGB", (16, 32), (gray, gray, gray)).save(
                folder / modality / f"p{person}" / "0.png"
            )


def write_pairs(path, rows):
    path.write_text("\ufefffirst,second,same\r\n" + "".join(f"{row}\r\n" for row in rows))


@pytest.fixture(scope="module")
def run(runs, tmp_path_factory):
    return make_run(runs, tmp_path_factory.mktemp("threshold"))


@pytest.fixture(scope="module")
def calibrated(run):
    """A predictor of a run with a threshold."""
    predictor = StarPredictor.from_run(run, "cpu")
    calibrate(predictor, 0.05, num_workers=0)
    return predictor


@pytest.fixture(scope="module")
def results(calibrated):
    """The evaluation's similarities of the run's test set."""
    found = dataset_tracklets(calibrated.cfg, "SyntheticVCM", "test")
    features = calibrated.features(found.tracklets)
    rules = {"min_frames": 12, "dataset_name": "SyntheticVCM"}
    return cross_modal_results(features, found.listed, roc=True, **rules)


def test_the_page(runs, tmp_path, monkeypatch, capsys):
    """Every block of the page runs, and prints what the page says."""
    run = make_run(runs, tmp_path)
    make_crops(tmp_path / "crops")
    names = [(f"ir/p{a}", f"rgb/p{b}", a == b) for a in range(PEOPLE) for b in range(PEOPLE)]
    write_pairs(tmp_path / "pairs.csv", [f"{b},{a},{same:d}" for a, b, same in names])
    monkeypatch.chdir(tmp_path)
    page = PAGE.replace("0081", IDENTITY)
    printed = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```$", page, re.M | re.S):
        if language == "python":
            exec(compile(block, "docs/threshold.md", "exec"), {})
            printed.append(capsys.readouterr().out)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            cli.run(*line.split()[1:])
            printed.append(capsys.readouterr().out)
    test_set, labeled, _, lists, python, _ = printed
    for text, numbers in ((test_set, "270 pairs of"), (labeled, "110 pairs of")):
        assert numbers in text
        assert "demo/runs/SAD/threshold.json" in text.splitlines()[-1]
    kept = json.loads((run / "threshold.json").read_text())
    assert kept["source"] == f"labeled pairs in {tmp_path / 'pairs.csv'}", "the later one"
    assert (kept["same_pairs"], kept["different_pairs"]) == (PEOPLE, PEOPLE * (PEOPLE - 1))
    heads = re.findall(r"^\d+/ir/.* among visible entries: (.*):$", lists, re.M)
    pattern = rf"(nobody in the gallery: 0|[1-9]\d*) above the threshold {kept['value']:.4f}"
    assert heads
    assert all(re.fullmatch(pattern, head) for head in heads)
    assert re.fullmatch(rf"(True|False)\n{kept['value']} {kept['true_accepts']}\n", python)
    written = json.loads((tmp_path / "demo/roc/results_SyntheticVCM.json").read_text())
    names = set(re.findall(r"`((?:ROC|DIR)/[^`.]*)`", PAGE))
    assert len(names) == 3
    assert names <= set(written["metrics"])
    assert set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", PAGE, re.M)) == {
        *((key, "") for key in kept if not key.endswith("_pairs")),
        ("same_pairs", "different_pairs"),
    }


def test_it_is_the_evaluations_threshold(calibrated, results, run):
    pairs = results.verification.pairs
    threshold = calibrated.threshold
    assert threshold == Threshold(
        value=threshold_at(pairs.different, 0.05),
        false_accepts=0.05,
        same_pairs=len(pairs.same),
        different_pairs=270,  # 18 x 18 without 6 x 9
        true_accepts=pairs.true_accepts(0.05),
        source=results.protocol(),
        fingerprint=calibrated.fingerprint,
    )
    assert share_above(pairs.different, threshold.value) == pytest.approx(13 / 270)
    assert "same identity and camera removed" in threshold.source
    assert StarPredictor.from_run(run, "cpu").threshold == threshold


def test_it_holds_for_the_other_half_of_a_synthetic_test_set(calibrated, tmp_path):
    """One percent of false accepts among half of the people gives a half to two on the others."""
    cfg = calibrated.cfg.clone()
    cfg.defrost()
    cfg.DATASETS.ROOT = str(tmp_path)
    cfg.DATASETS.MIN_FRAMES = 1
    people = {"TRAIN_IDS": 2, "TEST_IDS": 160, "TRACKLETS": 1, "FRAMES": 3}
    cfg.DATASETS.SYNTHETIC.update(people)
    found = dataset_tracklets(cfg, "SyntheticVCM", "test")
    features = calibrated.features(found.tracklets)
    pids = np.array([tracklet.pid for tracklet in found.listed])
    halves = []
    for own in (np.flatnonzero(pids % 2 == half) for half in (0, 1)):
        listed = [found.listed[place] for place in own]
        rules = {"min_frames": 1, "dataset_name": "half", "roc": True}
        halves.append(cross_modal_results(features[own], listed, **rules).verification.pairs)
    assert len(halves[0].different) == len(halves[1].different) == 80 * 79
    for pairs, others in (halves, halves[::-1]):
        threshold = threshold_at(pairs.different, 0.01)
        assert 0.005 < share_above(others.different, threshold) < 0.02


def test_same_person_is_the_similarity_of_the_evaluation(calibrated, results):
    found = dataset_tracklets(calibrated.cfg, "SyntheticVCM", "test")
    query, gallery = results.sides.i2v_query, results.sides.i2v_gallery
    above = results.i2v.similarity > calibrated.threshold.value
    for decision in (True, False):
        row, column = np.argwhere(above == decision)[0]
        pair = [found.tracklets[place] for place in (query[row], gallery[column])]
        assert calibrated.same_person(*pair) is decision
        assert calibrated.same_person(*pair[::-1]) is decision
        value = float(results.i2v.similarity[row, column])
        assert calibrated.same_person(*pair, threshold=value + 1e-5) is False
        assert calibrated.same_person(*pair, threshold=value - 1e-5) is True
    infrared = [found.tracklets[place] for place in query[:2]]
    with pytest.raises(UserError, match="not for two infrared ones"):
        calibrated.same_person(*infrared)
    assert calibrated.same_person(infrared[0], infrared[0], threshold=0.999) is True


def test_search_says_nobody(calibrated, tmp_path):
    """Entries at angles of 10 and 60 degrees, for queries at 0 and at 130."""
    angles = torch.deg2rad(torch.tensor([10.0, 60.0, 0.0, 130.0]))
    features = torch.stack([angles.cos(), angles.sin()], 1)
    gallery = Gallery(calibrated)
    gallery.add(features[:2], ["near", "far"], "visible")
    names, modalities = ["somebody", "nobody"], [Modality.INFRARED] * 2
    answers = search.rank(gallery, features[2:], names, modalities, threshold=0.6)
    assert [answer.nobody for answer in answers] == [False, True]
    first, second = search.to_table(answers).split("\n\n")
    assert first.startswith("somebody (infrared) among visible entries: 1 above the threshold 0.6")
    assert second.startswith("nobody (infrared) among visible entries: nobody in the gallery: 0 ab")
    about = json.loads(search.to_json(answers, gallery))
    assert [(each["threshold"], each["nobody"]) for each in about] == [(0.6, False), (0.6, True)]
    rows = list(csv.DictReader(search.to_csv(answers).splitlines()))
    assert [row["same_person"] for row in rows] == ["1", "0", "0", "0"]
    equal = float(answers[0].ranked.similarities[0])
    assert search.rank(gallery, features[2:3], names[:1], modalities[:1], threshold=equal)[0].nobody


def test_a_runs_threshold_is_refused_where_similarities_are_others(calibrated, runs, tmp_path):
    """Among entries of the query's modality, and with re-ranking. A number is the user's affair."""
    folder, gallery = runs / "datasets" / "SyntheticVCM" / "Test" / IDENTITY, str(tmp_path / "g")
    extract_features(calibrated, [str(folder)], gallery=gallery, num_workers=0)

    def find(threshold, **options):
        queries = [str(folder / "ir")]
        return search.search(
            calibrated, gallery, queries, threshold=threshold, num_workers=0, **options
        )

    assert find(calibrated.threshold, among="visible")[0].threshold == calibrated.threshold.value
    for among in ("infrared", "all"):
        with pytest.raises(UserError, match="two infrared ones"):
            find(calibrated.threshold, among=among)
    assert find(-2.0, among="all")[0].nobody is False
    reranking = Reranking(k_reciprocal=(5, 2, 0.3))
    with pytest.raises(UserError, match="without re-ranking"):
        search._check_threshold(reranking, "other", [Modality.INFRARED])
    parse = cli.command_parser("search")[0].parse_args
    assert parse(["g", "q", "--threshold", "0.5"]).threshold == 0.5
    for word in ("half", "nan"):
        with pytest.raises(SystemExit):
            parse(["g", "q", "--threshold", word])


def test_a_threshold_of_other_weights_is_refused(calibrated, runs, tmp_path):
    run = make_run(runs, tmp_path)
    predictor = StarPredictor.from_run(run, "cpu")
    with pytest.raises(UserError, match=r"has no threshold\.json.*fastreid-star threshold"):
        _ = predictor.threshold
    path = Path(calibrated.threshold.save(run))
    assert predictor.threshold == calibrated.threshold
    with torch.no_grad():
        next(predictor.model.backbone.parameters())[0] += 1e-6
    del predictor.fingerprint
    with pytest.raises(UserError, match=r"another model or config.*other weights"):
        _ = predictor.threshold
    kept = json.loads(path.read_text())
    for content in ([], {}, {**kept, "value": "high"}, {**kept, "fingerprint": None}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="damaged"):
            _ = predictor.threshold


def test_what_cannot_be_calibrated_is_one_line(calibrated, run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(calibration, "compute", lambda *_: pytest.fail("work"))
    temporal = StarPredictor.from_run(run, "cpu", opts=["TEST.RERANK.TEMPORAL", "True"])
    for predictor, rate, options, message in (
        (calibrated, 0, {}, "0 false accepts: give a share"),
        (calibrated, 1, {}, "1 false accepts: give a share"),
        (calibrated, 0.1, {"paths": ["crops"]}, "--pairs FILE"),
        (calibrated, 0.1, {"paths": ["c"], "pairs": "p", "dataset": "d"}, "either --dataset"),
        (temporal, 0.1, {}, "re-ranking"),
    ):
        with pytest.raises(UserError, match=message):
            calibrate(predictor, rate, **options)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"270 pairs of two people are too few .* one of 1,000"):
        calibrate(calibrated, 0.001, num_workers=0)
    with caplog.at_level(logging.WARNING):
        folder = shutil.copytree(run, tmp_path / "run")
        calibrate(StarPredictor.from_run(folder, "cpu"), 0.01, num_workers=0)
    assert "fewer than 10 false accepts" in caplog.text


def test_labeled_pairs(tmp_path):
    names, path = ["ir/a", "rgb/a", "rgb/張"], tmp_path / "pairs.csv"
    write_pairs(path, ["ir/a,rgb/a,1", "rgb/張, ir/a,0", "", "rgb/a,ir/a,1"])
    assert read_pairs(str(path), names) == {(0, 1): True, (0, 2): False}
    for rows, message in (
        (["ir/a,rgb/b,1"], r"pairs\.csv, line 2: there is no tracklet 'rgb/b'"),
        (["ir/a,rgb/a,1", "ir/a,rgb/a,yes"], "line 3: same is 'yes'"),
        (["ir/a,rgb/a"], "line 2: same is None"),
        (["ir/a,rgb/a,1", "rgb/a,ir/a,0"], "line 3: an earlier line has the other label"),
    ):
        write_pairs(path, rows)
        with pytest.raises(UserError, match=message):
            read_pairs(str(path), names)
    path.write_text("a,b,same\n")
    with pytest.raises(UserError, match="first line must be first,second,same"):
        read_pairs(str(path), names)
    path.write_bytes(b"first,second,same\n\xff,b,1\n")
    with pytest.raises(UserError, match="not a CSV file in UTF-8"):
        read_pairs(str(path), names)
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(str(tmp_path), names)


def test_labeled_pairs_of_one_modality_are_refused(calibrated, tmp_path):
    make_crops(tmp_path / "crops")
    options = {"paths": [str(tmp_path / "crops")], "pairs": str(tmp_path / "pairs.csv")}
    write_pairs(tmp_path / "pairs.csv", ["ir/p0,ir/p1,0"])
    with pytest.raises(UserError, match="not for two infrared ones"):
        calibrate(calibrated, 0.5, **options)
    write_pairs(tmp_path / "pairs.csv", [])
    with pytest.raises(UserError, match="has no pairs"):
        calibrate(calibrated, 0.5, **options)


def test_features_of_parts_have_a_threshold_too(calibrated, tmp_path, monkeypatch):
    """Minus the mean distance of the parts: the pairs of one person are at -1, the others below."""
    make_crops(tmp_path / "crops")
    labels = [f"ir/p{a},rgb/p{b},{a == b:d}" for a in range(PEOPLE) for b in range(PEOPLE)]
    write_pairs(tmp_path / "pairs.csv", labels)

    def compute(predictor, tracklets, *_):
        features = torch.zeros(len(tracklets), 3, PEOPLE + 1)
        for row, tracklet in enumerate(tracklets):
            features[row, :, int(tracklet.name.split("p")[-1])] = 5
            features[row, :, PEOPLE] = float(tracklet.name.startswith("ir"))
        return features

    monkeypatch.setattr(calibration, "compute", compute)
    weights = types.SimpleNamespace(
        cfg=calibrated.cfg, weights=str(tmp_path / "w.pth"), fingerprint=calibrated.fingerprint
    )
    options = {"paths": [str(tmp_path / "crops")], "pairs": str(tmp_path / "pairs.csv")}
    calibrate(weights, 0.1, **options)
    threshold = Threshold.load(tmp_path, calibrated.fingerprint)
    assert threshold.value == pytest.approx(-(51**0.5))
    assert threshold.true_accepts == 1
