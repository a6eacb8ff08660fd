"""Two tiny runs on one tiny SyntheticVCM, trained once for all tests of the report."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.report.build import build_report, evaluate
from fastreid_star.report.runs import read_run

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs" / "Synthetic"
HOSTILE = "<img src=x onerror=alert(1)> & $x_1$"  # as a file name may be


def options(root, output) -> list[str]:
    """Config options of a run of 2 epochs on the tiny data."""
    pairs = {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.DEPTH": "tiny",
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "INPUT.CLIP.LENGTH": 3,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCH": 2,
        "SOLVER.STEPS": [],
        "SOLVER.LOG_PERIOD": 1,
        "TEST.EVAL_PERIOD": 1,
        "DATASETS.SYNTHETIC.TRAIN_IDS": 6,
        "DATASETS.SYNTHETIC.TEST_IDS": 6,
        "DATASETS.SYNTHETIC.TRACKLETS": 3,
        "DATASETS.SYNTHETIC.FRAMES": 12,
        "DATASETS.SYNTHETIC.SIZE": [32, 16],
    }
    return [str(part) for pair in pairs.items() for part in pair]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """``star``, with a log; ``sad``, whose name is HTML; ``root``, their data."""
    base = tmp_path_factory.mktemp("report")
    root, star, sad = base / "datasets", base / "STAR", base / HOSTILE
    torch.manual_seed(0)
    arguments = ["--config-file", str(CONFIGS / "STAR_demo.yml"), *options(root, star)]
    train_or_evaluate(argument_parser("test").parse_args(arguments))
    sad.mkdir()
    trainer = Trainer(load_config(str(CONFIGS / "SAD_demo.yml"), options(root, sad)))
    trainer.resume_or_load(resume=False)
    trainer.train()
    return SimpleNamespace(root=root, star=star, sad=sad)


@pytest.fixture(scope="session")
def star(folders):
    """The STAR run, evaluated."""
    return evaluate(read_run(folders.star), "STAR")


@pytest.fixture(scope="session")
def sad(folders):
    """The baseline, evaluated."""
    return evaluate(read_run(folders.sad), "SAD")


@pytest.fixture(scope="session")
def both(folders):
    """The page of STAR with the baseline, whose name is hostile, beside it."""
    return build_report([read_run(folders.star), read_run(folders.sad)])
