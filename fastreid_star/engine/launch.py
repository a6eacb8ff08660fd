"""Start one process a device, by spawn on one machine or under torchrun on several."""

from __future__ import annotations

import gc
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp
from fastreid.utils import comm

from fastreid_star.engine.device import choose_device, collective_backend, device_count
from fastreid_star.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # some clusters set the first two by themselves


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
        result = main(*args)
        _leave()
        return result

    if num_devices > 1:
        _refuse_one_device(device, num_devices)
    count = device_count(device)
    if num_devices < 1 or (count is not None and num_devices > count):
        raise UserError(f"--num-devices {num_devices}: this machine shows {count or 'any number of CPU'} device(s)")
    world_size = num_devices * num_machines
    if world_size == 1:
        return main(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError("--dist-url: several machines need the address of the first, tcp://HOST:PORT")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    run_processes(_rank, num_devices, (main, world_size, num_devices, machine_rank, dist_url, device, args))


def run_processes(function, count: int, args: tuple = ()) -> None:
    """Run ``function(number, *args)`` in `count` spawned processes; a failing one ends all, with its own traceback.

    Args:
        function: can be pickled; `number` counts from 0.

    Raises:
        UserError: what one of them raised.
        torch.multiprocessing.ProcessRaisedException: one raised something else.
        torch.multiprocessing.ProcessExitedException: one was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(_process, nprocs=count, args=(function, args, folder))
        except (mp.ProcessRaisedException, mp.ProcessExitedException):
            # the first process to end is often one that only lost its peer: what a user can mend comes first
            refusals = sorted(Path(folder).iterdir(), key=lambda path: int(path.name))
            if refusals:
                raise UserError(refusals[0].read_text(encoding="utf-8")) from None
            raise


def _process(number, function, args, folder):
    try:
        function(number, *args)
    except UserError as error:
        (Path(folder) / str(number)).write_text(str(error), encoding="utf-8")
        raise
    except Exception:
        print(f"process {number} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        raise


def _rank(local_rank, main, world_size, local_size, machine_rank, dist_url, device, args):
    rank = machine_rank * local_size + local_rank
    _join(dist_url, rank, world_size, local_rank, local_size, device)
    main(*args)
    _leave()


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
        raise UserError(f"MODEL.DEVICE {device} names one device for {processes} processes: leave the index out")


def _join(url: str, rank: int, world_size: int, local_rank: int, local_size: int, device: str) -> None:
    """Enter the process group and tell fast-reid which ranks share this machine."""
    choose_device(device, local_rank)
    dist.init_process_group(collective_backend(device), init_method=url, rank=rank, world_size=world_size)
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
