"""A tiny SyntheticVCM, and a short training run of SAD and of STAR on it."""

from pathlib import Path

import pytest

from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.trainer import train_or_evaluate

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs" / "Synthetic"


def tiny_options(root, output) -> list[str]:
    """Config options of a run of one short epoch, evaluated at its end."""
    options = {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.DEPTH": "tiny",
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "INPUT.CLIP.LENGTH": 3,
        "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.SYNTHETIC.TRAIN_IDS": 6,
        "DATASETS.SYNTHETIC.TEST_IDS": 4,
        "DATASETS.SYNTHETIC.TRACKLETS": 2,
        "DATASETS.SYNTHETIC.FRAMES": 12,
        "DATASETS.SYNTHETIC.SIZE": [32, 16],
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCH": 1,
        "SOLVER.STEPS": [],
        "TEST.EVAL_PERIOD": 1,
        "TEST.IMS_PER_BATCH": 5,
    }
    return [str(part) for pair in options.items() for part in pair]


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A datasets folder with the tiny SyntheticVCM in it."""
    root = tmp_path_factory.mktemp("datasets")
    cfg = load_config(str(CONFIGS / "SAD_demo.yml"), tiny_options(root, root))
    write_synthetic_vcm(root / "SyntheticVCM", SyntheticOptions.from_config(cfg))
    return root


@pytest.fixture(scope="session")
def runs(tiny_root, tmp_path_factory):
    """A folder with the runs ``SAD`` and ``STAR``."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("SAD", "STAR"):
        config = ["--config-file", str(CONFIGS / f"{name}_demo.yml")]
        options = tiny_options(tiny_root, folder / name)
        train_or_evaluate(argument_parser("test").parse_args([*config, *options]))
    return folder
