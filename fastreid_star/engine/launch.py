"""Run a program in one process per device: torch's elastic launcher, torchrun or srun."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
import torch.distributed as dist
from fastreid.utils import comm

from fastreid_star.engine.device import choose_device, collective_backend, device_count
from fastreid_star.engine.interruption import SIGNALS, Interrupted, SignalCatcher
from fastreid_star.errors import UserError

# Set in every process that run_command starts: the file for the error that ends it.
ERROR_FILE = "FASTREID_STAR_ERROR_FILE"
# Seconds that torch gives the other processes to end after one has failed.
SECONDS_TO_END = 30
_HANDLED_BY_TORCH = (*SIGNALS, *([signal.SIGQUIT] if hasattr(signal, "SIGQUIT") else []))
_FOLDER = os.getcwd()  # the program may change it before it launches


def launch(
    main: Callable[..., object],
    num_devices: int,
    *,
    device: str = "auto",
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> object:
    """Run ``main(*args)`` in one process per device.

    Under torchrun or srun the processes exist already: each joins the process group and calls
    `main`. Otherwise, for more than one device, the command line of this program is run again in
    one process per device. The code before this call runs in all of them; they end when `main`
    returns, and only the first process continues after this call.

    Args:
        main: the function to run.
        num_devices: devices, and processes, of this machine.
        device: ``MODEL.DEVICE``.
        num_machines, machine_rank, dist_url: as in fast-reid. ``auto`` takes a free port of this
            machine.
        args: the arguments of `main`.

    Returns:
        the result of `main` where it ran in this process.

    Raises:
        UserError: the number of devices or the address is wrong, or a process has ended with this
            error.
    """
    process = started_process()
    processes = num_devices if process is None else process.local_size
    if ":" in device and processes > 1:
        raise UserError(
            f"MODEL.DEVICE {device} names one device for {processes} processes: leave the index out"
        )
    if process is not None:
        result = _run_in_group(main, args, process, device)
        if ERROR_FILE in os.environ:
            sys.exit(0)
        return result

    count = device_count(device)
    if num_devices < 1 or (count is not None and num_devices > count):
        shown = "any number of CPU" if count is None else count
        raise UserError(f"--num-devices {num_devices}: this machine has {shown} device(s)")
    if num_devices * num_machines == 1:
        return main(*args)
    if os.name == "nt":  # a signal cannot be forwarded there: the others would lose their state
        raise UserError(f"--num-devices {num_devices}: several processes need Linux or macOS")
    if len(sys.orig_argv) < 2 or "ipykernel" in sys.modules:
        raise UserError("several processes need a program: start a script, or use torchrun")
    run_command(
        sys.orig_argv[1:],
        num_devices,
        num_machines=num_machines,
        machine_rank=machine_rank,
        dist_url=dist_url,
    )
    return None


class Process(NamedTuple):
    """The place of a process among all processes of a run, as torchrun defines it."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int


def started_process() -> Process | None:
    """The place of this process among several that were started together, or None.

    Raises:
        UserError: RANK and WORLD_SIZE are set, but the place on this machine is unknown.
    """
    env = os.environ
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1))  # set by srun only, not in a batch script
    machines = int(env.get("SLURM_STEP_NUM_NODES", 1))
    if tasks > 1 and "RANK" not in env:
        if machines > 1 and "MASTER_ADDR" not in env:
            raise UserError(
                f"srun has started {tasks} processes on {machines} machines: export MASTER_ADDR "
                "and MASTER_PORT of the first machine before srun, or start torchrun on each "
                "machine"
            )
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 10000))
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], str(tasks)
    world_size = int(env.get("WORLD_SIZE", 1))
    if world_size == 1 or "RANK" not in env:
        return None
    local_rank, local_size = env.get("LOCAL_RANK"), env.get("LOCAL_WORLD_SIZE")
    if tasks > 1:
        local_rank = local_rank or env["SLURM_LOCALID"]
        local_size = local_size or str(world_size // machines)
    if local_rank is None or local_size is None:
        raise UserError(
            f"RANK and WORLD_SIZE ({world_size}) are set, but LOCAL_RANK and LOCAL_WORLD_SIZE are "
            "not: start the program with torchrun, or unset RANK and WORLD_SIZE to run in one "
            "process"
        )
    return Process(int(env["RANK"]), world_size, int(local_rank), int(local_size))


def run_command(
    arguments: Sequence[str],
    num_devices: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Run ``python ARGUMENTS`` in several processes, and wait for them.

    They get torchrun's environment variables. SIGTERM, SIGINT, SIGHUP and SIGUSR1 are forwarded to
    the processes. If one process fails, the others are ended.

    Raises:
        UserError: a process has ended with this error, or the system has killed it.
        Interrupted: a signal has ended the processes.
        KeyboardInterrupt: Ctrl-C has ended the processes.
        SystemExit: a process has failed otherwise; its traceback is printed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    # this logger reports each process that ends, in terms of the launcher
    logging.getLogger(start_processes.__module__ + ".api").setLevel(logging.CRITICAL)
    host, port = _address(dist_url, num_machines)
    threads = max(1, torch.get_num_threads() // num_devices)
    with tempfile.TemporaryDirectory(prefix="fastreid-star-") as folder:
        environments = {
            number: {
                "RANK": str(machine_rank * num_devices + number),
                "WORLD_SIZE": str(num_machines * num_devices),
                "LOCAL_RANK": str(number),
                "LOCAL_WORLD_SIZE": str(num_devices),
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
                ERROR_FILE: os.path.join(folder, f"error{number}.txt"),
            }
            for number in range(num_devices)
        }
        os.chdir(_FOLDER)  # relative paths of the command line start there
        before = {number: signal.getsignal(number) for number in _HANDLED_BY_TORCH}
        processes = start_processes(
            "fastreid-star",
            sys.executable,
            dict.fromkeys(environments, tuple(arguments)),
            environments,
            DefaultLogsSpecs(log_dir=folder),
        )
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():  # torch has installed handlers of its own
                signal.signal(number, handler)
        with SignalForwarder(processes.pids().values()) as forwarder:
            result = processes.wait(period=0.1)
        failures = result.failures if result else {}
        written = sorted(Path(folder).glob("error*"), key=lambda path: path.stat().st_mtime_ns)
        errors = [path.read_text(encoding="utf-8") for path in written]
    if not failures:
        return
    if errors:
        raise UserError(errors[0])
    if forwarder.number == signal.SIGINT:
        raise KeyboardInterrupt
    if forwarder.number:
        raise Interrupted(forwarder.number)
    _raise(failures, num_devices)


class SignalForwarder(SignalCatcher):
    """Forward the signals that end a run to other processes."""

    def __init__(self, pids: Iterable[int]):
        super().__init__()
        self._pids = list(pids)

    def on_first(self, number: int) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    on_second = on_first


def _raise(failures: dict, num_devices: int) -> NoReturn:
    """Raise the error for processes that failed without a line for the user.

    Args:
        failures: torch's ``ProcessFailure`` of each process that failed, by its number, the first
            one first. The later ones have lost their peer or were ended by torch.
        num_devices: number of processes.
    """
    first = next(iter(failures.values()))
    if first.exitcode - 128 in SIGNALS:  # a signal to one process has ended the run in all of them
        raise Interrupted(first.exitcode - 128)
    for number, failure in failures.items():
        late = failure.timestamp - first.timestamp > SECONDS_TO_END // 2  # killed by torch
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and not late:
            killed = signal.Signals(-failure.exitcode).name
            memory = ", usually for lack of memory: lower DATALOADER.NUM_WORKERS"
            raise UserError(
                f"process {number} of {num_devices} was killed ({killed})"
                f"{memory if killed == 'SIGKILL' else ''}. Saved files are complete: start the "
                "same command again, a training with --resume"
            )
    print(f"process {next(iter(failures))} of {num_devices} failed", file=sys.stderr)
    sys.exit(1)


def leave_error(text: str) -> bool:
    """Leave the line for the user to the process that has started this one.

    The first process to fail is often one that only lost its peer: the starting process knows which
    error to print.

    Returns:
        False: this process was not started by :func:`run_command`, and nothing is done.
    """
    path = os.environ.get(ERROR_FILE)
    if path:
        Path(path).write_text(text, encoding="utf-8")
    return path is not None


def _address(dist_url: str, num_machines: int) -> tuple[str, str]:
    """Host and port of the first process."""
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError("--dist-url: give the address of the first machine, tcp://HOST:PORT")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return "127.0.0.1", str(listener.getsockname()[1])
    host, _, port = dist_url.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--dist-url {dist_url}: write it as tcp://HOST:PORT")
    return host, port


def _run_in_group(
    main: Callable[..., object], args: tuple, process: Process, device: str
) -> object:
    """Join the process group, call `main`, and leave the group, also after a signal."""
    choose_device(device, process.local_rank)
    dist.init_process_group(
        collective_backend(device),
        init_method="env://",
        rank=process.rank,
        world_size=process.world_size,
    )
    for machine in range(process.world_size // process.local_size):
        ranks = range(machine * process.local_size, (machine + 1) * process.local_size)
        group = dist.new_group(ranks)
        if process.rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
    result, number = None, 0
    try:
        result = main(*args)
    except Interrupted as error:
        number = error.number  # the traceback of the error would keep the trainer, and so the group
    # Not after another error: this process would wait here for processes that wait for it. The
    # threads of a group end with the last reference to it; a thread that outlives the interpreter
    # can abort a process that has succeeded.
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    gc.collect()
    dist.destroy_process_group()
    if number:
        raise Interrupted(number)
    return result
