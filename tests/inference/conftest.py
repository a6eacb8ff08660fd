"""A run of SAD and one of STAR, with a predictor of each."""

import pytest

from fastreid_star.inference import StarPredictor

from ..trained import trained


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return trained(tmp_path_factory.getbasetemp() / "trained")


@pytest.fixture(scope="session")
def sad(runs):
    return StarPredictor.from_run(runs.sad, "cpu")


@pytest.fixture(scope="session")
def star(runs):
    return StarPredictor.from_run(runs.star, "cpu")
