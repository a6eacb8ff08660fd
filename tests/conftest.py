"""Shared fixtures. Importing the plugin first is what makes fastreid importable at all."""

import logging
import os
import signal
import sys

if not any(argument.startswith("--device") for argument in sys.argv):
    os.environ.setdefault(
        "CUDA_VISIBLE_DEVICES", ""
    )  # the suite is about the CPU, wherever it runs

import hypothesis
import pytest
import torch

import fastreid_star  # noqa: F401
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm

from .tiny import tiny_config

# A loaded machine is no failure, and the suite tries the same examples each time. With --long it tries others.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "long", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
# for mutmut: that an example fails is enough to know, and mutants are not to learn from each other
hypothesis.settings.register_profile(
    "mutants",
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    database=None,
    deadline=None,
)


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="kills, fuzzing and drift in full: hours, not minutes"
    )
    parser.addoption(
        "--device", metavar="NAME", help="run tests/cuda on this device, for example cuda"
    )


def pytest_collection_modifyitems(config, items):
    """Without --long, leave out the tests that are marked `long`."""
    if not config.getoption("--long"):
        config.hook.pytest_deselected(
            items=[item for item in items if item.get_closest_marker("long")]
        )
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_configure(config):
    config.addinivalue_line("markers", "long: run with --long only; takes half a minute or more")
    if config.getoption("--hypothesis-profile", None) is None:
        hypothesis.settings.load_profile("long" if config.getoption("--long") else "suite")


@pytest.fixture
def amount(request):
    """``amount(few, many)``: how much of something to do, in the suite and with ``--long``."""
    return lambda few, many: many if request.config.getoption("--long") else few


@pytest.fixture(autouse=True, scope="session")
def _signals_are_heard():
    """Under nohup, and in the background of a script, a process ignores signals, as those that it starts do."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )


@pytest.fixture(autouse=True)
def _logs_are_seen():
    """What tools in an earlier test set up is undone, such as a log of their own: caplog listens above all."""
    logging.disable(logging.NOTSET)
    for name in ("fastreid", "fastreid_star"):
        logging.getLogger(name).propagate = True
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("fastreid", "fastreid_star"):
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A datasets folder with the tiny SyntheticVCM in it."""
    root = tmp_path_factory.mktemp("datasets")
    options = SyntheticOptions.from_config(tiny_config(root, root))
    write_synthetic_vcm(root / "SyntheticVCM", options)
    return root
