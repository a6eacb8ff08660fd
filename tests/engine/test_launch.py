"""Several processes, started by this package, by torchrun or by srun, on the CPU over gloo."""

import atexit
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fastreid.utils import comm

from fastreid_star.engine.interruption import Interrupted
from fastreid_star.engine.launch import launch, run_command, started_process
from fastreid_star.errors import UserError

from .processes import call_in_processes


def report(folder):
    """Write what this process knows about the group, and its threads when it ends."""
    total = torch.tensor([float(comm.get_rank() + 1)])
    dist.all_reduce(total)
    trainer = [dist.group.WORLD]
    trainer.append(trainer)  # as a trainer and its hooks refer to each other
    gathered = comm.all_gather({"rank": comm.get_rank()})
    path = Path(folder, f"rank{comm.get_rank()}")
    sizes = f"{comm.get_world_size()} {comm.get_local_rank()} {comm.get_local_size()}"
    path.write_text(f"{sizes} {total.item()} {gathered}")

    def write_threads():
        names = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
        names.append(str(torch.multiprocessing.get_start_method()))
        path.with_suffix(".end").write_text("".join(names))

    atexit.register(write_threads)


def test_two_processes_and_their_end(tmp_path):
    call_in_processes(report, 2, tmp_path)
    for rank in (0, 1):
        text = (tmp_path / f"rank{rank}").read_text()
        assert text == f"2 {rank} 2 3.0 [{{'rank': 0}}, {{'rank': 1}}]"
        end = (tmp_path / f"rank{rank}.end").read_text()
        # a thread of the group that frees a tensor now would abort a process that has succeeded
        assert "gloo" not in end
        # spawned loader workers would import torch at each evaluation
        assert end.endswith(torch.multiprocessing.get_start_method())


def end_by(what):
    """Rank 1 ends; rank 0 loses its peer, and often ends first."""
    if comm.get_rank() == 1:
        if what == "UserError":
            raise UserError("no dataset here")
        if what == "ValueError":
            raise ValueError("a bug in rank 1")
        os.kill(os.getpid(), getattr(signal, what))
    dist.barrier()


def test_an_error_that_the_user_can_fix_is_the_one_that_is_raised(capfd):
    with pytest.raises(UserError, match=r"^no dataset here$"):
        call_in_processes(end_by, 2, "UserError")
    assert capfd.readouterr().err == ""


def test_a_bug_in_one_process_ends_all_with_its_traceback(capfd):
    with pytest.raises(SystemExit) as caught:
        call_in_processes(end_by, 2, "ValueError")
    assert caught.value.code == 1
    assert "ValueError: a bug in rank 1" in capfd.readouterr().err


def test_a_process_that_the_system_kills_is_one_line(capfd):
    with pytest.raises(UserError, match=r"process 1 of 2 was killed \(SIGKILL\)") as caught:
        call_in_processes(end_by, 2, "SIGKILL")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


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


def test_srun_on_one_machine_joins_its_processes(environment, tmp_path):
    program = "import sys; from tests.engine.test_launch import report, launch\n"
    program += "launch(report, 1, device='cpu', args=(sys.argv[1],))"
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(time.time_ns() // 1000 % 10000)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert (tmp_path / "rank1").read_text().startswith("2 1 2 3.0")


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
