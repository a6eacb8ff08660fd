"""What is wrong with a run is reported at once, before its first step, with its cure."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from PIL import Image

from fastreid_star.data.build import all_video, build_dataset
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.engine.checks import check, machine, require
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

from ..tiny import DEMO, STAR_DEMO, star_config, tiny_config, tiny_options


def texts(cfg, *, fatal=True, **run):
    return [problem.text for problem in check(cfg, **run) if problem.fatal == fatal]


def test_everything_is_told_at_once_numbered(tiny_root, tmp_path):
    wrong = {
        "SOLVER.BASE_LR": 0.0,
        "MODEL.HEADS.NAME": "ClipHed",
        "INPUT.SIZE_TEST": [64],
        "SOLVER.IMS_PER_BATCH": 6,
        "DATASETS.SKELETONS": "nowhere",
        "MODEL.WEIGHTS": "none.pth",
    }
    with pytest.raises(UserError) as caught:
        require(tiny_config(tiny_root, tmp_path, *(p for pair in wrong.items() for p in pair)))
    first, *lines = str(caught.value).splitlines()
    assert first == "6 problems:"
    assert [line.split(". ")[0] for line in lines] == list("123456")
    for words in ("BASE_LR", "ClipHed", "SIZE_TEST", "IMS_PER_BATCH 6", "nowhere", "none.pth"):
        assert sum(words in line for line in lines) == 1, words


def test_a_good_run_has_nothing_to_be_told(tiny_root, tmp_path):
    for path in (DEMO, STAR_DEMO):
        assert check(load_config(path, tiny_options(tiny_root, tmp_path))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.BASE_LR", "-0.1"), r"BASE_LR is -0\.1: give a number above 0"),
        (("SOLVER.BASE_LR", "1e999"), r"BASE_LR is inf"),
        (("SOLVER.MAX_EPOCH", "0"), r"MAX_EPOCH is 0: give 1 or more"),
        (("SOLVER.STEPS", "[2, 1]"), r"SOLVER\.STEPS"),
        (("SOLVER.STEPS", "[1]", "SOLVER.WARMUP_EPOCHS", "2"), r"inside the warm-up"),
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float8"), r"AMP\.DTYPE is 'float8'"),
        (("SOLVER.IMS_PER_BATCH", "28"), r"a batch of 7 identities, but the training set has 6"),
        (("SOLVER.IMS_PER_BATCH", "4"), r"TripletLoss needs two identities"),
        (
            (
                "MODEL.LOSSES.NAME",
                "('CrossEntropyLoss','ModalityAlignmentLoss')",
                "SOLVER.IMS_PER_BATCH",
                "4",
            ),
            r"ModalityAlignmentLoss needs two identities",
        ),
        (
            ("DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler", "SOLVER.IMS_PER_BATCH", "7"),
            r"7 is not identities x DATALOADER\.NUM_INSTANCE 2: .* multiple of 2",
        ),
        (
            (
                "MODEL.LOSSES.NAME",
                "('CrossEntropyLoss','ReconstructionLoss')",
                "DATALOADER.SAMPLER_TRAIN",
                "NaiveIdentitySampler",
            ),
            r"ReconstructionLoss pairs .* set it to TrainingSampler",
        ),
        (("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"), r"MODEL\.PIXEL_STD is"),
        (("MODEL.HEADS.NUM_CLASSES", "5"), r"NUM_CLASSES is 5, .* has 6 identities"),
        (("INPUT.CJ.ENABLED", "True"), r"INPUT\.CJ\.ENABLED"),
        (("TEST.RANKS", "[5, 1]"), r"TEST\.RANKS"),
        (("DATASETS.NAMES", "(3,)"), r"no dataset is named 3"),
        (("DATASETS.NAMES", "[['SyntheticVCM']]"), r"no dataset is named"),
        (("DATASETS.TESTS", "()"), r"DATASETS\.TESTS must name datasets"),
        (("DATASETS.SKELETONS_TRAIN", "other"), r"DATASETS\.SKELETONS_TRAIN other shows"),
        (("DATASETS.SKELETONS_TEST", "mine"), r"SKELETONS_TEST is 'mine'"),
        (("MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "no.pth"), r"no\.pth"),
    ],
)
def test_one_problem_is_one_line(tiny_root, tmp_path, options, message):
    (text,) = texts(tiny_config(tiny_root, tmp_path, *options))
    assert re.search(message, text)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.OPT", "Adom"), r"SOLVER\.OPT 'Adom'"),
        (("SOLVER.SCHED", "Foo"), "SOLVER.*Foo"),
        (("SOLVER.OPT", "SGD", "SOLVER.MOMENTUM", "-1.0"), "SOLVER.*momentum"),
        (("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "foo"),
         "foo"),
        (("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "99x"), "99x"),
        (("MODEL.HEADS.CLS_LAYER", "Foo"), "Foo"),
        (("MODEL.LOSSES.CE.EPSILON", "1.5"), r"EPSILON is 1\.5: choose a share up to 1"),
        (("MODEL.LOSSES.NAME", "('CrossEntropyLoss','SkeletonConsistencyLoss')"), "bone_states"),
        (("TEST.PRECISE_BN.ENABLED", "True"), "PRECISE_BN"),
        (("TEST.RERANK.ENABLED", "True", "TEST.RERANK.K1", "0"), "K1 is 0"),
        (("TEST.FLIP.ENABLED", "True"), r"TEST\.FLIP\.ENABLED"),
        (("DATALOADER.SAMPLER_TRAIN", "SetReWeightSampler"), r"DATALOADER\.SAMPLER_TRAIN"),
        (("KD.EMA.ENABLED", "True"), r"KD\.EMA\.ENABLED"),
        (("MODEL.FREEZE_LAYERS", "['bckbone']", "SOLVER.FREEZE_ITERS", "9"), "mean backbone"),
    ],
)  # fmt: skip
def test_what_only_building_tells_is_one_line_before_the_first_step(
    tiny_root, tmp_path, options, message
):
    with pytest.raises(UserError, match=message) as caught:
        Trainer(tiny_config(tiny_root, tmp_path, *options))
    assert "\n" not in str(caught.value)


def test_keys_without_effect_are_named(tiny_root, tmp_path, caplog):
    unused = ("MODEL.HEADS.MARGIN", "0.7", "KD.EMA.MOMENTUM", "0.5", "SOLVER.GAMMA", "0.2")
    pooling = ("MODEL.HEADS.POOL_LAYER", "GeneralizedMeanPooling")  # clips are pooled by GEM_P
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *unused, *pooling))
    (line,) = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
    assert "KD.EMA.MOMENTUM" in line
    assert "MODEL.HEADS.POOL_LAYER" in line
    assert "SOLVER.GAMMA" not in line
    caplog.clear()
    assert trainer.cfg.clone().SOLVER.GAMMA == 0.2
    for path in (DEMO, STAR_DEMO):
        Trainer(load_config(path, tiny_options(tiny_root, tmp_path)))
    assert "without effect" not in caplog.text


def test_processes_must_share_the_batch(tiny_root, tmp_path):
    cfg = tiny_config(tiny_root, tmp_path, "SOLVER.IMS_PER_BATCH", "24")
    assert texts(cfg, world_size=3) == []
    assert [text for text in texts(cfg, world_size=4) if "do not divide among 4 processes" in text]
    assert [text for text in texts(cfg, world_size=6) if "TripletLoss needs two identities" in text]
    entropies = "'CrossEntropyLoss','FrameCrossEntropyLoss'"
    for losses, count in ((f"({entropies})", 0), (f"({entropies},'AbsentSkeletonLoss')", 1)):
        more = ("SOLVER.IMS_PER_BATCH", "24", "MODEL.LOSSES.NAME", losses)
        found = texts(tiny_config(tiny_root, tmp_path, *more), world_size=6)
        assert sum("AbsentSkeletonLoss needs two identities" in text for text in found) == count
        assert not any("TripletLoss needs" in text for text in found)


def test_an_evaluation_is_not_refused_for_what_only_training_reads(tiny_root, tmp_path):
    weights = tmp_path / "model.pth"
    torch.save({"model": {}}, weights)
    unread = (
        "SOLVER.BASE_LR",
        "0.0",
        "SOLVER.IMS_PER_BATCH",
        "7",
        "DATASETS.NAMES",
        "('HITSZVCM',)",
    )
    cfg = tiny_config(tiny_root, tmp_path, *unread, "MODEL.WEIGHTS", weights)
    assert texts(cfg, training=False) == []
    assert len(texts(cfg)) == 3
    assert "MODEL.WEIGHTS" in texts(tiny_config(tiny_root, tmp_path), training=False)[0]


# --- data -----------------------------------------------------------------------------------------


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


# --- the machine ----------------------------------------------------------------------------------


def test_weights_that_are_none_are_refused_before_training(tiny_root, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.WEIGHTS", tmp_path / "text.pth")
    (text,) = texts(cfg)
    assert "text.pth cannot be read" in text
    (tmp_path / "last_checkpoint").write_text("model_last.pth")
    assert texts(cfg) == [], "a run that goes on does without"


def test_a_device_too_few(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(machine.devices, "device_count", lambda name: 2)
    (text,) = texts(tiny_config(tiny_root, tmp_path), local_size=3)
    assert "--num-devices 3" in text


# --- rest -----------------------------------------------------------------------------------------


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
