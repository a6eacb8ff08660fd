"""Training hooks for evaluation, checkpoints, freezing and the progress bar."""

from __future__ import annotations

import difflib
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastreid.engine import hooks
from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastreid_star.engine.checkpoint import ROLLING, Checkpointer
from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)


class LRScheduler(hooks.LRScheduler):
    """fast-reid's hook with a complete warm-up; it logs the largest rate of all groups.

    fast-reid skips a step of the warm-up whenever the gradient scaler changes its scale, but ends
    the warm-up by the number of iterations: after a few overflows the rate stays below ``BASE_LR``
    for the whole run. And it logs the group with the most parameters, often the backbone's.
    """

    def __init__(self, optimizer, scheduler):
        super().__init__(optimizer, scheduler)
        rates = [group["lr"] for group in optimizer.param_groups]
        self._best_param_group_id = rates.index(max(rates))

    def after_step(self):
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        if self.trainer.iter + 1 <= self.trainer.warmup_iters:
            self._scheduler["warmup_sched"].step()

    def after_epoch(self):
        with warnings.catch_warnings():
            # a run that resumes at the end of an epoch gets here before any optimizer step
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            super().after_epoch()


class Freeze(HookBase):
    """Freeze parts of the model: neither weights nor BatchNorm statistics change.

    Args:
        model: not wrapped.
        optimizer: of its parameters.
        layers: names of modules or parameters, such as ``backbone`` or ``backbone.stages.0``.
        iterations: of the run, resumed or not, for which they are frozen.

    Raises:
        UserError: the model has no module or parameter of that name, or `iterations` is 0.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        layers: Sequence[str],
        iterations: int,
    ):
        parameters = dict(model.named_parameters())
        modules = dict(model.named_modules())
        for layer in layers:
            if not layer or layer not in modules.keys() | parameters.keys():
                near = difflib.get_close_matches(layer, [*modules, *parameters], n=1, cutoff=0.0)
                raise UserError(f"MODEL.FREEZE_LAYERS: no layer {layer!r}; did you mean {near[0]}?")
        if iterations <= 0:
            raise UserError(
                f"MODEL.FREEZE_LAYERS {list(layers)} needs SOLVER.FREEZE_ITERS, the number of "
                "iterations to freeze them; a number beyond the run's end freezes them throughout"
            )
        self._modules = [modules[layer] for layer in layers if layer in modules]
        self._parameters = [
            parameter
            for name, parameter in parameters.items()
            if any(name == layer or name.startswith(f"{layer}.") for layer in layers)
        ]
        self._layers, self._iterations = layers, iterations
        self._frozen = False
        optimizer.register_step_pre_hook(self._drop_gradients)

    def before_step(self):
        before, self._frozen = self._frozen, self.trainer.iter < self._iterations
        if self._frozen != before:
            state = "Frozen" if self._frozen else "No longer frozen"
            logger.info(f"{state}: {', '.join(self._layers)}")
        if self._frozen or before:  # in every step: an evaluation puts the whole model into train()
            for module in self._modules:
                module.train(not self._frozen)

    def _drop_gradients(self, *_):
        if self._frozen:
            for parameter in self._parameters:
                parameter.grad = None


class EvalHook(HookBase):
    """Evaluate every `period` epochs and after the last; `period` 0: never.

    fast-reid's own divides by the period, and evaluates after a failed training too.

    Args:
        period: in epochs.
        evaluate: returns a nested dict of numbers; called on every rank, filled on the main one.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict]):
        self._period = period
        self._evaluate = evaluate
        self.results: dict | None = None

    @property
    def due(self) -> bool:
        """Whether this epoch ends with an evaluation."""
        epoch = self.trainer.epoch + 1
        return self._period > 0 and (epoch % self._period == 0 or epoch == self.trainer.max_epoch)

    def after_epoch(self):
        self.results = None
        if self.due:
            self.results = self._evaluate()
            if self.results:
                self.trainer.storage.put_scalars(
                    **flatten_results_dict(self.results), smoothing_hint=False
                )
            comm.synchronize()


class CheckpointHook(HookBase):
    """Keep the best checkpoint, by the evaluation's ``metric``, and the last one.

    ``model_best.pth`` is written when an evaluation beats all before it, ``model_last.pth`` every
    `period` epochs, ``model_final.pth`` at the end. Each holds `epoch`, the index of the last
    complete epoch, `iteration`, the number of steps, and `iters_per_epoch`.

    Args:
        checkpointer: writes on the main rank.
        period: in epochs; 0: only at the end.
        evaluation: the hook that evaluates; it must run before this one.
        metric_name: the key of the metric in the flattened results.
    """

    def __init__(
        self, checkpointer: Checkpointer, period: int, evaluation: EvalHook, metric_name: str
    ):
        self._checkpointer = checkpointer
        self._period = period
        self._evaluation = evaluation
        self._metric_name = metric_name

    def after_epoch(self):
        trainer = self.trainer
        epoch = trainer.epoch + 1
        metric = flatten_results_dict(self._evaluation.results or {}).get(self._metric_name)
        if metric is not None and metric > trainer.progress.best_metric:
            trainer.progress.best_metric = float(metric)
            self._checkpointer.save(
                "model_best", tag=False, metric=float(metric), **place(trainer, trainer.epoch)
            )
        if epoch == trainer.max_epoch:
            self._checkpointer.save("model_final", **place(trainer, trainer.epoch))
        elif self._period > 0 and epoch % self._period == 0:
            self._checkpointer.save(ROLLING, **place(trainer, trainer.epoch))


class SaveBeforeEvaluation(HookBase):
    """Write ``model_last.pth`` before an evaluation, which may take long and fail.

    The epoch counts as incomplete: a run that resumes from here does everything that follows an
    epoch, including the evaluation. So this must be the first hook with an ``after_epoch``.
    """

    def __init__(self, checkpointer: Checkpointer, evaluation: EvalHook):
        self._checkpointer = checkpointer
        self._evaluation = evaluation

    def after_epoch(self):
        # a run that resumed from this very checkpoint does not write it again
        if self._evaluation.due and self.trainer.iter > self.trainer.start_iter:
            self._checkpointer.save(ROLLING, **place(self.trainer, self.trainer.epoch - 1))


def place(trainer, epoch: int) -> dict[str, Any]:
    """Where a run is, for its checkpoints; `epoch` is the last complete one, or -1."""
    return {"epoch": epoch, "iteration": trainer.iter, "iters_per_epoch": trainer.iters_per_epoch}


class SetEpoch(HookBase):
    """Set ``model.epoch`` before each epoch: the active losses of a model depend on it."""

    def __init__(self, model):
        self._model = model

    def before_epoch(self):
        self._model.epoch = self.trainer.epoch

    def after_train(self):
        self._model.epoch = None


class ReplacedFrames(HookBase):
    """Log after every epoch how many broken frames were replaced by a neighbor, on all ranks."""

    def __init__(self, loader):
        self._loader = loader
        self._reported = 0

    def after_epoch(self):
        new = sum(comm.all_gather(self._loader.replaced - self._reported))
        if new:
            logger.warning(
                f"{new} broken frames were replaced by their nearest good neighbor in this epoch"
            )
        self._reported = self._loader.replaced


class PeriodicWriter(hooks.PeriodicWriter):
    """fast-reid's hook, opening its files when training starts, and writing each iteration once.

    fast-reid writes after a step and again after the epoch that ends with it. The second time its
    log line divides by zero, and metrics.json leaves out the evaluation.
    """

    def __init__(self, build_writers: Callable[[], list], period: int):
        super().__init__([], period)
        self._build_writers = build_writers

    def before_train(self):
        self._writers = self._build_writers()

    def after_step(self):
        if (self.trainer.iter + 1) % self.trainer.iters_per_epoch:
            super().after_step()


class ProgressBar(HookBase):
    """A bar with the remaining time, if standard error is a terminal; log lines appear above it."""

    _bar: Any = None

    def before_train(self):
        trainer = self.trainer
        loggers = [logging.getLogger(name) for name in ("fastreid", "fastreid_star")]
        self._redirect = logging_redirect_tqdm(loggers=loggers)
        self._redirect.__enter__()
        self._bar = tqdm(
            total=trainer.max_iter, initial=trainer.start_iter, unit="it", dynamic_ncols=True
        )

    def after_step(self):
        latest = self.trainer.storage.latest()
        self._bar.set_postfix(
            epoch=f"{self.trainer.epoch + 1}/{self.trainer.max_epoch}",
            loss=f"{latest['total_loss'][0]:.3f}",
            lr=f"{latest['lr'][0]:.1e}" if "lr" in latest else "-",
            refresh=False,
        )
        self._bar.update()

    def after_train(self):
        if self._bar is not None:  # None: training failed before the first step
            self._bar.close()
            self._redirect.__exit__(None, None, None)

    @staticmethod
    def fits() -> bool:
        """Whether standard error is a terminal."""
        return sys.stderr.isatty()
