"""The protocol that an evaluation prints names ours, for networks of single frames."""

import json

import pytest
import torch

from fastreid_star.engine.trainer import Trainer

from ..tiny import tiny_config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("MODEL.UNIT", "frame"), "single frames (their features: mean over the clip)"),
        (
            ("MODEL.UNIT", "frame", "MODEL.HEADS.JOIN", "normalized"),
            "single frames (their features: unit length, then mean over the clip)",
        ),
    ],
)
def test_protocol(tiny_root, tmp_path, options, words):
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.HEADS.NUM_CLASSES", "6", *options)
    torch.manual_seed(0)
    Trainer.test(cfg, Trainer.build_model(cfg))
    found = json.loads((tmp_path / "results_SyntheticVCM.json").read_text())["protocol"]
    assert found == f"ours of {words}"
