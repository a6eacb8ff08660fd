"""What the other figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import torch

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.engine import device as devices


def figures(options: Options) -> Iterator[Figure]:
    """The machine: what the other figures were measured on."""
    device = devices.describe(devices.choose_device(options.device))
    software = f"Python {platform.python_version()}, torch {torch.__version__}"
    stack = "".join(f", {name} {version}" for name, version in devices.inventory().items())
    # the cores this process may run on, which in a container are fewer than the machine has
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    name = _processor()
    yield Figure(
        "cores",
        cores,
        "",
        note=f"{device}; {name}; {software}{stack}{'; --quick' if options.quick else ''}",
    )


def _processor() -> str:
    """What kind of CPU this is, and the widest vectors that torch uses on it."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
