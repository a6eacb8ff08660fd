"""Two tiny runs on one tiny SyntheticVCM, trained once for all tests that only read them."""

import functools
from pathlib import Path
from types import SimpleNamespace

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
def trained(folder: Path) -> SimpleNamespace:
    """``star`` and ``sad``, the folders of the runs, and ``root``, that of their data."""
    more = [str(part) for pair in CHANGES.items() for part in pair]
    runs = {"star": STAR_DEMO, "sad": DEMO}
    for name, config in runs.items():
        torch.manual_seed(0)
        options = tiny_options(folder / "datasets", folder / name.upper(), *more)
        train_or_evaluate(argument_parser("test").parse_args(["--config-file", config, *options]))
    return SimpleNamespace(
        root=folder / "datasets", **{name: folder / name.upper() for name in runs}
    )
