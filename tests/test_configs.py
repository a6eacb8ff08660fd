"""Every config file loads, says where its results go, and those of STAR take a training step."""

from pathlib import Path

import pytest
import torch

from fastreid_star.engine.defaults import load_config
from fastreid_star.modeling import STAR

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yml"))
RUNS = [path for path in FILES if not path.name.startswith("Base-")]
BACKBONES = sorted((CONFIGS / "HITSZ-VCM").glob("STAR_*.yml"))


def name(path):
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_it_loads(path):
    cfg = load_config(str(path))
    assert cfg.MODEL.BACKBONE.FEAT_DIM == 0, "the width is the backbone's"
    if cfg.MODEL.META_ARCHITECTURE == "STAR":
        assert cfg.DATASETS.SKELETONS


def test_no_two_runs_share_a_folder():
    folders = [load_config(str(path)).OUTPUT_DIR for path in RUNS]
    assert len(set(folders)) == len(folders)


def test_figure_6_has_every_cell_once():
    cells = {}
    for path in [
        *(CONFIGS / "HITSZ-VCM" / "figure6").glob("*.yml"),
        CONFIGS / "HITSZ-VCM" / "STAR_R50.yml",
    ]:
        exponents = load_config(str(path)).MODEL.STAR.EXPONENTS
        cell = (sum(p < 1 for p in exponents), sum(p > 1 for p in exponents))
        assert 1.0 in exponents
        assert cell not in cells, (path, cells)
        cells[cell] = path
        if path.parent.name == "figure6":
            assert path.stem == f"STAR_R50_b{cell[0]}a{cell[1]}"
    assert set(cells) == {(below, above) for below in range(4) for above in range(5)}


@pytest.mark.parametrize("method", ["SAD", "STAR"])
def test_bupt_campus_has_its_own_protocol_and_the_same_networks(method):
    cfg = load_config(str(CONFIGS / "BUPTCampus" / f"{method}_R50.yml"))
    assert cfg.DATASETS.NAMES == cfg.DATASETS.TESTS == ("BUPTCampus",)
    assert cfg.DATASETS.MIN_FRAMES == 1, "every tracklet counts"
    assert not cfg.TEST.CAMERA_FILTER
    other = load_config(str(CONFIGS / "HITSZ-VCM" / f"{method}_R50.yml"))
    assert (cfg.MODEL, cfg.SOLVER, cfg.DATASETS.SKELETONS) == (
        other.MODEL,
        other.SOLVER,
        other.DATASETS.SKELETONS,
    )


@pytest.mark.parametrize("path", BACKBONES, ids=name)
def test_star_trains_on_every_backbone_that_has_a_config(path):
    cfg = load_config(
        str(path),
        [
            "MODEL.BACKBONE.PRETRAIN",
            "False",
            "MODEL.HEADS.NUM_CLASSES",
            "2",
            "MODEL.DEVICE",
            "cpu",
            "INPUT.SIZE_TRAIN",
            "[64,32]",
        ],
    )
    torch.manual_seed(0)
    model = STAR(cfg).train()
    batch = {
        "images": torch.randint(0, 256, (4, 2, 3, 64, 32), dtype=torch.uint8),
        "modality": torch.tensor([2, 2, 1, 1]),
        "targets": torch.tensor([0, 1, 0, 1]),
        "skeletons": torch.rand(4, 2, 17, 3) * 32,
        "has_skeleton": torch.ones(4, 2, dtype=torch.bool),
    }
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert {"loss_cls", "loss_triplet"} <= set(losses)
