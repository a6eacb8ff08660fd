"""What is wrong with the images, the skeletons or the lists is reported before the first step."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from PIL import Image

from fastreid_star.data.build import all_video, build_dataset
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.engine.checks import check, require
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError

from ..tiny import star_config, tiny_config
from .problems import texts


@pytest.fixture
def own_root(tiny_root, tmp_path):
    """The tiny dataset, to be spoilt."""
    shutil.copytree(tiny_root / "SyntheticVCM", tmp_path / "own" / "SyntheticVCM")
    return tmp_path / "own"


def test_tracklets_without_images_are_found_before_training_comes_to_them(own_root, tmp_path):
    for path in (own_root / "SyntheticVCM" / "Test").rglob("*.jpg"):
        path.unlink()
    (text,) = texts(tiny_config(own_root, tmp_path))
    assert re.match(r"images of the test set are missing: .*1\.jpg does not exist, ", text)


def test_a_frame_that_is_missing_is_replaced_and_no_problem(own_root, tmp_path):
    for path in (own_root / "SyntheticVCM" / "Train").rglob("1.jpg"):
        path.unlink()
    assert check(tiny_config(own_root, tmp_path)) == []


def test_frames_of_16_bits_are_warned_of_once(own_root, tmp_path):
    for path in (own_root / "SyntheticVCM").rglob("ir/*/*.jpg"):
        Image.new("I;16", (16, 32), 7300).save(path, "PNG")
    (text,) = texts(tiny_config(own_root, tmp_path), fatal=False)
    assert "INPUT.RANGE_16BIT" in text
    fixed = tiny_config(own_root, tmp_path, "INPUT.RANGE_16BIT", [7250, 7640])
    assert texts(fixed, fatal=False) == []


def with_store(own_root, change):
    """Rewrite the dataset's skeletons: ``change(keys, joints) -> keys, joints``."""
    folder = own_root / "SyntheticVCM" / "skeletons"
    store = SkeletonStore.open(folder)
    keys = store.keys()
    joints = store.raw(keys)
    write_skeleton_store(folder, *change(keys, joints))


def test_a_store_of_other_data_is_refused(own_root, tmp_path):
    with_store(own_root, lambda keys, joints: ([f"other/{key}" for key in keys], joints))
    (text,) = texts(star_config(own_root, tmp_path))
    assert "knows none of" in text


def test_a_store_for_frames_of_another_size_is_warned_of(own_root, tmp_path, caplog):
    with_store(own_root, lambda keys, joints: (keys, joints * np.float32([8, 8, 1])))
    cfg = star_config(own_root, tmp_path)
    assert texts(cfg) == []
    (text,) = texts(cfg, fatal=False)
    assert re.match(
        r"\d+ of \d+ skeletons looked up in .* do not fit their frames; .*times as large",
        text,
    )
    require(cfg)
    assert text in caplog.text


class Tracklets:
    """A stand-in for the tiny dataset with other cameras or identities."""

    def __init__(self, change):
        self.change = change

    def __call__(self, *args, **kwargs):
        data = build_dataset(*args, **kwargs)
        for name in ("train", "query", "gallery"):
            setattr(data, f"_{name}", [self.change(name, t) for t in getattr(data, name)])
        return data


def one_camera(split, tracklet):
    return dataclasses.replace(tracklet, camid=1)


def strangers(split, tracklet):
    return dataclasses.replace(tracklet, pid=tracklet.pid + 100 * (split == "gallery"))


def one_identity(split, tracklet):
    return dataclasses.replace(tracklet, pid=1) if split == "train" else tracklet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_camera, "set TEST.CAMERA_FILTER False"),
        (strangers, "no identity in common"),
        (one_identity, "training set has 1 identity"),
    ],
)
def test_lists_that_no_run_can_use(tiny_root, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("fastreid_star.engine.checks.run.build_dataset", Tracklets(change))
    found = texts(tiny_config(tiny_root, tmp_path))
    assert found
    assert all(message in text for text in found)
    if change is one_camera:
        assert texts(tiny_config(tiny_root, tmp_path, "TEST.CAMERA_FILTER", "False")) == []


def test_results_that_would_be_too_good_and_rates_that_are_never_reached(
    tiny_root, tmp_path, monkeypatch
):
    cfg = tiny_config(tiny_root, tmp_path, "SOLVER.WARMUP_EPOCHS", "3", "SOLVER.STEPS", "()")
    (text,) = texts(cfg, fatal=False)
    assert "warm-up has 9 steps, the run has 9" in text
    (pid, *_) = (t.pid for t in build_dataset(cfg, "SyntheticVCM").query)
    one_pid = Tracklets(
        lambda split, t: dataclasses.replace(t, pid=pid) if split == "train" and t.pid == 1 else t
    )
    monkeypatch.setattr("fastreid_star.engine.checks.run.build_dataset", one_pid)
    (text,) = texts(tiny_config(tiny_root, tmp_path), fatal=False)
    assert f"1 of 4 test identities are in the training set too, such as {pid}" in text
    assert texts(tiny_config(tiny_root, tmp_path, "DATASETS.COMBINEALL", "True"), fatal=False) == []


def test_combined_training_counts_the_test_identities_too(tiny_root, tmp_path):
    more = ("SOLVER.IMS_PER_BATCH", "40", "DATASETS.COMBINEALL", "True")
    assert texts(tiny_config(tiny_root, tmp_path, *more)) == []


@DATASET_REGISTRY.register()
class FewPeople(ImageDataset):
    """Three people before two cameras; one camera only where the root is named so."""

    def __init__(self, root="", **kwargs):
        if root == "missing":
            raise RuntimeError('"missing" is not found')
        cameras = (1,) if root == "one_camera" else (1, 2)
        items = [("x.jpg", pid, camera) for pid in range(3) for camera in cameras]
        super().__init__(items, items, items, **kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), None),
        (("SOLVER.IMS_PER_BATCH", "16"), "needs 4 identities .* has 3"),
        (("SOLVER.IMS_PER_BATCH", "10"), "multiple of DATALOADER.NUM_INSTANCE 4"),
        (("DATALOADER.SAMPLER_TRAIN", "TrainingSampler", "SOLVER.IMS_PER_BATCH", "10"), None),
        (("DATASETS.ROOT", "one_camera"), "query's own camera, .* second camera"),
        (("DATASETS.ROOT", "missing"), "FewPeople cannot be opened"),
    ],
)
def test_image_runs_that_would_hang_or_fail_late(tmp_path, options, message):
    cfg = load_config(
        "",
        ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "DATASETS.NAMES", "('FewPeople',)",
         "DATASETS.TESTS", "('FewPeople',)", "SOLVER.IMS_PER_BATCH", "8",
         "DATALOADER.SAMPLER_TRAIN", "BalancedIdentitySampler", "DATALOADER.NUM_INSTANCE", "4",
         "MODEL.BACKBONE.PRETRAIN", "False", *options],
    )  # fmt: skip
    found = texts(cfg)
    assert len(found) == (message is not None)
    assert all(re.search(message, text) for text in found)


@pytest.mark.parametrize(("store", "said"), [("", True), ("skeletons", False)])
def test_star_without_a_store_is_mentioned(tiny_root, tmp_path, store, said):
    found = texts(star_config(tiny_root, tmp_path, "DATASETS.SKELETONS", store), fatal=False)
    assert any("DATASETS.SKELETONS is empty" in text for text in found) == said


def test_kinds_of_datasets():
    assert all_video(("HITSZVCM", "SyntheticVCM"))
    assert not all_video(("Market1501",))
    for names in ((), ("HITSZVCM", "Market1501")):
        with pytest.raises(UserError, match=r"DATASETS\.TESTS must name datasets of one kind"):
            all_video(names, "TESTS")
