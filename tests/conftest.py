"""Shared fixtures. Importing the plugin first is what makes fastreid importable at all."""

import logging
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the suite is about the CPU, wherever it runs

import pytest
import torch

import fastreid_star  # noqa: F401


@pytest.fixture(autouse=True)
def _logs_are_seen():
    """What tools in an earlier test set up is undone, such as a log of their own: caplog listens above all."""
    logging.disable(logging.NOTSET)
    for name in ("fastreid", "fastreid_star"):
        logging.getLogger(name).propagate = True
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("fastreid_star."):
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
