"""All that is wrong with a run is told at once, with its cure; most single refusals are in tests/test_train_net.py."""

import functools
import math
import re
import shutil
import time

import numpy as np
import pytest
import torch

from fastreid_star.data.build import all_video, build_dataset
from fastreid_star.data.datasets.synthetic import write_info_files_at_true_size
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.engine import checks_config, checks_data, checks_machine
from fastreid_star.engine.checks import check, problems
from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.job import Job
from fastreid_star.engine.solver import build_optimizer
from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.errors import UserError

from .conftest import DEMO, REPOSITORY, tiny_config, tiny_options

STAR = DEMO.replace("SAD_demo", "STAR_demo")


def texts(cfg, *, fatal=True, **job):
    return [problem.text for problem in problems(Job(cfg, **job)) if problem.fatal == fatal]


def star_config(root, output, *more):
    return load_config(STAR, tiny_options(root, output, *more))


def test_everything_is_told_at_once_numbered(tiny_root, tmp_path):
    (tmp_path / "file").write_text("")
    wrong = {
        "SOLVER.BASE_LR": 0.0,
        "SOLVER.OPT": "Adom",
        "MODEL.HEADS.NAME": "ClipHed",
        "MODEL.LOSSES.NAME": "('CrossEntropyLoss', 'Triplet')",
        "INPUT.SIZE_TEST": [64],
        "TEST.RANKS": [5, 1],
        "SOLVER.IMS_PER_BATCH": 6,
        "DATASETS.SKELETONS": "nowhere",
        "MODEL.WEIGHTS": "none.pth",
        "OUTPUT_DIR": tmp_path / "file" / "out",
    }
    with pytest.raises(UserError) as caught:
        check(tiny_config(tiny_root, tmp_path, *(part for pair in wrong.items() for part in pair)))
    first, *lines = str(caught.value).splitlines()
    assert first == "10 problems:"
    assert [line.split(". ")[0] for line in lines] == [str(number) for number in range(1, 11)]
    for words in (
        *(key for key in wrong if key not in ("TEST.RANKS", "DATASETS.SKELETONS", "MODEL.WEIGHTS")),
    ):
        assert sum(words in line for line in lines) == 1, words
    assert any("ranks (TEST.RANKS) must be" in line for line in lines)
    assert any("skeleton store" in line and "nowhere" in line for line in lines)
    assert any("none.pth does not exist" in line for line in lines)


def test_a_good_run_has_nothing_to_be_told(tiny_root, tmp_path):
    for path in (DEMO, STAR):
        assert problems(Job(load_config(path, tiny_options(tiny_root, tmp_path)))) == []


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("*/**/*.yml")), ids=lambda path: path.stem
)
def test_configs_that_come_with_the_project_have_no_problem_of_their_own(path, tmp_path):
    job = Job(load_config(str(path), ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]))
    assert [problem for one in checks_config.CHECKS for problem in one(job)] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.BASE_LR", "-0.1"), r"SOLVER\.BASE_LR is -0\.1: give a number above 0"),
        (("SOLVER.BASE_LR", "1e999"), r"SOLVER\.BASE_LR is inf"),
        (("SOLVER.MAX_EPOCH", "0"), r"SOLVER\.MAX_EPOCH is 0: give 1 or more"),
        (("SOLVER.MOMENTUM", "1.0"), r"SOLVER\.MOMENTUM is 1\.0"),
        (
            ("SOLVER.OPT", "SGD", "SOLVER.MOMENTUM", "0.0"),
            r"SOLVER\.NESTEROV needs SOLVER\.MOMENTUM",
        ),
        (
            ("SOLVER.WARMUP_METHOD", "cubic"),
            r"WARMUP_METHOD is 'cubic': choose one of linear, constant, exp",
        ),
        (
            ("SOLVER.STEPS", "[2, 1]"),
            r"SOLVER\.STEPS is \[2, 1\]: give whole numbers .* in ascending order",
        ),
        (("SOLVER.STEPS", "['two']"), r"SOLVER\.STEPS is \['two'\]"),
        (("SOLVER.STEPS", "[1]", "SOLVER.WARMUP_EPOCHS", "2"), r"inside the warm-up"),
        (
            ("SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.WARMUP_EPOCHS", "3"),
            r"no epoch is left for Cosine",
        ),
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float8"), r"AMP\.DTYPE is 'float8'"),
        (("SOLVER.IMS_PER_BATCH", "28"), r"a batch of 7 identities, but the training set has 6"),
        (("SOLVER.IMS_PER_BATCH", "4"), r"TripletLoss needs two identities"),
        (("MODEL.LOSSES.CE.EPSILON", "-1.0"), r"CE\.EPSILON is -1\.0"),
        (("MODEL.LOSSES.TRI.MARGIN", "-0.3"), r"TRI\.MARGIN is -0\.3"),
        (
            ("MODEL.LOSSES.NAME", "('SkeletonConsistencyLoss',)"),
            r"has SkeletonConsistencyLoss: SAD knows",
        ),
        (("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"), r"MODEL\.PIXEL_STD is"),
        (("MODEL.SAD.AUGMENT_RANGE", "[2.0, 0.5]"), r"AUGMENT_RANGE is \[2\.0, 0\.5\]"),
        (("INPUT.FLIP.PROB", "1.5"), r"INPUT\.FLIP\.PROB is 1\.5: give a share"),
        (("INPUT.CJ.ENABLED", "True"), r"INPUT\.CJ\.ENABLED"),
        (("DATASETS.NAMES", "(3,)"), r"no dataset is named 3"),
        (("DATASETS.NAMES", "[['SyntheticVCM']]"), r"no dataset is named \['SyntheticVCM'\]"),
        (("DATASETS.TESTS", "()"), r"DATASETS\.TESTS must name datasets"),
        (("DATASETS.SKELETONS_TRAIN", "other"), r"DATASETS\.SKELETONS_TRAIN other shows"),
        (
            ("DATASETS.SKELETONS_TEST", "mine"),
            r"SKELETONS_TEST is 'mine': choose one of own, other, none",
        ),
        (
            ("MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "no.pth"),
            r"no\.pth does not exist",
        ),
    ],
)
def test_one_problem_is_one_line(tiny_root, tmp_path, options, message):
    (text,) = texts(tiny_config(tiny_root, tmp_path, *options))
    assert re.search(message, text)
    assert "\n" not in text
    with pytest.raises(UserError) as caught:
        check(tiny_config(tiny_root, tmp_path, *options))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.HEADS.NAME", "ClipHead"), r"set MODEL\.HEADS\.NAME GATGeMHead"),
        (
            ("MODEL.STAR.BONES", "raw"),
            r"MODEL\.STAR\.BONES is 'raw': choose one of normalized, release",
        ),
        (("MODEL.STAR.EXPONENTS", "[0.0, 1.0]"), r"MODEL\.STAR\.EXPONENTS is \[0\.0, 1\.0\]"),
        (("MODEL.STAR.SKELETON_DROPOUT", "2.0"), r"SKELETON_DROPOUT is 2\.0"),
    ],
)
def test_what_only_star_reads(tiny_root, tmp_path, options, message):
    (text,) = texts(star_config(tiny_root, tmp_path, *options))
    assert re.search(message, text)


def test_processes_must_share_the_batch(tiny_root, tmp_path):
    cfg = tiny_config(tiny_root, tmp_path, "SOLVER.IMS_PER_BATCH", "24")
    assert texts(cfg, world_size=3) == []
    assert [text for text in texts(cfg, world_size=4) if "do not divide among 4 processes" in text]
    assert [text for text in texts(cfg, world_size=6) if "TripletLoss needs two identities" in text]


# --- evaluation only ------------------------------------------------------------------------------------------------


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


def test_an_evaluation_tells_everything_at_once(tiny_root, tmp_path):
    options = tiny_options(tiny_root, tmp_path, "TEST.RANKS", "[0]", "MODEL.WEIGHTS", "none.pth")
    with pytest.raises(
        UserError, match=r"^2 problems:\n1\. ranks .*\n2\. checkpoint none\.pth does not exist"
    ):
        train_or_evaluate(
            argument_parser("test").parse_args(["--config-file", DEMO, "--eval-only", *options])
        )
    options = tiny_options(tiny_root, tmp_path)
    with pytest.raises(UserError, match=r"^--eval-only needs weights"):
        train_or_evaluate(
            argument_parser("test").parse_args(["--config-file", DEMO, "--eval-only", *options])
        )


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_root(tiny_root, tmp_path):
    """The tiny dataset, to be spoilt."""
    shutil.copytree(tiny_root / "SyntheticVCM", tmp_path / "own" / "SyntheticVCM")
    return tmp_path / "own"


def test_tracklets_without_images_are_found_before_training_comes_to_them(own_root, tmp_path):
    for path in (own_root / "SyntheticVCM" / "Test").rglob("*.jpg"):
        path.unlink()
    (text,) = texts(tiny_config(own_root, tmp_path))
    assert re.match(
        r"16 of 16 test tracklets looked up in .*SyntheticVCM have no images, such as .*1\.jpg: ",
        text,
    )
    shutil.rmtree(own_root / "SyntheticVCM" / "Train" / "0003" / "ir")
    train, test = texts(tiny_config(own_root, tmp_path))
    assert re.match(r"[12] of 20 training tracklets looked up .*0003/ir", train)
    assert test == text


def test_a_frame_that_is_missing_is_replaced_and_no_problem(own_root, tmp_path):
    for path in (own_root / "SyntheticVCM" / "Train").rglob("1.jpg"):
        path.unlink()
    assert problems(Job(tiny_config(own_root, tmp_path))) == []


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
        r"\d+ of \d+ skeletons looked up in .* do not fit their frames; the first: .*times as large",
        text,
    )
    check(cfg)
    assert text in caplog.text


def test_datasets_are_opened_once(own_root, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "fastreid_star.engine.job.build_dataset",
        lambda *args, **kwargs: opened.append(args[1]) or build_dataset(*args, **kwargs),
    )
    check(star_config(own_root, tmp_path))
    assert opened == ["SyntheticVCM"]


def test_combined_training_counts_the_test_identities_too(tiny_root, tmp_path):
    cfg = tiny_config(
        tiny_root, tmp_path, "SOLVER.IMS_PER_BATCH", "40", "DATASETS.COMBINEALL", "True"
    )
    assert texts(cfg) == []


def test_the_real_size_is_looked_through_in_seconds(tmp_path, monkeypatch):
    without_images = functools.partial(build_dataset, check_frames=False)
    monkeypatch.setattr("fastreid_star.engine.job.build_dataset", without_images)
    write_info_files_at_true_size(tmp_path / "HITSZ-VCM")
    options = [
        "DATASETS.ROOT",
        str(tmp_path),
        "MODEL.DEVICE",
        "cpu",
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    cfg = load_config(str(REPOSITORY / "configs" / "HITSZ-VCM" / "SAD_R50.yml"), options)
    start = time.process_time()
    train, test = texts(cfg)
    assert time.process_time() - start < 10, "about 1 s on an idle core"
    assert train.startswith("20 of 20 training tracklets")
    assert test.startswith("20 of 20 test tracklets")


def test_samples_are_spread():
    assert checks_data.spread(list(range(5)), 20) == [0, 1, 2, 3, 4]
    assert checks_data.spread(list(range(1001)), 5) == [0, 250, 500, 750, 1000]


# --- the machine ----------------------------------------------------------------------------------------------------


def test_weights_that_are_none_are_refused_before_training(tiny_root, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.WEIGHTS", tmp_path / "text.pth")
    (text,) = texts(cfg)
    assert "text.pth cannot be read" in text
    (tmp_path / "last_checkpoint").write_text("model_last.pth")
    assert texts(cfg) == [], "a run that goes on does without"


def test_a_device_too_few(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(checks_machine.devices, "device_count", lambda name: 2)
    (text,) = texts(tiny_config(tiny_root, tmp_path), local_size=3)
    assert text == "--num-devices 3: this machine shows 2 device(s)"


def test_little_shared_memory_is_warned_of(tiny_root, tmp_path, monkeypatch):
    cfg = tiny_config(tiny_root, tmp_path, "DATALOADER.NUM_WORKERS", "2", "TEST.IMS_PER_BATCH", "4")
    # 8 clips of 3 frames of 3 x 32 x 16 bytes, 3 batches of 2 workers
    assert checks_machine.bytes_of_workers(Job(cfg)) == 8 * 3 * 3 * 32 * 16 * 3 * 2
    assert checks_machine.bytes_of_workers(Job(cfg, training=False)) == 4 * 3 * 3 * 32 * 16 * 3 * 2
    monkeypatch.setattr(checks_machine, "SHARED_MEMORY", str(tmp_path))
    for free, count in ((221184, 0), (221183, 1)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(0, 0, free)
        )
        assert len(texts(cfg, fatal=False)) == count


def test_little_room_for_checkpoints_is_warned_of(tiny_root, tmp_path, monkeypatch):
    cfg = tiny_config(tiny_root, tmp_path, "SOLVER.CHECKPOINT_KEEP", "1")
    trainer = Trainer(cfg)
    trainer.train()
    size = (tmp_path / "model_final.pth").stat().st_size
    estimates = []
    for free in (0, 10**12):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(0, 0, free)
        )
        estimates.append(checks_machine.little_room(cfg, trainer.model, trainer.optimizer))
    assert estimates[1] is None
    estimate = float(re.search(r"about ([\d.,]+) MiB", estimates[0])[1]) * 2**20
    assert estimate == pytest.approx(3 * size, rel=0.15)


@pytest.mark.parametrize(
    ("name", "momentum", "copies"), [("SGD", 0.0, 0), ("SGD", 0.9, 1), ("AdamW", 0.9, 2)]
)
def test_what_an_optimizer_keeps_is_counted(tmp_path, monkeypatch, name, momentum, copies):
    options = ["SOLVER.OPT", name, "SOLVER.MOMENTUM", str(momentum), "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config("", [*options, "SOLVER.CHECKPOINT_KEEP", "2"])
    model = torch.nn.Linear(1024, 1024, bias=False)  # 4 MiB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    text = checks_machine.little_room(cfg, model, build_optimizer(cfg, model))
    assert f"about {4 * 4 * (1 + copies)} MiB" in text


# --- rest -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "said"), [("", True), ("skeletons", False)])
def test_star_without_a_store_is_mentioned(tiny_root, tmp_path, caplog, store, said):
    check(star_config(tiny_root, tmp_path, "DATASETS.SKELETONS", store))
    assert ("DATASETS.SKELETONS is empty" in caplog.text) == said


def test_the_baseline_needs_no_store(tiny_root, tmp_path, caplog):
    check(tiny_config(tiny_root, tmp_path))
    assert "DATASETS.SKELETONS" not in caplog.text


def test_kinds_of_datasets():
    assert all_video(("HITSZVCM", "SyntheticVCM"))
    assert not all_video(("Market1501",))
    for names in ((), ("HITSZVCM", "Market1501")):
        with pytest.raises(UserError, match=r"DATASETS\.TESTS must name datasets of one kind"):
            all_video(names, "TESTS")


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, [1]])
def test_what_is_no_number(value):
    assert not checks_config.is_number(value)


def test_every_key_that_is_checked_exists(tiny_root, tmp_path):
    cfg = tiny_config(tiny_root, tmp_path)
    tables = (
        checks_config.NUMBERS, checks_config.NUMBERS_OF_TRAINING, checks_config.NUMBERS_OF_STAR,
        checks_config.CHOICES_OF_TRAINING, checks_config.CHOICES_OF_STAR,
    )  # fmt: skip
    for key in (key for table in tables for key in table):
        assert checks_config.value_of(cfg, key) is not None or key == "SOLVER.WARMUP_METHOD", key
