"""A run of SAD and one of STAR, with a predictor of each."""

import pytest

from fastreid_star.data.build import build_dataset, open_store
from fastreid_star.inference import StarPredictor

from ..trained import train


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with the runs ``SAD`` and ``STAR``."""
    return train(tmp_path_factory.getbasetemp() / "trained")


@pytest.fixture(scope="session")
def sad(runs):
    return StarPredictor.from_run(runs / "SAD", "cpu")


@pytest.fixture(scope="session")
def star(runs):
    return StarPredictor.from_run(runs / "STAR", "cpu")


@pytest.fixture(scope="session")
def predictor(star):
    """For tests in which the method does not matter."""
    return star


@pytest.fixture(scope="session")
def data(star):
    """The test tracklets, and the store of their skeletons."""
    dataset = build_dataset(star.cfg, "SyntheticVCM")
    return [*dataset.query, *dataset.gallery], open_store(star.cfg, dataset)
