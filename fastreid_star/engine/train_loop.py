"""One optimization step: reproducible from its number, and stopped before it can spoil weights."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from typing import Any, NoReturn

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import SimpleTrainer, TrainerBase
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage

from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import on_host
from fastreid_star.engine.finite import StepNumbers, describe, measure, not_finite
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

logger = logging.getLogger(__name__)
STEP_FORMAT = "fastreid_star training step 2"  # of the file that engine/replay.py reads


class StepRunner(SimpleTrainer):
    """One optimization step, in full or mixed precision, on any device.

    All randomness of a step (style, dropout) follows from (seed, rank, iteration), so a resumed run
    draws what the uninterrupted one would have drawn.

    A step whose losses, gradients or BatchNorm statistics are not finite changes nothing. Without a
    gradient scaler it ends the run on all ranks and is kept in a file for ``replay``. With a scaler
    (float16) it is skipped, and only `max_skipped` such steps in a row end the run.

    Args:
        model: returns a dict of losses in training.
        data_loader: yields batches on the model's device, without end.
        optimizer: of the model's parameters.
        device: the model's.
        amp_dtype: None for full precision, else ``float16`` or ``bfloat16``.
        seed: of the run.
        cfg: of the run; a step that ends it is kept in its OUTPUT_DIR. None: it is not kept.

    Attributes:
        skipped: number of skipped steps.
        max_skipped: so many skipped steps in a row end the run.
    """

    max_skipped = 50

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        *,
        device: torch.device,
        amp_dtype: str | None,
        seed: int,
        cfg: CfgNode | None = None,
    ):
        TrainerBase.__init__(self)
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.grad_scaler = devices.grad_scaler(device, amp_dtype)
        self.seed = seed
        self.skipped = self._skipped_in_a_row = 0
        self._device, self._amp_dtype, self._cfg = device, amp_dtype, cfg
        self._batches: Any = None  # opened at the first step, after a resumed run set its position
        self._bare = getattr(model, "module", model)
        self._parameters = dict(self._bare.named_parameters())
        # what a forward pass changes: buffers, and the parameters of the model's own optimizer
        self._changing = dict(self._bare.named_buffers())
        self._own: torch.optim.Optimizer | None = getattr(self._bare, "own_optimizer", None)
        own = {id(p) for g in (self._own.param_groups if self._own else ()) for p in g["params"]}
        self._changing |= {n: p.data for n, p in self._parameters.items() if id(p) in own}
        floating = {name: b for name, b in self._changing.items() if b.is_floating_point()}
        infinite = not_finite(floating)  # a mask of infinities may be a buffer
        self._watched = {name: b for name, b in floating.items() if name not in infinite}
        self._before: dict[str, torch.Tensor] = {}  # the same before the step
        self._own_before: dict[str, Any] = {}  # and the state of that optimizer

    def run_step(self):
        assert self.model.training, "the model was left in eval mode"
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batch = next(self._batches)
        data_time = time.perf_counter() - start

        if not self._before:
            self._before = {name: buffer.clone() for name, buffer in self._changing.items()}
        copy_all(self._before, self._changing)
        if self._own is not None:
            self._own_before = copy.deepcopy(self._own.state_dict())
        devices.seed_everywhere(step_seed(self.seed, comm.get_rank(), self.iter))
        with devices.autocast(self._device, self._amp_dtype):
            losses = self.model(batch)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        if self.grad_scaler is None:
            total.backward()
            mine = measure(losses, self._gradients(), self._watched)
        else:  # which looks at the gradients itself
            self.grad_scaler.scale(total).backward()
            mine = measure(losses, {}, self._watched)
        # every rank knows the numbers of all, so that all do the same
        numbers, data_times = zip(*comm.all_gather((mine, data_time)), strict=True)
        self._write_metrics(numbers, max(data_times))
        if self.grad_scaler is not None:
            self._step_scaled(batch, numbers)
        elif all(n.forward_is_finite and not n.gradients for n in numbers):
            self.optimizer.step()
        else:
            self._stop(batch, numbers)

    def _step_scaled(self, batch: dict, numbers: tuple[StepNumbers, ...]) -> None:
        """With a gradient scaler: step or skip."""
        scaler = self.grad_scaler
        before = scaler.state_dict()
        finite = all(n.forward_is_finite for n in numbers)
        if finite:
            scaler.step(self.optimizer)
            scaler.update()
            if scaler.get_scale() >= before["scale"]:
                self._skipped_in_a_row = 0
                return
            problem = f"its gradients overflow at a scale of {before['scale']:g}"
        else:
            # not the scale's fault, so it stays; unscaling clears the chip's flag of an overflow
            scaler.unscale_(self.optimizer)
            scaler.update(before["scale"])
            self._undo()
            problem = describe(numbers)
        self.skipped += 1
        self._skipped_in_a_row += 1
        logger.log(
            logging.DEBUG if finite else logging.WARNING,
            f"Iteration {self.iter} was skipped: {problem} ({self._skipped_in_a_row} in a row; "
            f"{self.max_skipped} end the run)",
        )
        if self._skipped_in_a_row >= self.max_skipped:
            if finite:
                bad = not_finite(self._gradients())
                numbers = tuple(n._replace(gradients=bad) for n in numbers)
            self._stop(batch, numbers, scaler=before)

    def _stop(
        self, batch: dict, numbers: tuple[StepNumbers, ...], scaler: dict | None = None
    ) -> NoReturn:
        """End the run on all ranks with one line, after the step has been kept."""
        mine = numbers[comm.get_rank()]
        path = None
        # gradients are averaged over the ranks: then each rank keeps its share
        of_all = all(n.forward_is_finite for n in numbers)
        if self._cfg is not None and (of_all or not mine.forward_is_finite):
            path = self._keep(self._cfg, batch, mine, scaler)
        self._undo()
        inputs = not_finite({k: v for k, v in batch.items() if isinstance(v, torch.Tensor)})
        # a rank that ends ends all, so none may end before the last has written
        paths, inputs_of_all = zip(*comm.all_gather((path, inputs)), strict=True)
        kept = [path for path in paths if path]
        rate = max(float(group["lr"]) for group in self.optimizer.param_groups)
        skipped = f"{self._skipped_in_a_row} steps in a row were skipped, the last because "
        raise UserError(
            f"{skipped if scaler else ''}{describe(numbers)} at iteration {self.iter} (learning "
            f"rate {rate:.3g}); the step was not taken: {self._cure(sum(inputs_of_all, ()))}"
            + (f"; find where it began with: fastreid-star replay {kept[0]}" if kept else "")
        )

    def _cure(self, inputs: tuple[str, ...]) -> str:
        """What the user can do.

        Args:
            inputs: names of the tensors in the batch that are not finite, on any rank.
        """
        if inputs:
            return f"the batch's {inputs[0]} was not finite: check the data with `check`"
        weights = not_finite(self._parameters)
        if weights:
            return f"the weight {weights[0]} is not finite before the step: use another checkpoint"
        cure = "lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_EPOCHS or check the clips of the batch"
        if self._amp_dtype == "float16":
            return f"set SOLVER.AMP.DTYPE bfloat16, {cure}"
        return f"set SOLVER.AMP.ENABLED False, {cure}" if self._amp_dtype else cure

    def _keep(
        self, cfg: CfgNode, batch: dict, numbers: StepNumbers, scaler: dict | None
    ) -> str | None:
        """Keep this rank's step for ``replay``; return its path, or None if that fails."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        of_rank = f"-rank{rank}" if world_size > 1 else ""
        path = os.path.join(cfg.OUTPUT_DIR, f"nonfinite-{self.iter}{of_rank}.pth")
        weights = self._bare.state_dict()
        weights.update((name, value) for name, value in self._before.items() if name in weights)
        content = {
            "format": STEP_FORMAT,
            "config": cfg.dump(),
            "seed": self.seed,
            "rank": rank,
            "world_size": world_size,
            "iteration": self.iter,
            "amp_dtype": self._amp_dtype,
            "clips": names_of(batch, self.data_loader),
            "losses": dict(numbers.losses),
            # what hooks may have changed since the model was built
            "epoch": getattr(self._bare, "epoch", 0),
            "evaluating": [name for name, m in self._bare.named_modules() if not m.training],
            "frozen": [name for name, p in self._parameters.items() if not p.requires_grad],
            "batch": on_host(batch),
            "model": on_host(dict(weights)),
            "grad_scaler": on_host(scaler),
            "own_optimizer": on_host(self._own_before),
        }
        try:
            write_whole(path, lambda file: torch.save(content, file))
        except Exception as error:  # a full disk, say: the other ranks wait for this one
            logger.warning(f"The step could not be kept in {path}: {error}")
            return None
        return path

    def _undo(self) -> None:
        """Take back what the forward pass has changed."""
        copy_all(self._changing, self._before)
        if self._own is not None:
            self._own.load_state_dict(self._own_before)

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def _write_metrics(self, numbers: tuple[StepNumbers, ...], data_time: float) -> None:
        """The losses, averaged over the ranks, to fast-reid's storage.

        Those of a bad step are left out, or one would be the log's median for many steps. But the
        progress bar reads a total from the first step on.
        """
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", data_time)
        names = numbers[0].losses
        means = {name: float(np.mean([n.losses[name] for n in numbers])) for name in names}
        finite = all(math.isfinite(value) for value in means.values())
        if finite or "total_loss" not in storage.latest():
            storage.put_scalar("total_loss", sum(means.values()))
        if finite and len(means) > 1:
            storage.put_scalars(**means)


@torch.no_grad()
def copy_all(to: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> None:
    """Copy all tensors in place, with one kernel for each data type."""
    for dtype in {buffer.dtype for buffer in source.values()}:
        names = [name for name, buffer in source.items() if buffer.dtype == dtype]
        torch._foreach_copy_([to[name] for name in names], [source[name] for name in names])


def names_of(batch: dict, data_loader) -> list[str]:
    """The clips of a batch, as first frames of their tracklets, or the paths of its images."""
    tracklets = getattr(getattr(data_loader, "dataset", None), "tracklets", None)
    if tracklets is not None and "index" in batch:
        return [tracklets[index].key(0) for index in batch["index"].tolist()]
    return [str(path) for path in batch.get("img_paths", [])]


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """A well-mixed 63-bit seed for one step of one rank."""
    word = np.random.SeedSequence((seed, rank, iteration)).generate_state(1, np.uint64)[0]
    return int(word) >> 1  # as Python's integer: NumPy 1.x cannot shift a uint64
