"""What is wrong with a run is reported at once, before its first step, with its cure."""

import re

import pytest
import torch

from fastreid_star.engine.checks import check, machine, require
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

from ..tiny import DEMO, STAR_DEMO, tiny_config, tiny_options
from .problems import texts


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
    single = ("SOLVER.IMS_PER_BATCH", "24", "MODEL.LOSSES.NAME", "('FrameCrossEntropyLoss',)")
    found = texts(tiny_config(tiny_root, tmp_path, *single), world_size=6)
    assert not any("two identities" in text for text in found)


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
