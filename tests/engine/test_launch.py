"""One launcher: spawned processes and torchrun's, on the CPU over gloo."""

import atexit
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fastreid.utils import comm

from fastreid_star.engine.launch import launch, run_processes
from fastreid_star.errors import UserError


def report(folder):
    total = torch.tensor([float(comm.get_rank() + 1)])
    dist.all_reduce(total)
    gathered = comm.all_gather({"rank": comm.get_rank()})
    line = f"{comm.get_world_size()} {comm.get_local_rank()} {comm.get_local_size()} {total.item()} {gathered}"
    with open(os.path.join(folder, f"rank{comm.get_rank()}"), "w") as file:
        file.write(line)


def list_threads_at_exit(folder):
    """Write the names of this process's threads, and how it starts others, when its interpreter closes."""
    report(folder)
    trainer = [dist.group.WORLD]
    trainer.append(trainer)
    path = os.path.join(folder, f"rank{comm.get_rank()}")

    def write():
        names = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
        Path(path).write_text("".join([*names, torch.multiprocessing.get_start_method()]))

    atexit.register(write)


def fail_on_one(folder):
    if comm.get_rank() == 1:
        raise ValueError("rank 1 has had enough")
    dist.barrier()


def test_two_spawned_processes(tmp_path):
    launch(report, 2, device="cpu", args=(str(tmp_path),))
    lines = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert lines == {
        f"rank{rank}": f"2 {rank} 2 3.0 [{{'rank': 0}}, {{'rank': 1}}]" for rank in (0, 1)
    }


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="threads are counted by Linux's /proc"
)
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that frees a tensor while the interpreter closes aborts a process that has done its work.

    And processes start theirs as this one does: spawned loading workers would take seconds at each evaluation, and the
    memory of all that they import.
    """
    launch(list_threads_at_exit, 2, device="cpu", args=(str(tmp_path),))
    for rank in (0, 1):
        told = (tmp_path / f"rank{rank}").read_text()
        assert "gloo" not in told
        assert told.endswith(torch.multiprocessing.get_start_method())


def test_one_process_is_this_one():
    seen = []
    launch(seen.append, 1, device="cpu", args=(os.getpid(),))
    assert seen == [os.getpid()]
    assert not dist.is_initialized()


def refuse(folder):
    raise UserError(f"{folder} holds no dataset")


def test_a_failing_process_ends_all_with_its_own_traceback(tmp_path, capfd):
    with pytest.raises(torch.multiprocessing.ProcessRaisedException):
        launch(fail_on_one, 2, device="cpu", args=(str(tmp_path),))
    error = capfd.readouterr().err
    assert "process 1 failed:" in error
    assert "ValueError: rank 1 has had enough" in error


def be_killed(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        time.sleep(60)
    except BaseException:
        raise ConnectionError("lost a peer") from None


def test_a_process_that_the_system_kills_is_one_line(capfd):
    with pytest.raises(
        UserError, match=r"^process 1 of 2 was killed \(SIGKILL\): most .* out of memory; .*"
    ) as caught:
        run_processes(be_killed, 2)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def end_oddly(number):
    os._exit(3)


def test_a_process_that_just_ends(capfd):
    with pytest.raises(
        torch.multiprocessing.ProcessExitedException, match="process 0 ended with status 3"
    ):
        run_processes(end_oddly, 1)


def refuse_on_one(folder):
    if comm.get_rank() == 1:
        raise UserError(f"{folder} holds no dataset")
    dist.barrier()


def test_a_mistake_that_one_process_finds_is_what_is_said(capfd):
    """The other one fails too, and often sooner, because it has lost its peer."""
    for _ in range(2):
        with pytest.raises(UserError, match=r"^here holds no dataset$"):
            launch(refuse_on_one, 2, device="cpu", args=("here",))


def test_a_users_mistake_stays_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^here holds no dataset$"):
        launch(refuse, 2, device="cpu", args=("here",))


def test_a_clusters_own_rank_is_not_torchruns(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    launch(report, 2, device="cpu", args=(str(tmp_path),))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0", "rank1"]


def test_one_device_for_several_processes(monkeypatch):
    with pytest.raises(UserError, match="npu:1 names one device for 2 processes"):
        launch(report, 2, device="npu:1")
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "2"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="npu:1 names one device for 2 processes"):
        launch(report, 1, device="npu:1")


def test_wrong_numbers():
    with pytest.raises(UserError, match="--num-devices 0"):
        launch(report, 0, device="cpu")
    with pytest.raises(UserError, match="--dist-url"):
        launch(report, 1, device="cpu", num_machines=2)


def test_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        import torch, torch.distributed as dist
        import fastreid_star
        from fastreid.utils import comm
        from fastreid_star.engine.launch import launch

        def main():
            total = torch.tensor([comm.get_rank() + 1.0])
            dist.all_reduce(total)
            with open({str(tmp_path)!r} + f"/out{{comm.get_rank()}}", "w") as file:
                file.write(f"{{total.item()}} {{comm.get_local_rank()}} {{comm.get_local_size()}}")

        launch(main, 1, device="cpu")
        """)
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            script,
        ],
        check=True,
    )
    assert [(tmp_path / f"out{rank}").read_text() for rank in (0, 1)] == ["3.0 0 2", "3.0 1 2"]
