"""The most memory that training steps take, against the bare backbone's same passes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tqdm import tqdm

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.networks import BARE, Setting, TrainingStep
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.process import MB, in_own_process
from fastreid_star.engine import device as devices

STEPS = 2  # the optimizer's momentum comes to be in the first


def figures(options: Options) -> Iterator[Figure]:
    """The most memory that training steps of the baseline and of STAR take, against the bare backbone's."""
    # as the step's plain names
    setting = Setting() if options.on_cpu else Setting(channels_last=True, amp="bfloat16")
    peaks = {}
    for network in tqdm(
        (BARE, "sad", "star"), desc="memory", disable=not options.progress, leave=False
    ):
        outcome = in_own_process(train, network, setting, options)
        peaks[network] = outcome.growth if outcome.result is None else outcome.result
    where = "growth of a process of its own" if options.on_cpu else "tensors on the device"
    yield Figure(
        "backbone_step_memory_mb",
        peaks[BARE] / MB,
        "MB",
        note=f"{setting}, {options.work}; {where}",
    )
    for network in ("sad", "star"):
        yield Figure.against(
            f"{network}_step_memory_mb",
            peaks[network] / MB,
            "MB",
            peaks[BARE] / MB,
            f"the bare backbone, {setting}",
        )


def train(network: str, setting: Setting, options: Options) -> int | None:
    """Build a network and take some steps; the most memory on the device, None where the process has to be asked."""
    torch.manual_seed(0)
    step = TrainingStep(network, options.work, options, setting)
    for _ in range(STEPS):
        step()
    devices.synchronize(step.device)
    return devices.peak_memory(step.device)
