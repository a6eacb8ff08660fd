"""Start one process a device, by spawn on one machine or under torchrun on several."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp
from fastreid.utils import comm

from fastreid_star.engine.device import choose_device, collective_backend, device_count
from fastreid_star.engine.interruption import Interrupted, SignalCatcher
from fastreid_star.errors import UserError

SECONDS_TO_END = 10.0  # for processes whose peer has failed
SECONDS_ALONE = 30.0  # for processes whose parent was killed: for a step and a checkpoint
TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
)  # some clusters set the first two by themselves


def launch(
    main,
    num_devices: int,
    *,
    device: str = "auto",
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> None:
    """Run ``main(*args)`` in one process a device.

    Under torchrun (RANK, WORLD_SIZE and their LOCAL_ twins are set) the processes are there already, and this only
    joins them. Otherwise `num_devices` processes are spawned on this machine; a failing one ends all of them, with its
    own traceback.

    Args:
        main: a function that can be pickled.
        num_devices: devices, and so processes, of this machine.
        device: ``MODEL.DEVICE``.
        num_machines, machine_rank, dist_url: as in fast-reid; ``auto`` takes a free port on one machine.
        args: arguments of `main`.

    Raises:
        UserError: more devices than there are, or several machines without an address.
    """
    if all(name in os.environ for name in TORCHRUN):
        rank, world_size, local_rank, local_size = (int(os.environ[name]) for name in TORCHRUN)
        if local_size > 1:
            _refuse_one_device(device, local_size)
        if world_size > 1:
            _join("env://", rank, world_size, local_rank, local_size, device)
        return _call_and_leave(main, args)

    if num_devices > 1:
        _refuse_one_device(device, num_devices)
    count = device_count(device)
    if num_devices < 1 or (count is not None and num_devices > count):
        raise UserError(
            f"--num-devices {num_devices}: this machine shows {count or 'any number of CPU'} device(s)"
        )
    world_size = num_devices * num_machines
    if world_size == 1:
        return main(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError(
                "--dist-url: several machines need the address of the first, tcp://HOST:PORT"
            )
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    run_processes(
        _rank, num_devices, (main, world_size, num_devices, machine_rank, dist_url, device, args)
    )


def run_processes(function: Callable[..., object], count: int, args: tuple = ()) -> None:
    """Run ``function(number, *args)`` in `count` spawned processes; a failing one ends all, with its own traceback.

    Signals that ask this process to end are handed on to them, and it waits until they have ended. They end with this
    process, even where it is killed: asked to by SIGTERM, and by force if they take too long.

    Args:
        function: can be pickled; `number` counts from 0.

    Raises:
        UserError: what one of them raised, or one was killed.
        Interrupted: a signal has ended them.
        KeyboardInterrupt: Ctrl-C has, and they had nothing to save.
        torch.multiprocessing.ProcessRaisedException: one raised something else.
        torch.multiprocessing.ProcessExitedException: one ended otherwise.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        how = mp.get_start_method()
        processes = [
            context.Process(target=_process, args=(n, function, args, folder, how))
            for n in range(count)
        ]
        with _Relay(processes) as relay:
            try:
                for process in processes:
                    process.start()
                if relay.number:  # a signal that came before the last one was there
                    relay.on_first(relay.number)
                _wait(processes)
                statuses = [process.exitcode for process in processes]
            finally:
                _end(processes)
        _raise(statuses, Path(folder), relay.number)


class _Relay(SignalCatcher):
    """Hands signals on to other processes."""

    def __init__(self, processes: Sequence[BaseProcess]):
        super().__init__()
        self._processes = processes

    def on_first(self, number: int) -> None:
        for process in self._processes:
            if process.pid is not None and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    on_second = on_first


def _wait(processes: Sequence[BaseProcess]) -> None:
    """Until all have ended, or one has failed."""
    running: dict[object, BaseProcess] = {process.sentinel: process for process in processes}
    while running and not any(process.exitcode for process in processes):
        for sentinel in multiprocessing.connection.wait(
            [process.sentinel for process in running.values()]
        ):
            running.pop(sentinel).join()


def _end(processes: Sequence[BaseProcess]) -> None:
    """End those that still run; one that waits for a peer that is gone may not hear the request."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        if process.exitcode is None:
            process.terminate()
    deadline = time.monotonic() + SECONDS_TO_END
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _raise(statuses: list[int | None], folder: Path, signalled: int) -> None:
    """Tell what has ended the processes.

    The first process to end is often one that only lost its peer: what a user can mend comes before, and one that was
    killed from outside before those that failed of themselves.

    Args:
        statuses: exit statuses as they were when the first failure was seen; None: it still ran.
        folder: what the processes have left to be said.
        signalled: the signal this process has handed on, 0: none.
    """
    left = {
        kind: sorted(folder.glob(f"*.{kind}"), key=_when_and_whose)
        for kind in ("refusal", "signal", "traceback")
    }
    if left["refusal"]:
        raise UserError(left["refusal"][0].read_text(encoding="utf-8"))
    if left["signal"]:
        raise Interrupted(int(left["signal"][0].read_text()))
    if signalled and not left["traceback"]:
        raise KeyboardInterrupt if signalled == signal.SIGINT else Interrupted(signalled)
    for number, status in enumerate(statuses):
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            hint = (
                ": most often the machine was out of memory; lower DATALOADER.NUM_WORKERS, or give the job more memory"
                if -status == signal.SIGKILL
                else ""
            )
            raise UserError(
                f"process {number} of {len(statuses)} was killed ({name}){hint}; what was saved is whole, and the same "
                "call goes on from there, a training with --resume"
            )
    for path in left["traceback"]:
        print(
            f"process {path.stem} failed:\n{path.read_text(encoding='utf-8')}",
            file=sys.stderr,
            flush=True,
        )
    if left["traceback"]:
        first = int(left["traceback"][0].stem)
        raise mp.ProcessRaisedException(
            f"process {first} failed; its traceback is above", first, -1
        )
    for number, status in enumerate(statuses):
        if status:
            raise mp.ProcessExitedException(
                f"process {number} ended with status {status}", number, -1, status
            )


def _when_and_whose(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, int(path.stem)


def _process(number, function, args, folder, start_method):
    # a spawned process would spawn its loading workers too, each with seconds of imports, at every evaluation
    mp.set_start_method(start_method, force=True)
    end_with_parent()
    try:
        function(number, *args)
    except UserError as error:
        (Path(folder) / f"{number}.refusal").write_text(str(error), encoding="utf-8")
        sys.exit(1)
    except Interrupted as error:
        (Path(folder) / f"{number}.signal").write_text(str(error.number))
    except KeyboardInterrupt:  # the process that has started this one heard it too
        sys.exit(1)
    except Exception:
        (Path(folder) / f"{number}.traceback").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)


def end_with_parent() -> None:
    """Have this process end once the one that has started it has: asked to by SIGTERM, so that a run can save itself.

    By force if it takes too long. For a process that multiprocessing has started.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "no other process has started this one"
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_ALONE)
    os.kill(os.getpid(), signal.SIGKILL)


def _rank(local_rank, main, world_size, local_size, machine_rank, dist_url, device, args):
    rank = machine_rank * local_size + local_rank
    _join(dist_url, rank, world_size, local_rank, local_size, device)
    _call_and_leave(main, args)


def _call_and_leave(main, args):
    """``main(*args)``, then out of the group, also where a signal has ended all ranks alike."""
    result = number = None
    try:
        result = main(*args)
    except Interrupted as error:
        number = (
            error.number
        )  # and no more of it: its traceback holds the trainer, and that the group
    _leave()
    if number is not None:
        raise Interrupted(number)
    return result


def _leave() -> None:
    """Only after success: a process that has failed would wait here for peers that wait for it.

    A group's threads end with its last reference: fast-reid keeps two, and a trainer and its hooks, which know each
    other, one in their model. A thread that still frees what Python owns while the interpreter closes ends the process
    with an abort.
    """
    if dist.is_initialized():
        comm._LOCAL_PROCESS_GROUP = None
        comm._get_global_gloo_group.cache_clear()
        gc.collect()
        dist.destroy_process_group()


def _refuse_one_device(device: str, processes: int) -> None:
    if ":" in device:
        raise UserError(
            f"MODEL.DEVICE {device} names one device for {processes} processes: leave the index out"
        )


def _join(
    url: str, rank: int, world_size: int, local_rank: int, local_size: int, device: str
) -> None:
    """Enter the process group and tell fast-reid which ranks share this machine."""
    choose_device(device, local_rank)
    dist.init_process_group(
        collective_backend(device), init_method=url, rank=rank, world_size=world_size
    )
    for machine in range(world_size // local_size):
        ranks = range(machine * local_size, (machine + 1) * local_size)
        group = dist.new_group(ranks)
        if rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
