"""A training that can be ended after any step and gone on with from there, bit for bit."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import asdict, dataclass
from typing import NoReturn

from fastreid.engine import DefaultTrainer
from fastreid.engine.train_loop import TrainerBase
from fastreid.utils import comm
from fastreid.utils.events import EventStorage

from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import ROLLING, set_earlier_run_aside
from fastreid_star.engine.hooks import place
from fastreid_star.engine.interruption import Interrupted, Interruption
from fastreid_star.errors import UserError
from fastreid_star.files import remove_abandoned

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a checkpoint remembers beside the weights, the optimizer and the schedule."""

    seed: int
    best_metric: float = -1.0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class ResumableTrainer(DefaultTrainer):
    """fast-reid's trainer, without its making: where a run starts, its loop, and where it ends.

    Attributes:
        cfg, checkpointer, progress, iters_per_epoch, max_epoch, max_iter: of the run.
        start_epoch: the first epoch that is not over.
        start_iter: how many steps are done.
    """

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from ``OUTPUT_DIR``'s last checkpoint, or load ``MODEL.WEIGHTS`` and start at the first step.

        A resumed run goes on exactly, from the middle of an epoch too: weights, optimizer, schedule, scaler, best
        metric, seed, and the sampler's place in its stream. (fast-reid's image samplers and transforms draw from
        global generators; there the data that follow differ from the uninterrupted run's.) Where the last checkpoint
        is damaged, the run goes on from the last good one. A run that starts at the first step puts the checkpoints
        of an earlier one in its folder aside.

        Raises:
            UserError: there are checkpoints, but no good one; or it is of another model; or of a run whose epochs had
                another number of steps, and it is from the middle of one.
        """
        name = self._last_checkpoint() if resume else None
        if name is None:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            comm.synchronize()  # MODEL.WEIGHTS may be what is moved
            aside = set_earlier_run_aside(self.cfg.OUTPUT_DIR) if comm.is_main_process() else None
            if aside:
                logger.warning(
                    f"The run starts anew: checkpoints of an earlier one are now in {aside}"
                )
        else:
            self._go_on(self.checkpointer.resume(os.path.join(self.cfg.OUTPUT_DIR, name)), name)
        if self.progress.seed != self.cfg.SEED:
            logger.warning(
                f"The run goes on with its own seed, {self.progress.seed}, not with {self.cfg.SEED}"
            )
        self._trainer.seed = self.progress.seed
        sampler = self.data_loader.batch_sampler
        if hasattr(sampler, "set_start"):
            sampler.set_start(self.start_iter, seed=self.progress.seed)

    def _last_checkpoint(self) -> str | None:
        """The name of the file that all processes resume from, which the main one has looked for."""
        name = problem = None
        if comm.is_main_process():
            try:
                name = self.checkpointer.newest()
            except UserError as error:
                problem = str(error)
        name, problem = comm.all_gather((name, problem))[0]
        if problem:
            raise UserError(problem)
        if name and not all(
            comm.all_gather(os.path.isfile(os.path.join(self.cfg.OUTPUT_DIR, name)))
        ):
            raise UserError(
                "--resume: the processes do not find the same checkpoint: OUTPUT_DIR "
                f"{self.cfg.OUTPUT_DIR} must be one folder that all machines see"
            )
        return name

    def _go_on(self, saved: dict, name: str) -> None:
        """Start where a checkpoint says that its run was."""
        self.start_epoch = saved.get("epoch", -1) + 1
        self.start_iter = self.start_epoch * self.iters_per_epoch
        length = saved.get("iters_per_epoch", self.iters_per_epoch)
        done = (
            saved.get("iteration", self.start_epoch * length) - self.start_epoch * length
        )  # of the next epoch
        if done and length != self.iters_per_epoch:
            raise UserError(
                f"--resume: {name} is from the middle of an epoch of {length} steps, and this config's have "
                f"{self.iters_per_epoch}: resume with the data and the SOLVER.IMS_PER_BATCH of that run until the "
                "epoch is over"
            )
        self.start_iter += done

    def train(self) -> dict:
        """Run training to its end.

        SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 end it after the step it is in, with a checkpoint; an evaluation
        is finished before. A second one ends it at once.

        Returns:
            the last evaluation's results; empty on other ranks than the main one, and without evaluation.

        Raises:
            Interrupted: a signal has ended it; on all ranks.
        """
        if comm.is_main_process():
            for name in remove_abandoned(self.cfg.OUTPUT_DIR):
                logger.info(f"Removed {name}, which a killed process had not finished")
        if self.start_epoch >= self.max_epoch:
            logger.info(
                f"Nothing to train: {self.cfg.OUTPUT_DIR} is at epoch {self.start_epoch} of {self.max_epoch}"
            )
            return self.test(self.cfg, self.model)
        done = self.start_iter - self.start_epoch * self.iters_per_epoch
        within = f", of which {done} of {self.iters_per_epoch} steps are done" if done else ""
        logger.info(f"Starting training from epoch {self.start_epoch}{within}")
        with Interruption() as interruption:
            self._train(interruption)
            number = interruption.at_end()
        memory = devices.peak_memory(self.device)
        if memory is not None:
            logger.info(f"Peak memory on {self.device}: {memory / 2**20:,.0f} MiB")
        if number:
            logger.warning(f"{signal.Signals(number).name}: the run was over, everything is saved")
            raise Interrupted(number)
        return self._last_eval_results

    def _train(self, interruption: Interruption) -> None:
        """fast-reid's loop, which can only start with a whole epoch, from any step."""
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                for epoch in range(self.start_epoch, self.max_epoch):
                    self.epoch = epoch
                    self.before_epoch()
                    end = (epoch + 1) * self.iters_per_epoch
                    if (
                        self.iter == end
                    ):  # all that is left of it is what comes after: it counts as of its last step
                        self.storage.iter = end - 1
                        self._note_epoch()
                    while self.iter < end:
                        self.before_step()
                        self.run_step()
                        self._note_epoch()
                        self.after_step()
                        self.iter += 1
                        number = interruption.after_step()
                        if number:
                            self._stop(number)
                    self.after_epoch()
            except Exception:
                logging.getLogger(TrainerBase.__module__).exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def _note_epoch(self) -> None:
        """How many epochs are done, for metrics.json: the number of steps in one may change when a run is resumed."""
        self.storage.put_scalar(
            "epoch", (self.storage.iter + 1) / self.iters_per_epoch, smoothing_hint=False
        )

    def _stop(self, number: int) -> NoReturn:
        """End the run between two steps; what is done after an epoch, if this is its end, is for the resumed run."""
        self.checkpointer.save(ROLLING, **place(self, self.epoch - 1))
        comm.synchronize()  # a process that ends may end the others, and the main one is still writing
        logger.warning(
            f"{signal.Signals(number).name}: stopped after step {self.iter} of {self.max_iter}; go on with --resume"
        )
        raise Interrupted(number)
