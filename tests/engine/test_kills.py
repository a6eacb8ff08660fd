"""A training that is killed at any moment and resumed ends with the same weights bit for bit."""

import itertools
import os
import random
import signal
import time

import pytest

from fastreid_star.engine.trainer import Trainer

from ..forked import run_forked, start_forked
from ..tiny import tiny_config
from .runs import assert_same_checkpoint

# 10 epochs of 3 steps; a checkpoint after each, and one more before each of 5 evaluations
OPTIONS = (
    "SOLVER.MAX_EPOCH", "10", "SOLVER.STEPS", "[6]", "TEST.EVAL_PERIOD", "2",
    "SOLVER.LOG_PERIOD", "1",
)  # fmt: skip
REQUESTS = 80  # to the disk in one such run, about


def train(root, output, moment=None):
    """Train, or resume; with a `moment`, be killed before the so-manieth request to the disk."""
    if moment is not None:
        calls = itertools.count(1)

        def counted(function):
            def call(*args):
                if next(calls) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args)

            return call

        for name in ("fsync", "replace"):
            setattr(os, name, counted(getattr(os, name)))
    trainer = Trainer(tiny_config(root, output, *OPTIONS))
    trainer.resume_or_load(resume=True)
    trainer.train()


@pytest.fixture(scope="module")
def whole_run(tiny_root, tmp_path_factory):
    """The uninterrupted run: its folder and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    ended = run_forked(train, tiny_root, folder)
    assert ended.status == 0, ended.text
    return folder, time.monotonic() - start


def test_killed_at_any_moment_and_resumed(tiny_root, whole_run, tmp_path, amount):
    """One run is killed again and again until it is complete; then another, until the last kill.

    Every second kill is planted where a checkpoint, or a file beside it, is written and not yet in
    its place; the others come at a random moment.
    """
    whole, seconds = whole_run
    rng = random.Random(0)
    kills, runs, done = amount(4, 50), 0, 0
    folder = tmp_path / "0"
    while done < kills:
        planted = done % 2
        moment = rng.randrange(3, REQUESTS // 4) if planted else None
        pid = start_forked(train, tiny_root, folder, moment)
        if not planted:
            time.sleep(rng.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == -signal.SIGKILL:
            done += 1
        else:  # it was through before
            assert status == 0
            assert_same_checkpoint(folder / "model_final.pth", whole / "model_final.pth")
            runs += 1
            folder = tmp_path / str(runs)
    ended = run_forked(train, tiny_root, folder)
    assert ended.status == 0, ended.text
    assert not list(folder.glob("*.damaged")), "a kill damages nothing"
    for name in ("model_final.pth", "model_best.pth"):
        assert_same_checkpoint(folder / name, whole / name)
