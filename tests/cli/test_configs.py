"""The shipped configs, and the command that lists them and explains their keys."""

from pathlib import Path

import pytest
import torch
from fastreid.config import get_cfg

from fastreid_star.cli.configs import MEANINGS, explanations, meaning_of
from fastreid_star.cli.main import run
from fastreid_star.engine.config_changes import flatten
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.methods.star import STAR

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yml"))
BACKBONES = ["R18", "R50-IBN", "S50", "OSNet", "MobileNetV2", "ViT"]


def test_every_config_loads_and_no_two_runs_share_a_folder():
    folders = []
    for path in FILES:
        cfg = load_config(str(path))
        assert cfg.MODEL.BACKBONE.FEAT_DIM == 0, "the width is the backbone's"
        if cfg.MODEL.META_ARCHITECTURE == "STAR":
            assert cfg.DATASETS.SKELETONS, path
        if not path.name.startswith("Base-"):
            folders.append(cfg.OUTPUT_DIR)
    assert len(folders) > 40
    assert len(set(folders)) == len(folders)


def test_figure_6_has_every_cell_once():
    cells = {}
    paths = [*(CONFIGS / "HITSZ-VCM" / "figure6").glob("*.yml"), CONFIGS / "HITSZ-VCM/STAR_R50.yml"]
    for path in paths:
        exponents = load_config(str(path)).MODEL.STAR.EXPONENTS
        cell = (sum(p < 1 for p in exponents), sum(p > 1 for p in exponents))
        assert 1.0 in exponents
        assert cell not in cells, (path, cells)
        cells[cell] = path
        if path.parent.name == "figure6":
            assert path.stem == f"STAR_R50_b{cell[0]}a{cell[1]}"
    assert set(cells) == {(below, above) for below in range(4) for above in range(5)}


@pytest.mark.parametrize("method", ["SAD", "STAR", "SAADG", "MITML", "IBAN"])
def test_bupt_campus_has_its_own_protocol_and_the_same_networks(method):
    cfg = load_config(str(CONFIGS / "BUPTCampus" / f"{method}_R50.yml"))
    assert cfg.DATASETS.NAMES == cfg.DATASETS.TESTS == ("BUPTCampus",)
    assert cfg.DATASETS.MIN_FRAMES == 1, "every tracklet counts"
    assert not cfg.TEST.CAMERA_FILTER
    other = load_config(str(CONFIGS / "HITSZ-VCM" / f"{method}_R50.yml"))
    assert (cfg.MODEL, cfg.SOLVER) == (other.MODEL, other.SOLVER)
    assert cfg.DATASETS.SKELETONS == other.DATASETS.SKELETONS


@pytest.mark.parametrize("backbone", BACKBONES)
def test_star_trains_on_every_backbone_that_has_a_config(backbone):
    options = {
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": 2,
        "MODEL.DEVICE": "cpu",
        "INPUT.SIZE_TRAIN": [64, 32],
    }
    path = str(CONFIGS / "HITSZ-VCM" / f"STAR_{backbone}.yml")
    cfg = load_config(path, [str(part) for pair in options.items() for part in pair])
    torch.manual_seed(0)
    model = STAR(cfg).train()
    batch = {
        "images": torch.randint(0, 256, (4, 1, 3, 64, 32), dtype=torch.uint8),
        "modality": torch.tensor([2, 2, 1, 1]),
        "targets": torch.tensor([0, 1, 0, 1]),
        "skeletons": torch.rand(4, 1, 17, 3) * 32,
        "has_skeleton": torch.ones(4, 1, dtype=torch.bool),
    }
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert {"loss_cls", "loss_triplet"} <= set(losses)


# --- the command ----------------------------------------------------------------------------------


def test_the_list_has_every_config_with_its_comment(capsys):
    run("configs")
    lines = capsys.readouterr().out.splitlines()
    for path in FILES:
        name = path.relative_to(CONFIGS).as_posix()
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 2, f"{name} has no comment"


def test_a_resolved_config_marks_what_differs_from_the_default(capsys):
    run("configs", "Synthetic/STAR_small.yml", "SOLVER.MAX_EPOCH", 3, "--key", "SOLVER.")
    text = capsys.readouterr().out
    assert "* SOLVER.MAX_EPOCH: 3   (default: 120)\n      Epochs of training." in text
    assert "\n  SOLVER.GAMMA: 0.1\n" in text
    assert "MODEL." not in text.replace("see MODEL.", "")
    run("configs", "SOLVER.MAX_EPOCH=3", "Synthetic/STAR_small.yml", "--key", "SOLVER.")
    assert capsys.readouterr().out == text
    with pytest.raises(UserError, match="EXPONENTZ"):
        run("configs", "--key", "EXPONENTZ")


def test_every_key_of_fastreid_and_ours_has_a_meaning():
    keys = flatten(get_cfg())
    meanings = explanations()
    assert len(keys) > 150
    assert not [key for key in keys if meaning_of(key, meanings) == "(not documented)"]
    nodes = {key.rpartition(".")[0] for key in keys}
    assert not set(MEANINGS) - set(keys) - nodes, "a meaning of a key that does not exist"
