"""Two tiny runs on one tiny SyntheticVCM, trained once for all tests that only read them."""

import functools
from pathlib import Path

import torch

from fastreid_star.engine.defaults import argument_parser
from fastreid_star.engine.trainer import train_or_evaluate

from .tiny import DEMO, STAR_DEMO, tiny_options

# enough clips for a ranked list of ten
CHANGES = {
    "SOLVER.MAX_EPOCH": 2,
    "SOLVER.STEPS": [],
    "SOLVER.LOG_PERIOD": 1,
    "TEST.EVAL_PERIOD": 1,
    "TEST.IMS_PER_BATCH": 7,
    "DATASETS.SYNTHETIC.TEST_IDS": 6,
    "DATASETS.SYNTHETIC.TRACKLETS": 3,
}


@functools.cache
def train(folder: Path) -> Path:
    """Fill a folder with the runs ``STAR`` and ``SAD`` and their ``datasets``, and return it."""
    more = [str(part) for pair in CHANGES.items() for part in pair]
    for name, config in {"STAR": STAR_DEMO, "SAD": DEMO}.items():
        torch.manual_seed(0)
        options = tiny_options(folder / "datasets", folder / name, *more)
        train_or_evaluate(argument_parser("test").parse_args(["--config-file", config, *options]))
    return folder
