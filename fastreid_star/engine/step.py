"""One optimization step on any device, reproducible from its number alone, and stopped before it can spoil weights."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import SimpleTrainer, TrainerBase
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage

from fastreid_star.engine import device as devices
from fastreid_star.engine.numerics import Buffers, StepNumbers, measure, not_finite, some, tell
from fastreid_star.engine.step_file import keep_step, step_path
from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)


class StepRunner(SimpleTrainer):
    """One optimization step, in full or mixed precision, on any device.

    All randomness of a step, style and dropout, follows from (seed, rank, iteration): a resumed run draws what the
    uninterrupted one would have drawn, and no generator's state has to be kept.

    A step whose losses, gradients or BatchNorm statistics are not finite changes nothing. Without a gradient scaler
    it ends the run, on all ranks, and is kept in a file for tools/replay.py. With one it is skipped: overflowing
    gradients are how the scaler finds its scale, and a loss that overflows in float16 once may be finite in the next
    batch; only too many in a row end the run.

    Args:
        model: returns a dict of losses in training.
        data_loader: yields batches on the model's device, without end.
        optimizer: of the model's parameters.
        device: the model's.
        amp_dtype: None for full precision, else ``float16`` or ``bfloat16``.
        seed: of the run.
        max_skipped: with a gradient scaler: how many skipped steps in a row are too many.
        cfg: of the run; a step that ends it is kept in its OUTPUT_DIR. None: it is not kept.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        *,
        device: torch.device,
        amp_dtype: str | None,
        seed: int,
        max_skipped: int = 50,
        cfg: CfgNode | None = None,
    ):
        TrainerBase.__init__(self)
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.grad_scaler = devices.grad_scaler(device, amp_dtype)
        self._device = device
        self._amp_dtype = amp_dtype
        self.seed = seed
        self._batches: Any = (
            None  # opened at the first step: a resumed run sets the sampler's position before
        )
        self._cfg = cfg
        self._max_skipped = max_skipped
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._bare = getattr(model, "module", model)
        self._parameters = dict(self._bare.named_parameters())
        self._buffers = Buffers(self._bare)

    def run_step(self):
        assert self.model.training, "the model was left in eval mode"
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batch = next(self._batches)
        data_time = time.perf_counter() - start

        self._buffers.note()
        devices.seed_everywhere(step_seed(self.seed, comm.get_rank(), self.iter))
        with devices.autocast(self._device, self._amp_dtype):
            losses = self.model(batch)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        if self.grad_scaler is None:
            total.backward()
            mine = measure(losses, self._gradients(), self._buffers.watched())
        else:
            self.grad_scaler.scale(total).backward()
            mine = measure(
                losses, {}, self._buffers.watched()
            )  # gradients are the scaler's to look at
        # every rank hears of all, so that all do the same
        numbers_of_all, data_times = zip(*comm.all_gather((mine, data_time)), strict=True)
        everywhere = list(numbers_of_all)
        self._write_metrics(everywhere, max(data_times))
        if self.grad_scaler is not None:
            self._step_scaled(batch, everywhere)
        elif all(numbers.is_finite for numbers in everywhere):
            self.optimizer.step()
        else:
            self._stop(batch, everywhere)

    def _step_scaled(self, batch: dict, everywhere: list[StepNumbers]) -> None:
        """With a gradient scaler: the optimizer's step, or none."""
        scaler = self.grad_scaler
        before = scaler.state_dict()
        finite = all(numbers.is_finite for numbers in everywhere)
        if finite:
            scaler.step(self.optimizer)
            scaler.update()
            if scaler.get_scale() >= before["scale"]:
                self._skipped_in_a_row = 0
                return
        else:
            # the scale had no part in it and stays; looking at the gradients clears the chip's flag of an overflow
            scaler.unscale_(self.optimizer)
            scaler.update(before["scale"])
            self._buffers.restore()
        self.skipped += 1
        self._skipped_in_a_row += 1
        if finite:
            logger.debug(
                f"Iteration {self.iter} was skipped: its gradients overflow at a scale of {before['scale']:g}, "
                f"which is halved ({self.skipped} skipped so far, {self._skipped_in_a_row} in a row)"
            )
        else:
            logger.warning(
                f"Iteration {self.iter} was skipped: {tell(everywhere)} ({self._skipped_in_a_row} in a row; "
                f"{self._max_skipped} end the run)"
            )
        if self._skipped_in_a_row >= self._max_skipped:
            if finite:
                everywhere = [
                    replace(numbers, gradients=not_finite(self._gradients()))
                    for numbers in everywhere
                ]
            self._stop(batch, everywhere, scaler=before)

    def _stop(
        self, batch: dict, everywhere: list[StepNumbers], scaler: dict | None = None
    ) -> NoReturn:
        """End the run on all ranks with one line, after what is needed to run the step again has been kept."""
        mine = everywhere[comm.get_rank()]
        rate = max(float(group["lr"]) for group in self.optimizer.param_groups)
        epoch = getattr(get_event_storage(), "epoch", 0)
        path = problem = None
        # averaged gradients do not tell whose they were: then each rank keeps its share
        nobody = all(numbers.forward_is_finite for numbers in everywhere)
        if self._cfg is not None and (nobody or not mine.forward_is_finite):
            path, problem = self._keep(
                self._cfg, batch, mine, scaler, epoch=epoch, learning_rate=rate
            )
        self._buffers.restore()  # whoever saves the model now saves it as it was
        inputs = not_finite(
            {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        )
        # a rank that ends ends all: none may before the last has written
        found = comm.all_gather((path, problem, inputs))
        kept, problems = ([entry[place] for entry in found if entry[place]] for place in (0, 1))
        all_inputs = sorted({name for *_, names in found for name in names})
        cure = _cure(all_inputs, not_finite(self._parameters), self._amp_dtype)
        told = (
            (
                f"{self._skipped_in_a_row} steps in a row were skipped, the last because "
                if scaler
                else ""
            )
            + f"{tell(everywhere)} at iteration {self.iter} (epoch {epoch}, learning rate {rate:.3g}), "
            + f"whose step was not taken: {cure}"
        )
        if kept:
            told += f"; see where it began: tools/replay.py {kept[0]}"
            told += f" (and {len(kept) - 1} more beside it)" if len(kept) > 1 else ""
        if problems:
            told += f"; the step could not be kept: {problems[0]}"
        raise UserError(told)

    def _keep(
        self, cfg: CfgNode, batch: dict, numbers: StepNumbers, scaler: dict | None, **facts: float
    ) -> tuple[str | None, str | None]:
        """Keep this rank's step; the file, or what hindered it: the other ranks wait, so nothing is raised."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        path = step_path(cfg.OUTPUT_DIR, self.iter, rank, world_size)
        try:
            keep_step(
                path,
                model=self._bare,
                buffers=self._buffers.noted,
                optimizer=self.optimizer,
                scaler=scaler,
                batch=batch,
                numbers=numbers,
                config=cfg.dump(),
                seed=self.seed,
                rank=rank,
                world_size=world_size,
                iteration=self.iter,
                amp_dtype=self._amp_dtype,
                device=self._device.type,
                clips=names_of(batch, self.data_loader),
                **facts,
            )
        except Exception as error:  # a full disk, say
            return None, f"{type(error).__name__}: {error}".splitlines()[0]
        return path, None

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def _write_metrics(self, everywhere: list[StepNumbers], data_time: float) -> None:
        """The losses, averaged over the ranks, to fast-reid's storage.

        Those of a bad step are left out, or one would be the log's median for many steps; but the progress bar reads
        a total from the first step on.
        """
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", data_time)
        means = {
            name: float(np.mean([n.losses[name] for n in everywhere]))
            for name in everywhere[0].losses
        }
        finite = all(np.isfinite(value) for value in means.values())
        if finite or "total_loss" not in storage.latest():
            storage.put_scalar("total_loss", sum(means.values()))
        if finite and len(means) > 1:
            storage.put_scalars(**means)


def _cure(inputs: list[str], weights: tuple[str, ...], amp_dtype: str | None) -> str:
    """What to do, as far as it can be told from what came in."""
    if inputs:
        return f"the batch's {' and '.join(inputs)} came in like that: look at the data with tools/check_dataset.py"
    if weights:
        return f"{some(weights, 'weight')} not finite, and came in like that: start from another checkpoint"
    cures = [
        "lower SOLVER.BASE_LR",
        "lengthen SOLVER.WARMUP_EPOCHS",
        "look at the clips of the batch",
    ]
    if amp_dtype == "float16":
        cures.insert(0, "set SOLVER.AMP.DTYPE bfloat16")
    elif amp_dtype == "bfloat16":
        cures.insert(0, "set SOLVER.AMP.ENABLED False")
    return f"{', '.join(cures[:-1])} or {cures[-1]}"


def names_of(batch: dict, data_loader) -> list[str]:
    """The clips of a batch as a reader finds them again: the first frame of their tracklets, or paths of images."""
    tracklets = getattr(getattr(data_loader, "dataset", None), "tracklets", None)
    if tracklets is not None and "index" in batch:
        return [tracklets[index].key(0) for index in batch["index"].tolist()]
    return [str(path) for path in batch.get("img_paths", [])]


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """A 63-bit seed for one step of one rank, well mixed."""
    word = np.random.SeedSequence((seed, rank, iteration)).generate_state(1, np.uint64)[0]
    return int(word) >> 1  # as Python's integer: NumPy 1.x cannot shift a uint64
