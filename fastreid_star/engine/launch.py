"""Start one process a device, by spawn on one machine or under torchrun on several."""

from __future__ import annotations

import os
import socket
import sys
import traceback

import torch.distributed as dist
import torch.multiprocessing as mp
from fastreid.utils import comm

from fastreid_star.engine.device import choose_device, collective_backend, device_count
from fastreid_star.errors import UserError


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

    Under torchrun (RANK and WORLD_SIZE are set) the processes are there already and this only joins them. Otherwise
    `num_devices` processes are spawned on this machine; a failing one ends all of them, with its own traceback.

    Args:
        main: a function that can be pickled.
        num_devices: devices, and so processes, of this machine.
        device: ``MODEL.DEVICE``.
        num_machines, machine_rank, dist_url: as in fast-reid; ``auto`` takes a free port on one machine.
        args: arguments of `main`.

    Raises:
        UserError: more devices than there are, or several machines without an address.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if int(os.environ["WORLD_SIZE"]) > 1:
            local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
            _join("env://", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, local_size, device)
        try:
            return main(*args)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    if num_devices > 1 and ":" in device:
        raise UserError(
            f"MODEL.DEVICE {device} names one device, but --num-devices is {num_devices}: leave the index out"
        )
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
    try:
        mp.spawn(
            _worker, nprocs=num_devices, args=(main, world_size, num_devices, machine_rank, dist_url, device, args)
        )
    except mp.ProcessRaisedException as error:
        last_line = str(error).strip().splitlines()[-1]
        _, user_error, message = last_line.partition(f"{UserError.__name__}: ")
        if user_error:
            raise UserError(message) from None
        raise


def _worker(local_rank, main, world_size, local_size, machine_rank, dist_url, device, args):
    rank = machine_rank * local_size + local_rank
    _join(dist_url, rank, world_size, local_rank, local_size, device)
    try:
        main(*args)
    except UserError:
        raise
    except Exception:
        # what the parent reports is the first process to end, often one that only lost its peer
        print(f"rank {rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        raise
    finally:
        dist.destroy_process_group()


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
