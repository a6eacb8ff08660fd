"""A training that is killed at any moment and resumed ends with the same weights bit for bit."""

import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ..tiny import DEMO, REPOSITORY, tiny_options
from .test_distributed import environment
from .test_trainer import assert_same_checkpoint

TRAIN_NET = REPOSITORY / "tools" / "train_net.py"
KILLED = Path(__file__).parent / "programs" / "killed.py"
STARTED = re.compile(rb"Starting training from epoch (\d+)")
# 10 epochs of 3 steps; a checkpoint after each, and one more before each of 5 evaluations
OPTIONS = (
    "SOLVER.MAX_EPOCH",
    "10",
    "SOLVER.STEPS",
    "[6]",
    "TEST.EVAL_PERIOD",
    "2",
    "SOLVER.LOG_PERIOD",
    "1",
)
REQUESTS = (
    80  # to the disk in one such run, about; of what is left of it after a kill there are fewer
)


def attempt(root, output, said, *before):
    command = [sys.executable, *map(str, before or (TRAIN_NET,)), "--config-file", DEMO, "--resume"]
    with open(said, "wb") as file:
        return subprocess.Popen(
            [*command, *tiny_options(root, output, *OPTIONS)],
            env=environment(),
            stdout=file,
            stderr=file,
        )


def wait_for_training(process, said):
    """Until the first step is due, or it has ended; how long it has run then."""
    start = time.monotonic()
    while process.poll() is None and not STARTED.search(said.read_bytes()):
        time.sleep(0.005)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def whole_run(tiny_root, tmp_path_factory):
    """The uninterrupted run: its folder, the seconds of its start-up and of its training."""
    folder = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    process = attempt(tiny_root, folder, folder / "said.txt")
    start_up = wait_for_training(process, folder / "said.txt")
    assert process.wait() == 0, (folder / "said.txt").read_text()
    return folder, start_up, time.monotonic() - start - start_up


def test_killed_at_any_moment_and_resumed(tiny_root, whole_run, tmp_path, amount, record_property):
    """One run is killed again and again until it is complete; then another, until the last kill.

    Of five kills one falls into the start-up and three at random into the training; one is planted
    where a checkpoint, or a file beside it, is written and not yet in its place.
    """
    whole, start_up, training = whole_run
    rng = random.Random(0)
    kills = amount(3, 20)
    landed, runs, folder = Counter(), 0, tmp_path / "0"
    folder.mkdir()
    said = tmp_path / "said.txt"
    kinds = [
        ("training", "writing", "training", "start-up", "training")[number % 5]
        for number in range(kills)
    ]
    planted = kinds.count("writing")
    while kinds:
        kind = kinds[0]
        if kind == "writing":
            process = attempt(tiny_root, folder, said, KILLED, rng.randrange(3, REQUESTS // 4))
        else:
            process = attempt(tiny_root, folder, said)
            if kind == "training":
                wait_for_training(process, said)
            try:
                process.wait(rng.uniform(0, start_up if kind == "start-up" else training))
            except subprocess.TimeoutExpired:
                process.kill()
        if process.wait() == -signal.SIGKILL:
            kinds.pop(0)
            if list(folder.glob("*.tmp")):
                landed["while a file was written"] += 1
            elif STARTED.search(said.read_bytes()):
                landed["in training"] += 1
            else:
                landed["before the first step"] += 1
        else:  # it was through before
            assert process.returncode == 0, said.read_text()
            assert_same_checkpoint(folder / "model_final.pth", whole / "model_final.pth")
            runs += 1
            folder = tmp_path / str(runs)
            folder.mkdir()
    process = attempt(tiny_root, folder, said)
    assert process.wait() == 0, said.read_text()
    assert not list(folder.glob("*.tmp"))
    assert not list(folder.glob("*.damaged")), "a kill damages nothing"
    for name in ("model_final.pth", "model_best.pth"):
        assert_same_checkpoint(folder / name, whole / name)
    record_property("kills", dict(landed))
    print(f"{kills} kills of {runs + 1} runs: {dict(landed)}")
    assert landed["while a file was written"] >= planted > 0
    assert sum(landed.values()) == kills
