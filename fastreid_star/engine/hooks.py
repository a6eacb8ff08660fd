"""Training hooks: evaluation, checkpoints, progress bar. The rest are fast-reid's own."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from fastreid.engine import hooks
from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastreid_star.engine.checkpoint import ROLLING, Checkpointer

logger = logging.getLogger(__name__)


class LRScheduler(hooks.LRScheduler):
    """fast-reid's hook with a warm-up that ends where it should, logging the largest learning rate of all groups.

    fast-reid skips a step of the warm-up whenever the gradient scaler changes its scale, but ends the warm-up by the
    number of iterations: after a few overflows the rate stays short of ``BASE_LR`` for the whole run. And it logs the
    group with the most parameters: the backbone's tenth, where a reader expects ``BASE_LR``.
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
            # a run that goes on at the very end of an epoch comes here first: the optimizer's steps were before
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            super().after_epoch()


class EvalHook(HookBase):
    """Evaluate every `period` epochs and after the last; `period` 0: never.

    fast-reid's own divides by the period, and evaluates again when training has failed.

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

    ``model_best.pth`` is written when an evaluation beats all before it, ``model_last.pth`` every `period` epochs,
    ``model_final.pth`` at the end. A run resumes from the last or the final one. Each holds `epoch`, the number of the
    last epoch that is over, `iteration`, how many steps were done, and `iters_per_epoch`.

    Args:
        checkpointer: writes on the main rank.
        period: in epochs; 0: only at the end.
        evaluation: the hook that evaluates, run before this one.
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
    """Write ``model_last.pth`` before an evaluation, which may take long, and fail.

    The epoch counts as not over: resumed from here, what is done after an epoch is done, the evaluation with it. So
    this is to be the first hook that does anything after an epoch.

    Args:
        checkpointer: writes on the main rank.
        evaluation: the hook that evaluates.
    """

    def __init__(self, checkpointer: Checkpointer, evaluation: EvalHook):
        self._checkpointer = checkpointer
        self._evaluation = evaluation

    def after_epoch(self):
        # a run that goes on from this very checkpoint has it already
        if self._evaluation.due and self.trainer.iter > self.trainer.start_iter:
            self._checkpointer.save(ROLLING, **place(self.trainer, self.trainer.epoch - 1))


def place(trainer, epoch: int) -> dict[str, Any]:
    """Where a run is, as its checkpoints say it.

    Args:
        trainer: between two steps.
        epoch: the number of the last epoch that is over; -1: none is.
    """
    return {"epoch": epoch, "iteration": trainer.iter, "iters_per_epoch": trainer.iters_per_epoch}


class SetEpoch(HookBase):
    """Tell the model the epoch, on which the set of active losses depends.

    Args:
        model: has an attribute `epoch`, see :class:`fastreid_star.modeling.VideoReID`.
    """

    def __init__(self, model):
        self._model = model

    def before_epoch(self):
        self._model.epoch = self.trainer.epoch

    def after_train(self):
        self._model.epoch = self.trainer.max_epoch


class ReplacedFrames(HookBase):
    """Say after every epoch how many broken frames were replaced by a neighbor.

    Args:
        loader: counts this process's in `replaced`; all processes' are reported.
    """

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
    """fast-reid's hook, writing each iteration once.

    fast-reid writes after a step and again after the epoch that the step ends. The second time its log line divides
    by zero iterations, and metrics.json leaves out the evaluation, which has the number of an iteration it has
    written already.
    """

    def after_step(self):
        if (self.trainer.iter + 1) % self.trainer.iters_per_epoch:
            super().after_step()


class ProgressBar(HookBase):
    """A bar with the time left, where standard error is a terminal; log lines are printed above it."""

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
        storage = self.trainer.storage
        latest = storage.latest()
        self._bar.set_postfix(
            epoch=f"{self.trainer.epoch + 1}/{self.trainer.max_epoch}",
            loss=f"{latest['total_loss'][0]:.3f}",
            lr=f"{latest['lr'][0]:.1e}" if "lr" in latest else "-",
            refresh=False,
        )
        self._bar.update()

    def after_train(self):
        if self._bar is not None:  # None: something failed before the first step
            self._bar.close()
            self._redirect.__exit__(None, None, None)

    @staticmethod
    def fits() -> bool:
        """Whether there is a terminal to draw on."""
        return sys.stderr.isatty()
