"""Features of datasets, folders and videos in files and galleries, and what is refused before any work."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from fastreid_star.data.build import build_dataset, open_store
from fastreid_star.data.datasets import HITSZVCM
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.data.folders import tracklets_in
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError
from fastreid_star.inference import Gallery, StarPredictor, features
from fastreid_star.inference.features import dataset_tracklets, extract_features, find_tracklets


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """A folder with crops of four tracklets, and a video beside it."""
    root = tmp_path_factory.mktemp("own")
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
    return root / "crops"


@pytest.fixture
def extract(predictor, tmp_path):
    """Write features to a file, and read them."""

    def call(*paths, **options):
        output = tmp_path / "f.npz"
        paths = [str(path) for path in paths]
        extract_features(predictor, paths, output=str(output), num_workers=0, **options)
        with np.load(output, allow_pickle=False) as arrays:
            return dict(arrays), json.loads(output.with_suffix(".json").read_text())

    return call


@pytest.mark.parametrize(("split", "count"), [("train", 36), ("test", 36)])
def test_a_dataset(extract, predictor, split, count):
    found, about = extract(dataset="SyntheticVCM", split=split)
    data = build_dataset(predictor.cfg, "SyntheticVCM")
    tracklets = [*data.query, *data.gallery] if split == "test" else getattr(data, split)
    assert len(tracklets) == count
    assert found["pids"].tolist() == [tracklet.pid for tracklet in tracklets]
    assert found["camids"].tolist() == [tracklet.camid for tracklet in tracklets]
    assert found["modality"].tolist() == [int(tracklet.modality) for tracklet in tracklets]
    assert found["names"].tolist() == about["names"] == [tracklet.key(0) for tracklet in tracklets]
    own = dataset_tracklets(predictor.cfg, "SyntheticVCM", split).tracklets
    assert own[0].skeletons.path == open_store(predictor.cfg, data).path
    np.testing.assert_array_equal(found["features"], predictor.features(own).numpy())
    first = {"pid": tracklets[0].pid, "camid": tracklets[0].camid, "picture": tracklets[0].path(0)}
    assert about["metadata"][0] == first
    assert about["fingerprint"] == predictor.fingerprint


def test_a_datasets_own_folder_has_the_tracklets_of_its_lists(tmp_path, caplog):
    """Its folders hold the frames of several tracklets of a person and camera."""
    folder = tmp_path / "SyntheticVCM"
    options = {"train_ids": 2, "test_ids": 2, "tracklets": 8, "frames": 12, "size": (32, 16)}
    write_synthetic_vcm(folder, SyntheticOptions(**options))
    data = HITSZVCM(str(tmp_path / "SyntheticVCM"))
    assert "the counts differ" in caplog.text, "HITSZ-VCM's"
    caplog.clear()
    assert len(tracklets_in(folder / "Test")) < 32, "tracklets of one folder are merged here"
    found = find_tracklets([str(folder / "Test")], skeletons=str(folder / "skeletons"))
    assert found.listed == [*data.query, *data.gallery]
    assert "the counts differ" not in caplog.text
    assert len(found.tracklets) == 32
    assert found.tracklets[5].keys == [found.listed[5].key(k) for k in range(12)]
    assert found.metadata[5]["pid"] == found.listed[5].pid

    person = find_tracklets([str(folder / "Test" / "0003" / "ir")])
    assert person.listed == [tracklet for tracklet in data.query if tracklet.pid == 3]
    Image.new("RGB", (16, 32)).save(tmp_path / "1.png")
    (tmp_path / "crops").mkdir()
    (tmp_path / "1.png").rename(tmp_path / "crops" / "1.png")
    both = find_tracklets([str(folder / "Test"), str(tmp_path / "crops")], "visible")
    assert (len(both.tracklets), both.names[-1], both.listed) == (33, "crops", [])
    write_skeleton_store(tmp_path / "other", ["x"], np.ones((1, 17, 3)))
    with pytest.raises(UserError, match="no skeletons of these images"):
        find_tracklets([str(folder / "Test")], skeletons=str(tmp_path / "other"))


def test_folders_in_natural_order_and_videos(extract, predictor, crops):
    found, _ = extract(crops)
    assert set(found) == {"features", "names", "modality"}
    assert found["names"].tolist() == ["ir/p1", "rgb/p1", "rgb/p2", "rgb/p10"]
    assert found["modality"].tolist() == [1, 2, 2, 2]
    expected = predictor.features(tracklets_in(crops)).numpy()
    np.testing.assert_array_equal(found["features"], expected)
    video = crops.parent / "v.avi"
    found, about = extract(video, crops / "rgb", modality="infrared")
    assert found["names"].tolist() == ["v.avi", "p1", "p2", "p10"]
    assert found["modality"].tolist() == [1, 1, 1, 1]
    pictures = [entry["picture"] for entry in about["metadata"][:2]]
    assert pictures == [str(video), str(crops / "rgb/p1/1.png")]


def test_skeletons_of_a_folder(extract, predictor, crops, tmp_path):
    keys = [f"rgb/{person}/{frame}" for person in ("p1", "p2") for frame in (1, 2, 10)]
    joints = np.random.default_rng(1).uniform(1, 15, (6, 17, 3)) + np.eye(3)[2]
    write_skeleton_store(tmp_path / "store", keys, joints)
    one, other = (extract(crops, skeletons=s)[0] for s in (str(tmp_path / "store"), ""))
    changed = np.abs(one["features"] - other["features"]).max(axis=1) > 1e-4
    assert changed.tolist() == [False, True, True, False]  # ir/p1, rgb/p1, rgb/p2, rgb/p10
    tracklets = tracklets_in(crops, skeletons=SkeletonStore.open(tmp_path / "store"))
    np.testing.assert_array_equal(one["features"], predictor.features(tracklets).numpy())


def test_a_gallery_is_made_and_added_to(predictor, crops, runs, tmp_path):
    folder, video = str(tmp_path / "g"), str(crops.parent / "v.avi")
    options = {"gallery": folder, "num_workers": 0}
    assert "4 in all" in extract_features(predictor, [str(crops)], batch_size=2, **options)
    assert "5 in all" in extract_features(predictor, [video], modality="visible", **options)
    gallery = Gallery.load(folder, predictor)
    assert gallery.names == ["ir/p1", "rgb/p1", "rgb/p2", "rgb/p10", "v.avi"]
    assert [int(modality) for modality in gallery.modalities] == [1, 2, 2, 2, 2]
    expected = predictor.features(tracklets_in(crops)).numpy()
    np.testing.assert_allclose(gallery.features()[:4], expected, atol=1e-6)
    with pytest.raises(UserError, match=r"already in the gallery, first 'v\.avi': add --replace"):
        extract_features(predictor, [video], modality="visible", **options)
    done = extract_features(predictor, [video], modality="infrared", replace=True, **options)
    assert "1 tracklets added, 5 in all" in done
    gallery = Gallery.load(folder, predictor)
    assert gallery.names[4] == "v.avi"
    assert gallery.modalities[4] == 1, "the new one"
    other = StarPredictor.from_run(runs / "STAR", "cpu", opts=["INPUT.CLIP.LENGTH", "2"])
    with pytest.raises(UserError, match=r"INPUT\.CLIP\.LENGTH 3 there, 2 here"):
        extract_features(other, [str(crops)], **options)
    assert len(Gallery.load(folder, predictor)) == 5


def test_bad_input_is_refused_before_any_work(predictor, crops, tmp_path, monkeypatch):
    monkeypatch.setattr(StarPredictor, "features", lambda *args, **kwargs: pytest.fail("work"))
    locked = tmp_path / "g"
    (locked / ".lock").mkdir(parents=True)  # so that it cannot be written
    output, own = {"output": str(tmp_path / "f.npz")}, [str(crops)]
    for message, paths, options in (
        ("either paths or", [], output),
        ("--replace is for", own, {"replace": True, **output}),
        ("either paths or", own, {"dataset": "SyntheticVCM", **output}),
        ("own modalities", [], {"dataset": "SyntheticVCM", "modality": "visible", **output}),
        ("SynVCM", [], {"dataset": "SynVCM", **output}),
        ("not a split", [], {"dataset": "SyntheticVCM", "split": "x", **output}),
        ("--output FILE or", own, {}),
        (r"end in \.npz", own, {"output": str(tmp_path / "f.txt")}),
        ("nowhere", ["nowhere"], output),
        (r"v\.avi|is unknown", [str(crops.parent / "v.avi")], output),
        ("none", own, {"skeletons": "none", **output}),
        ("is not a gallery", own, {"gallery": str(crops)}),
        ("cannot be written", own, {"gallery": str(locked)}),
        ("--workers -1", own, {"num_workers": -1, **output}),
    ):
        with pytest.raises(UserError, match=message):
            extract_features(predictor, paths, **options)
    assert list(tmp_path.iterdir()) == [locked]


def test_names_of_a_dataset_that_appear_twice_are_refused_before_any_work(
    predictor, tmp_path, monkeypatch
):
    found = dataset_tracklets(predictor.cfg, "SyntheticVCM", "test")
    twice = replace(found, tracklets=[found.tracklets[0]] * 2)
    monkeypatch.setattr(features, "dataset_tracklets", lambda *args: twice)
    monkeypatch.setattr(StarPredictor, "features", lambda *args, **kwargs: pytest.fail("work"))
    with pytest.raises(UserError, match="several tracklets"):
        extract_features(predictor, dataset="SyntheticVCM", gallery=str(tmp_path / "g"))
