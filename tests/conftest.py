"""Shared fixtures. Importing the plugin first is what makes fastreid importable at all."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the suite is about the CPU, wherever it runs

import pytest
import torch

import fastreid_star  # noqa: F401


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
