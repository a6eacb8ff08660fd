"""A run of STAR and one of SAD, evaluated once, and the page of both."""

import shutil
from types import SimpleNamespace

import pytest

from fastreid_star.report.build import evaluate, report_contents
from fastreid_star.report.page import render
from fastreid_star.report.runs import read_run

from ..trained import train

HOSTILE = "<img src=x onerror=alert(1)> & $x_1$"  # as a file name may be


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """``star``; ``sad``, whose name is HTML and which has no log; ``root``, their data."""
    runs = train(tmp_path_factory.getbasetemp() / "trained")
    sad = tmp_path_factory.mktemp("report") / HOSTILE
    shutil.copytree(runs / "SAD", sad, ignore=shutil.ignore_patterns("log.txt"))
    return SimpleNamespace(root=runs / "datasets", star=runs / "STAR", sad=sad)


@pytest.fixture(scope="session")
def star(folders):
    return evaluate(read_run(folders.star), "STAR")


@pytest.fixture(scope="session")
def sad(folders):
    return evaluate(read_run(folders.sad), HOSTILE)


@pytest.fixture(scope="session")
def both(star, sad):
    """The page of STAR with the baseline, whose name is hostile, beside it."""
    return render("report", **report_contents([star, sad]))
