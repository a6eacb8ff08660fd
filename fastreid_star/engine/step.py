"""One optimisation step on any device, reproducible from its number alone."""

from __future__ import annotations

import time

import numpy as np
import torch
from fastreid.engine.train_loop import SimpleTrainer, TrainerBase
from fastreid.utils import comm

from fastreid_star.engine import device as devices


class StepRunner(SimpleTrainer):
    """One optimisation step, in full or mixed precision, on any device.

    All randomness of a step, style and dropout, follows from (seed, rank, iteration): a resumed run draws what the
    uninterrupted one would have drawn, and no generator's state has to be kept.

    Args:
        model: returns a dict of losses in training.
        data_loader: yields batches on the model's device, without end.
        optimizer: of the model's parameters.
        device: the model's.
        amp_dtype: None for full precision, else ``float16`` or ``bfloat16``.
        seed: of the run.
    """

    def __init__(self, model, data_loader, optimizer, *, device: torch.device, amp_dtype: str | None, seed: int):
        TrainerBase.__init__(self)
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.grad_scaler = devices.grad_scaler(device, amp_dtype)
        self._device = device
        self._amp_dtype = amp_dtype
        self.seed = seed
        self._batches = None  # opened at the first step: a resumed run sets the sampler's position before

    def run_step(self):
        assert self.model.training, "the model was left in eval mode"
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batch = next(self._batches)
        data_time = time.perf_counter() - start

        devices.seed_everywhere(step_seed(self.seed, comm.get_rank(), self.iter))
        with devices.autocast(self._device, self._amp_dtype):
            losses = self.model(batch)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        if self.grad_scaler is None:
            total.backward()
            self._write_metrics(on_host(losses), data_time)
            self.optimizer.step()
        else:
            self.grad_scaler.scale(total).backward()
            self._write_metrics(on_host(losses), data_time)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()


def on_host(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The losses on the CPU: fast-reid would read them on a CUDA stream that does not wait for them."""
    return {name: loss.detach().cpu() for name, loss in losses.items()}


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """A 63-bit seed for one step of one rank, well mixed."""
    return int(np.random.SeedSequence((seed, rank, iteration)).generate_state(1, np.uint64)[0] >> 1)
