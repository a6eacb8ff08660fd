"""tools/extract_features.py as a user calls it: datasets, folders, videos, files, galleries, and bad input."""

import json
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.data.build import build_dataset, open_store
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.data.folders import tracklets_in
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.engine.doctor import tiny_config
from fastreid_star.engine.feature_sets import set_of_dataset
from fastreid_star.engine.gallery import Gallery
from fastreid_star.engine.predictor import StarPredictor
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

SMALL = SyntheticOptions(train_ids=2, test_ids=2, tracklets=2, frames=12, size=(32, 16))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Datasets, a run, crops and a video."""
    root = tmp_path_factory.mktemp("root")
    write_synthetic_vcm(root / "datasets" / "SyntheticVCM", SMALL)
    cfg = tiny_config("cpu")
    cfg.INPUT.SIZE_TEST, cfg.INPUT.CLIP.LENGTH = [32, 16], 2
    cfg.DATASETS.ROOT, cfg.DATASETS.SKELETONS = str(root / "datasets"), "skeletons"
    options = {"TRAIN_IDS": 2, "TEST_IDS": 2, "TRACKLETS": 2, "FRAMES": 12, "SIZE": [32, 16]}
    for key, value in options.items():
        cfg.DATASETS.SYNTHETIC[key] = value
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text(cfg.dump())
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, root / "run" / "model_best.pth")
    rng = np.random.default_rng(0)
    for tracklet in ("rgb/p1", "rgb/p2", "rgb/p10", "ir/p1"):
        (root / "crops" / tracklet).mkdir(parents=True)
        for frame in (1, 2, 10):
            image = rng.integers(0, 255, (32, 16, 3), np.uint8)
            Image.fromarray(image).save(root / "crops" / tracklet / f"{frame}.png")
    writer = cv2.VideoWriter(str(root / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 64))
    for _ in range(4):
        writer.write(rng.integers(0, 255, (64, 32, 3), np.uint8))
    writer.release()
    return root


@pytest.fixture(scope="module")
def predictor(root):
    return StarPredictor.from_run(root / "run", "cpu")


@pytest.fixture
def extract(root, monkeypatch, request):
    """Call the tool; without the run and the device, which are the same for all."""
    main = runpy.run_path(str(request.config.rootpath / "tools" / "extract_features.py"))["main"]

    def call(*arguments, run=True):
        own = ["--run", root / "run"] if run else []
        command = ["extract_features.py", *own, "--device", "cpu", "--workers", 0, *arguments]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
        main()

    return call


@pytest.mark.parametrize(
    ("split", "count"), [("train", 8), ("query", 4), ("gallery", 4), ("test", 8)]
)
def test_a_dataset(root, extract, predictor, tmp_path, split, count):
    extract("--dataset", "SyntheticVCM", "--split", split, "--output", tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    assert set(found) == {"features", "names", "modality", "pids", "camids"}
    dataset = build_dataset(predictor.cfg, "SyntheticVCM")
    tracklets = [*dataset.query, *dataset.gallery] if split == "test" else getattr(dataset, split)
    assert len(tracklets) == count
    assert found["pids"].tolist() == [tracklet.pid for tracklet in tracklets]
    assert found["camids"].tolist() == [tracklet.camid for tracklet in tracklets]
    assert found["modality"].tolist() == [int(tracklet.modality) for tracklet in tracklets]
    assert found["names"].tolist() == [tracklet.key(0) for tracklet in tracklets]
    assert found["features"].dtype == np.float32
    what = set_of_dataset(predictor.cfg, "SyntheticVCM", split)
    assert what.tracklets[0].skeletons.path == open_store(predictor.cfg, dataset).path
    np.testing.assert_array_equal(found["features"], predictor.features(what.tracklets).numpy())
    described = json.loads((tmp_path / "f.json").read_text())
    assert described["names"] == found["names"].tolist()
    assert described["metadata"][0] == {
        "pid": tracklets[0].pid,
        "camid": tracklets[0].camid,
        "picture": tracklets[0].path(0),
    }
    assert described["fingerprint"] == predictor.fingerprint.to_dict()


def test_a_datasets_skeletons_are_those_of_a_test(root, extract, predictor, tmp_path):
    extract("--dataset", "SyntheticVCM", "--output", tmp_path / "own.npz")
    extract(
        "--dataset",
        "SyntheticVCM",
        "--output",
        tmp_path / "none.npz",
        "--set",
        "DATASETS.SKELETONS_TEST",
        "none",
    )
    own, none = (np.load(tmp_path / name)["features"] for name in ("own.npz", "none.npz"))
    assert not np.allclose(own, none, atol=1e-4)
    with pytest.raises(UserError, match="SKELETONS_TEST is 'other'"):
        extract(
            "--dataset",
            "SyntheticVCM",
            "--output",
            tmp_path / "x.npz",
            "--set",
            "DATASETS.SKELETONS_TEST",
            "other",
        )


def test_folders_in_natural_order_and_videos(root, extract, predictor, tmp_path):
    extract(root / "crops", "--output", tmp_path / "f.npz")
    found = np.load(tmp_path / "f.npz")
    assert set(found) == {"features", "names", "modality"}
    assert found["names"].tolist() == ["ir/p1", "rgb/p1", "rgb/p2", "rgb/p10"]
    assert found["modality"].tolist() == [1, 2, 2, 2]
    np.testing.assert_array_equal(
        found["features"], predictor.features(tracklets_in(root / "crops")).numpy()
    )

    extract(
        root / "v.avi",
        root / "crops" / "rgb",
        "--modality",
        "infrared",
        "--output",
        tmp_path / "f.npz",
    )
    found = np.load(tmp_path / "f.npz")
    assert found["names"].tolist() == ["v.avi", "p1", "p2", "p10"]
    assert found["modality"].tolist() == [1, 1, 1, 1]
    metadata = json.loads((tmp_path / "f.json").read_text())["metadata"]
    assert [entry["picture"] for entry in metadata[:2]] == [
        str(root / "v.avi"),
        str(root / "crops/rgb/p1/1.png"),
    ]


def test_skeletons_of_a_folder(root, extract, predictor, tmp_path):
    keys = [f"rgb/{person}/{frame}" for person in ("p1", "p2") for frame in (1, 2, 10)]
    joints = np.random.default_rng(1).uniform(1, 15, (6, 17, 3)) + np.eye(3)[2]
    write_skeleton_store(tmp_path / "store", keys, joints)
    extract(root / "crops", "--skeletons", tmp_path / "store", "--output", tmp_path / "with.npz")
    extract(root / "crops", "--output", tmp_path / "without.npz")
    one, other = (np.load(tmp_path / name)["features"] for name in ("with.npz", "without.npz"))
    changed = np.abs(one - other).max(axis=1) > 1e-4
    assert changed.tolist() == [False, True, True, False]  # ir/p1, rgb/p1, rgb/p2, rgb/p10
    tracklets = tracklets_in(root / "crops", skeletons=SkeletonStore.open(tmp_path / "store"))
    np.testing.assert_array_equal(one, predictor.features(tracklets).numpy())


def test_a_gallery_is_made_and_added_to(root, extract, predictor, tmp_path, capsys):
    extract(root / "crops", "--gallery", tmp_path / "g", "--batch-size", 2)
    assert "4 tracklets added, 4 in all" in capsys.readouterr().out
    extract(root / "v.avi", "--modality", "visible", "--gallery", tmp_path / "g")
    assert "1 tracklets added, 5 in all" in capsys.readouterr().out
    gallery = Gallery.load(tmp_path / "g", predictor)
    assert gallery.names == ["ir/p1", "rgb/p1", "rgb/p2", "rgb/p10", "v.avi"]
    assert [int(modality) for modality in gallery.modalities] == [1, 2, 2, 2, 2]
    expected = predictor.features(tracklets_in(root / "crops")).numpy()
    np.testing.assert_allclose(gallery.features()[:4], expected, atol=1e-6)
    with pytest.raises(
        UserError, match=r"1 names are in the gallery already or given twice, first 'v\.avi'"
    ):
        extract(root / "v.avi", "--modality", "visible", "--gallery", tmp_path / "g")
    with pytest.raises(UserError, match=r"INPUT\.CLIP\.LENGTH 2 there, 3 here"):
        extract(root / "crops", "--gallery", tmp_path / "g", "--set", "INPUT.CLIP.LENGTH", 3)
    assert len(Gallery.load(tmp_path / "g", predictor)) == 5


def test_a_config_and_weights_instead_of_a_run(root, extract, tmp_path):
    by_hand = [
        "--config-file",
        root / "run" / "config.yaml",
        "--weights",
        root / "run" / "model_best.pth",
    ]
    extract(root / "crops", "--output", tmp_path / "a.npz")
    extract(root / "crops", "--output", tmp_path / "b.npz", *by_hand, run=False)
    np.testing.assert_array_equal(
        np.load(tmp_path / "a.npz")["features"], np.load(tmp_path / "b.npz")["features"]
    )


def test_bad_input_is_one_line_before_any_work(root, extract, tmp_path, monkeypatch):
    monkeypatch.setattr(
        StarPredictor, "features", lambda *args, **kwargs: pytest.fail("work was begun")
    )
    output, config = (
        ["--output", tmp_path / "f.npz"],
        ["--config-file", root / "run" / "config.yaml"],
    )
    for message, arguments, run in (
        ("features of what", output, True),
        ("features of what", [root / "crops", "--dataset", "SyntheticVCM", *output], True),
        (
            "knows its modalities",
            ["--dataset", "SyntheticVCM", "--modality", "visible", *output],
            True,
        ),
        ("no dataset is named 'SynVCM'", ["--dataset", "SynVCM", *output], True),
        (
            r"f\.txt: a file of features ends in \.npz",
            [root / "crops", "--output", tmp_path / "f.txt"],
            True,
        ),
        (
            "the folder .*none does not exist",
            [root / "crops", "--output", tmp_path / "none" / "f.npz"],
            True,
        ),
        ("nowhere does not exist", ["nowhere", *output], True),
        ("modality of .* is unknown", [root / "v.avi", *output], True),
        ("a model is needed", [root / "crops", *output], False),
        ("a model is needed", [root / "crops", *output, *config], False),
        ("--run has a config of its own", [root / "crops", *output, *config], True),
        (
            "skeleton store none does not exist",
            [root / "crops", *output, "--skeletons", "none"],
            True,
        ),
        (
            "holds something else than a gallery",
            [root / "crops", "--gallery", root / "crops"],
            True,
        ),
        ("no config key INPUT.CLIPS", [root / "crops", *output, "--set", "INPUT.CLIPS", "1"], True),
    ):
        with pytest.raises(UserError, match=message) as caught:
            extract(*arguments, run=run)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command_line_ends_with_the_line_alone(root, request):
    command = [
        sys.executable,
        "tools/extract_features.py",
        "x",
        "--output",
        "f.npz",
        "--run",
        "nowhere",
    ]
    ended = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: run folder nowhere does not exist\n"
