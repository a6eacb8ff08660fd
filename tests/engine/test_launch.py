"""Several processes, started by this package, by torchrun or by srun, on the CPU over gloo."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fastreid.utils import comm

from fastreid_star.engine.interruption import Interrupted
from fastreid_star.engine.launch import launch, run_command, started_process
from fastreid_star.errors import UserError

from ..forked import start_forked


def report(folder):
    """Write what this process knows about the group."""
    total = torch.tensor([float(comm.get_rank() + 1)])
    dist.all_reduce(total)
    sizes = f"{comm.get_world_size()} {comm.get_local_rank()} {comm.get_local_size()}"
    Path(folder, f"rank{comm.get_rank()}").write_text(f"{sizes} {total.item()}")


# Rank 1 ends; rank 0 has lost its peer, and fails as well. No process imports torch.
ENDING = """
import os, pathlib, signal, sys, time
file = pathlib.Path(os.environ["FASTREID_STAR_ERROR_FILE"])
if os.environ["RANK"] == "0":
    while sys.argv[1] == "line" and not file.with_name("error1.txt").exists():
        time.sleep(0.001)
    file.write_text("peer lost") if sys.argv[1] == "line" else time.sleep(0.3)
    raise ConnectionError("peer lost")
if sys.argv[1] == "line":
    file.write_text("no dataset here")
    sys.exit(2)
if sys.argv[1] == "bug":
    raise ValueError("a bug in rank 1")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("line", UserError, "no dataset here$"),
        ("bug", SystemExit, "1"),
        ("kill", UserError, r"process 1 of 2 was killed \(SIGKILL\)"),
    ],
)
def test_the_error_of_the_process_that_failed_first_is_raised(how, error, words, capfd):
    with pytest.raises(error, match=rf"^{words}") as caught:
        run_command(["-c", ENDING, how], 2)
    assert "\n" not in str(caught.value)
    assert ("ValueError: a bug in rank 1" in capfd.readouterr().err) == (how == "bug")


CATCHER = """
import os, pathlib, signal, sys, time
def handle(number, frame):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], os.environ["RANK"] + ".end").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGUSR1, handle)
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
while True:
    if os.environ["RANK"] == "0" and len(os.listdir(sys.argv[1])) == 2:
        os.kill(int(sys.argv[2]), signal.SIGUSR1)
    time.sleep(0.2)
"""


def test_a_signal_is_forwarded_and_the_processes_end_in_their_own_time(tmp_path):
    """No process imports torch here, so that this is quick."""
    with pytest.raises(Interrupted) as ended:
        run_command(["-c", CATCHER, str(tmp_path), str(os.getpid())], 2)
    assert ended.value.code == 128 + signal.SIGUSR1
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.end").read_text() == str(int(signal.SIGUSR1))
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_one_process_is_this_one():
    assert launch(os.getpid, 1, device="cpu") == os.getpid()
    assert not dist.is_initialized()


# --- processes that others have started

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in TORCHRUN or name.startswith("MASTER_"):
            monkeypatch.delenv(name)

    def set_environment(**values):
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "")  # so that what the function sets is undone
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        (TORCHRUN, (3, 4, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),  # some clusters set these for one process
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script
        (SRUN, (3, 4, 1, 4)),
        (
            SRUN | {"SLURM_STEP_NUM_NODES": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            (3, 4, 1, 2),
        ),
        (SRUN | {"RANK": "3", "WORLD_SIZE": "4"}, (3, 4, 1, 4)),
    ],
)
def test_the_place_of_a_started_process(environment, variables, place):
    environment(**variables)
    assert started_process() == place


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK"),
        (SRUN | {"SLURM_STEP_NUM_NODES": "2"}, "MASTER_ADDR"),
    ],
)
def test_processes_that_cannot_join_are_refused(environment, variables, words):
    environment(**variables)
    with pytest.raises(UserError, match=words):
        launch(report, 1, device="cpu")


def join(rank, folder):
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(os.getppid() % 10000)}
    os.environ |= step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    launch(report, 1, device="cpu", args=(folder,))


def test_srun_on_one_machine_joins_its_processes(environment, tmp_path):
    environment()
    pids = [start_forked(join, rank, tmp_path) for rank in (0, 1)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert (tmp_path / "rank1").read_text() == "2 1 2 3.0"


# --- wrong requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "options", "words"),
    [
        (2, {"device": "npu:1"}, "leave the index out"),
        (0, {"device": "cpu"}, "--num-devices 0"),
        (1, {"device": "cpu", "num_machines": 2}, "--dist-url"),
        (1, {"device": "cpu", "num_machines": 2, "dist_url": "host"}, "tcp://HOST:PORT"),
    ],
)
def test_wrong_requests(environment, devices, options, words):
    with pytest.raises(UserError, match=words):
        launch(report, devices, **options)
