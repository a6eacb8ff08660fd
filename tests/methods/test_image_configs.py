"""The settings of the methods for images are those of their programs."""

import pytest
from fastreid.config import get_cfg

from fastreid_star.engine.configs import shipped_configs

SGD = {"OPT": "SGD", "BASE_LR": 0.1, "BACKBONE_LR_FACTOR": 0.1, "NESTEROV": True}
ADAM = {"OPT": "Adam", "BACKBONE_LR_FACTOR": 1.0}
FLIPPED = {"pad": False, "REA": False, "AUGMENTATIONS": []}
COLORED = {"pad": True, "REA": False, "AUGMENTATIONS": ["erasing", "channel_choice"]}
# epochs, milestones; the rest of the schedule; what is done to the pixels
PROGRAMS = {
    "CAJL": (100, [20, 50], SGD, COLORED),
    "DDAG": (81, [20, 50], SGD, FLIPPED | {"pad": True}),
    "LbA": (81, [20, 50], SGD, FLIPPED),
    "MPANet": (140, [80, 120], ADAM | {"BASE_LR": 3.5e-4}, FLIPPED | {"pad": True, "REA": True}),
    "SGIEL": (120, [20, 85], SGD, COLORED),
    "VCD": (42, [15], ADAM | {"BASE_LR": 2.6e-4, "WARMUP_ITERS": 240}, FLIPPED),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_settings_of_the_programs(name):
    epochs, milestones, solver, pixels = PROGRAMS[name]
    cfg = get_cfg()
    cfg.merge_from_file(str(shipped_configs()[f"HITSZ-VCM/{name}_R50.yml"]))
    assert (cfg.SOLVER.MAX_EPOCH, list(cfg.SOLVER.STEPS)) == (epochs, milestones)
    assert {key: cfg.SOLVER[key] for key in solver} == solver
    assert cfg.SOLVER.WEIGHT_DECAY == cfg.SOLVER.WEIGHT_DECAY_NORM == 5e-4
    found = {"pad": cfg.INPUT.PADDING.ENABLED, "REA": cfg.INPUT.REA.ENABLED}
    assert found | {"AUGMENTATIONS": list(cfg.INPUT.AUGMENTATIONS)} == pixels
    assert cfg.MODEL.UNIT == "frame"
    assert cfg.MODEL.BACKBONE.PADDED_POOL, "torchvision's, with which all programs start"
    assert cfg.INPUT.CLIP.TRAIN_LENGTH == 3
    assert not cfg.INPUT.CLIP.SHARED_GEOMETRY
