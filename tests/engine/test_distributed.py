"""Two machines under torchrun, and the end of a process in a training (with --long)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ..tiny import REPOSITORY, STAR_DEMO, tiny_options

TRAIN_NET = str(REPOSITORY / "tools" / "train_net.py")


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun_on_two_machines(*arguments):
    """Two agents on the loopback interface, two processes each; what the first one printed."""
    port = free_port()
    rendezvous = [
        "--nnodes=2",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
    agents = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={node}", TRAIN_NET, *map(str, arguments)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        said = [agent.communicate(timeout=300)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)[-6000:]
    return said[0]


@pytest.mark.long
def test_two_machines_under_torchrun_train_resume_and_evaluate(tiny_root, tmp_path):
    output = tmp_path / "run"
    # 16 clips: one identity of 2 clips and 2 modalities for each of four processes; no triplets in
    # one's own share
    more = "SOLVER.IMS_PER_BATCH 16 MODEL.LOSSES.TRI.ALL_RANKS True SOLVER.STEPS ()"
    options = tiny_options(tiny_root, output, *more.split())
    shorter = ["SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "2"]
    said = torchrun_on_two_machines("--config-file", STAR_DEMO, *options, *shorter)
    assert "4 process(es)" in said
    said = torchrun_on_two_machines(
        "--config-file", STAR_DEMO, "--resume", "--allow-changed", *options
    )
    assert "from epoch 3 of" in said
    ended = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    alone = tmp_path / "alone"
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    options = tiny_options(tiny_root, alone, *weights)
    run(TRAIN_NET, "--config-file", STAR_DEMO, "--eval-only", *options)
    name = "per_query_SyntheticVCM.csv"  # the similarities too, to the last digit
    assert (alone / name).read_text() == (output / name).read_text()
    assert ended["iteration"] == 3 * 2 - 1


@pytest.mark.long
def test_a_killed_process_ends_the_other_and_leaves_whole_checkpoints(tiny_root, tmp_path):
    output = tmp_path / "run"
    endless = "SOLVER.MAX_EPOCH 10000 SOLVER.STEPS () TEST.EVAL_PERIOD 0 SOLVER.IMS_PER_BATCH 16"
    options = tiny_options(tiny_root, output, *endless.split())
    command = [sys.executable, TRAIN_NET, "--config-file", STAR_DEMO, "--num-devices", "2"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, *options], env=environment(), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not (output / "model_last.pth").exists():
                assert time.monotonic() < deadline, "no checkpoint in two minutes"
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            first, second = children(process.pid)
            os.kill(first, signal.SIGKILL)
            assert process.wait(timeout=60) == 2
        finally:
            process.kill()
    assert not Path(f"/proc/{second}").exists()
    text = (tmp_path / "log").read_text()
    assert text.splitlines()[-1].startswith("error: process ")
    assert "SIGKILL" in text
    checkpoint = torch.load(output / "model_last.pth", weights_only=False)
    assert {"model", "optimizer", "epoch"} <= checkpoint.keys()


def children(pid):
    """The processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == pid:
                    found.append(int(entry.name))
    return sorted(found)
