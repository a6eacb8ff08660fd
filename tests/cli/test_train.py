"""Training as a user starts it: shipped configs, datasets of images, and what bad input says."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from fastreid.engine.train_loop import HookBase
from PIL import Image

from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.interruption import Interrupted
from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.weights import read_checkpoint

SAD = "HITSZ-VCM/SAD_R50.yml"
R18 = {"MODEL.BACKBONE.DEPTH": "18x", "MODEL.BACKBONE.PRETRAIN": False}
SMALL = SyntheticOptions(train_ids=3, test_ids=2, tracklets=2, frames=12, size=(32, 16))


def words(options):
    return [str(part) for pair in options.items() for part in pair]


def run(config, options, *flags):
    arguments = ["--config-file", str(config), *flags, *words(options)]
    return train_or_evaluate(argument_parser("test").parse_args(arguments))


def small(root, output, **more):
    """Options that make a config of HITSZ-VCM fit a test."""
    return {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "cpu",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "INPUT.CLIP.LENGTH": 2,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCH": 1,
    }


@pytest.fixture(scope="module")
def good_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    write_synthetic_vcm(root / "HITSZ-VCM", SMALL)
    return root


def test_evaluation_repeats_the_result_of_training(good_root, tmp_path):
    options = {**small(good_root, tmp_path / "out"), **R18}
    trained = run(SAD, options)
    config = (tmp_path / "out" / "config.yaml").read_text()
    weights = {"MODEL.WEIGHTS": tmp_path / "out" / "model_final.pth"}
    assert run(tmp_path / "out" / "config.yaml", weights, "--eval-only") == trained
    assert (tmp_path / "out" / "config.yaml").read_text() == config
    assert "without effect" not in (tmp_path / "out" / "log.txt").read_text()
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert any("I2V/mAP" in json.loads(line) for line in lines)


# --- bad input --------------------------------------------------------------------------------


def missing_root(root):
    shutil.rmtree(root)


def half_a_layout(root):
    (root / "HITSZ-VCM" / "info" / "track_test_info.txt").unlink()


def no_train_folder(root):
    shutil.rmtree(root / "HITSZ-VCM" / "Train")


def index_out_of_range(root):
    path = root / "HITSZ-VCM" / "info" / "track_train_info.txt"
    path.write_text(path.read_text().replace("2 1 12 ", "2 1 99999 ", 1))


def query_from_zero(root):
    path = root / "HITSZ-VCM" / "info" / "query_IDX.txt"
    path.write_text(" ".join(str(int(number) - 1) for number in path.read_text().split()) + " ")


def one_modality_only(root):
    path = root / "HITSZ-VCM" / "info" / "track_train_info.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if not (x.startswith("1 ") and " 0001 " in x)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_root, r"DATASETS\.ROOT"),
        (half_a_layout, r"track_test_info\.txt"),
        (no_train_folder, "Train"),
        (index_out_of_range, "count from 1"),
        (query_from_zero, "counted from 1"),
        (one_modality_only, "one modality only"),
    ],
)
def test_bad_data_is_one_line_before_training(good_root, tmp_path, monkeypatch, damage, message):
    root = tmp_path / "data"
    shutil.copytree(good_root, root)
    damage(root)
    assert_refused(monkeypatch, message, root, tmp_path / "out", R18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("SOLVER.IMS_PER_BATCH 64", "16 identities, but the training set has 3"),
        ("DATASETS.SKELETONS nowhere", "nowhere"),
        ("SOLVER.BASE_LT 1", r"did you mean SOLVER\.BASE_LR"),
        ("DATASETS.NAMES ('HITSZVMC',) DATASETS.TESTS ('HITSZVMC',)", "did you mean HITSZVCM"),
        ("KD.EMA.ENABLED True", r"KD\.EMA"),
        ("INPUT.SIZE_TRAIN [64]", r"INPUT\.SIZE_TRAIN is \[64\]"),
        ("INPUT.CLIP.LENGTH 0", r"INPUT\.CLIP\.LENGTH is 0"),
        ("MODEL.LOSSES.NAME ('Triplet',)", "Triplet"),
        ("MODEL.DEVICE tpu", "tpu"),
        ("MODEL.META_ARCHITECTURE SADD", "SADD"),
        ("MODEL.META_ARCHITECTURE Baseline", "takes images"),
        ("MODEL.HEADS.NAME ClipHed", "ClipHed"),
        ("SOLVER.SCHED Foo", "Foo"),
        ("SOLVER.STEPS [3]", "inside the warm-up"),
        ("DATASETS.MIN_FRAMES 13", "MIN_FRAMES"),
        (
            "MODEL.BACKBONE.PRETRAIN True MODEL.BACKBONE.PRETRAIN_PATH nowhere.pth",
            r"nowhere\.pth.*PRETRAIN_PATH",
        ),
    ],
)
def test_a_bad_config_is_one_line_before_training(
    good_root, tmp_path, monkeypatch, options, message
):
    pairs = options.split()
    more = {**R18, **dict(zip(pairs[::2], pairs[1::2], strict=True))}
    assert_refused(monkeypatch, message, good_root, tmp_path / "out", more)


def test_an_output_folder_that_cannot_be_written_is_one_line(good_root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert_refused(monkeypatch, "OUTPUT_DIR", good_root, tmp_path / "file" / "out", R18)


def assert_refused(monkeypatch, message, root, output, more):
    monkeypatch.setattr(Trainer, "train", lambda self: pytest.fail("training started"))
    with pytest.raises(UserError, match=message) as caught:
        run(SAD, {**small(root, output), **more})
    assert "\n" not in str(caught.value)
    assert not list(output.glob("*.pth"))


def test_broken_frames_are_replaced_and_counted(good_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(good_root, root)
    for split in ("Train", "Test"):
        for number, path in enumerate(sorted((root / "HITSZ-VCM" / split).rglob("*.jpg"))[::3]):
            path.write_bytes(b"" if number % 2 else path.read_bytes()[:200])
    results = run(SAD, {**small(root, tmp_path / "out"), **R18})
    assert results["mean/mAP"] > 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "broken frames were replaced" in log
    assert "broken test frames were replaced" in log


# --- datasets of images ----------------------------------------------------------------------

BAG_OF_TRICKS = """
MODEL:
  META_ARCHITECTURE: Baseline
  BACKBONE: {NAME: build_resnet_backbone, NORM: BN, DEPTH: 18x, LAST_STRIDE: 1, FEAT_DIM: 512,
             PRETRAIN: False}
  HEADS: {NAME: EmbeddingHead, NORM: BN, WITH_BNNECK: True, POOL_LAYER: GlobalAvgPool,
          NECK_FEAT: before, CLS_LAYER: Linear}
  LOSSES:
    NAME: ("CrossEntropyLoss", "TripletLoss",)
    CE: {EPSILON: 0.1, SCALE: 1.}
    TRI: {MARGIN: 0.3, HARD_MINING: True, NORM_FEAT: False, SCALE: 1.}
  DEVICE: cpu
INPUT:
  SIZE_TRAIN: [32, 16]
  SIZE_TEST: [32, 16]
  REA: {ENABLED: True, PROB: 0.5}
  FLIP: {ENABLED: True}
  PADDING: {ENABLED: True}
DATALOADER: {SAMPLER_TRAIN: NaiveIdentitySampler, NUM_INSTANCE: 4, NUM_WORKERS: 0}
SOLVER: {AMP: {ENABLED: False}, OPT: Adam, MAX_EPOCH: 3, BASE_LR: 0.00035, STEPS: [2],
         WARMUP_ITERS: 2, IMS_PER_BATCH: 16, CHECKPOINT_PERIOD: 1}
TEST: {EVAL_PERIOD: 3, IMS_PER_BATCH: 16, FLIP: {ENABLED: True}}
DATASETS:
  NAMES: ("Market1501",)
  TESTS: ("Market1501",)
"""


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A folder in the layout of Market-1501: people of one color each, two cameras."""
    root = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 215, (16, 3))
    splits = {
        "bounding_box_train": (range(1, 9), 4),
        "query": (range(9, 15), 1),
        "bounding_box_test": (range(9, 15), 3),
    }
    for name, (people, images) in splits.items():
        folder = root / "Market-1501-v15.09.15" / name
        folder.mkdir(parents=True)
        for pid in people:
            for camera in (1, 2):
                for number in range(images):
                    noise = rng.normal(0, 20, (64, 32, 3))
                    image = np.clip(colors[pid] + noise, 0, 255).astype(np.uint8)
                    file = f"{pid:04d}_c{camera}s1_{number:06d}_00.jpg"
                    Image.fromarray(image).save(folder / file)
    (root / "bagtricks.yml").write_text(BAG_OF_TRICKS)
    return root


def test_a_config_of_fastreid_trains_and_evaluates(tmp_path, market):
    options = {"DATASETS.ROOT": market, "OUTPUT_DIR": tmp_path / "out"}
    results = run(market / "bagtricks.yml", options)
    assert {"Rank-1", "mAP", "mINP", "metric"} <= set(results)
    assert results["mAP"] > 60, "each person has one color, so ranking is easy"
    options["MODEL.WEIGHTS"] = tmp_path / "out" / "model_final.pth"
    again = run(market / "bagtricks.yml", options, "--eval-only")
    assert again == pytest.approx(results)


class SignalAfterSix(HookBase):
    def after_step(self):
        if self.trainer.iter + 1 == 6:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_config_of_fastreid_resumes_in_the_middle_of_an_epoch(tmp_path, market):
    """At the step where it was stopped; fast-reid's samplers draw other images from there."""
    options = {"DATASETS.ROOT": market, "OUTPUT_DIR": tmp_path / "out"}
    cfg = load_config(str(market / "bagtricks.yml"), words(options))
    trainer = Trainer(cfg)
    trainer.register_hooks([SignalAfterSix()])
    with pytest.raises(Interrupted):
        trainer.train()
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert (resumed.start_epoch, resumed.start_iter, resumed.max_iter) == (1, 6, 12)
    assert resumed.train()["mAP"] > 30
    saved = read_checkpoint(str(tmp_path / "out" / "model_final.pth"))
    assert (saved["epoch"], saved["iteration"]) == (2, 12)
    assert {int(state["step"]) for state in saved["optimizer"]["state"].values()} == {12}
