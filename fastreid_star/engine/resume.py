"""Where a run starts: from its last checkpoint, from given weights, or from the beginning."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import yaml
from fastreid.config import CfgNode
from fastreid.utils import comm

from fastreid_star.engine.builders import Builders
from fastreid_star.engine.checkpoint import Checkpointer, set_earlier_run_aside
from fastreid_star.engine.config_changes import check_resumed
from fastreid_star.errors import UserError
from fastreid_star.files import locked
from fastreid_star.modeling.backbones.pretrained import match, require_fit
from fastreid_star.upgrade import is_of_first_release, upgrade_config
from fastreid_star.weights import read_weights

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a checkpoint holds beside the weights, the optimizer and the schedule.

    Attributes:
        trackers: the run's id in each tracker of TRACKERS.
    """

    seed: int
    best_metric: float = -1.0
    trackers: dict[str, str] = field(default_factory=dict)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Resumable(Builders):
    """The part of the trainer that restores a run.

    Attributes:
        start_epoch: the first incomplete epoch, from 0.
        start_iter: number of completed steps.
    """

    cfg: CfgNode
    cfg_as_written: CfgNode
    checkpointer: Checkpointer
    progress: Progress
    start_epoch = start_iter = 0

    def resume_or_load(self, resume: bool = True, *, allow_changed: bool = False) -> None:
        """Resume from ``OUTPUT_DIR``'s last checkpoint, or load ``MODEL.WEIGHTS`` and start anew.

        A resumed run continues exactly, also in the middle of an epoch: weights, optimizer,
        schedule, scaler, best metric, seed and the sampler's position are restored. (fast-reid's
        image samplers draw from global generators, so later image batches differ.) A run that
        starts anew moves the checkpoints of an earlier run in its folder aside.

        Args:
            resume: False, or no checkpoint: start anew.
            allow_changed: resume although the config differs from the checkpoint's in keys with
                which it cannot continue exactly; the new values apply.

        Raises:
            UserError: no checkpoint is good, or it cannot be continued with this config.
        """
        name = self._last_checkpoint() if resume else None
        with self._alone():
            if name is not None:
                self._resume(os.path.join(self.cfg.OUTPUT_DIR, name), allow_changed)
            else:
                if self.cfg.MODEL.WEIGHTS:
                    self._load_weights(self.cfg.MODEL.WEIGHTS)
                comm.synchronize()  # MODEL.WEIGHTS may be among the files that are moved
                main = comm.is_main_process()
                aside = set_earlier_run_aside(self.cfg.OUTPUT_DIR) if main else None
                if aside:
                    logger.warning(f"The checkpoints of an earlier run were moved to {aside}")
        if self.progress.seed != self.cfg.SEED:
            logger.warning(
                f"The run continues with its own seed, {self.progress.seed}, not {self.cfg.SEED}"
            )
        self._trainer.seed = self.progress.seed
        sampler = self.data_loader.batch_sampler
        if hasattr(sampler, "set_start"):
            sampler.set_start(self.start_iter, seed=self.progress.seed)

    def _last_checkpoint(self) -> str | None:
        """The name of the file that all processes resume from, as the main one chose it."""
        name = problem = None
        if comm.is_main_process():
            try:
                name = self.checkpointer.newest()
            except UserError as error:
                problem = str(error)
        name, problem = comm.all_gather((name, problem))[0]
        if problem:
            raise UserError(problem)
        path = os.path.join(self.cfg.OUTPUT_DIR, name or "")
        if name and not all(comm.all_gather(os.path.isfile(path))):
            raise UserError(
                f"--resume: the processes do not see the same checkpoint: OUTPUT_DIR {path} must "
                "be in one folder that all machines share"
            )
        return name

    def _resume(self, path: str, allow_changed: bool) -> None:
        saved = self.checkpointer.resume(
            path, check=lambda data: self._compare(data, allow_changed)
        )
        for group in self.optimizer.param_groups:
            if "fused" in group:  # this device's choice, not the checkpoint's
                group["fused"] = self.optimizer.defaults["fused"]
        self.start_epoch = saved.get("epoch", -1) + 1
        self.start_iter = self.start_epoch * self.iters_per_epoch + saved["within_epoch"]

    def _compare(self, saved: dict, allow_changed: bool) -> None:
        """Refuse a checkpoint that this config cannot continue."""
        config = yaml.safe_load(saved.get("config") or "{}")
        if is_of_first_release(config):
            raise UserError(
                "--resume: a run of release 0.1.0 cannot be resumed, its optimizer has other "
                "shapes: start a new run with its weights in MODEL.WEIGHTS"
            )
        check_resumed(upgrade_config(config), self.cfg_as_written, allow=allow_changed)
        epoch = saved.get("epoch", -1) + 1
        length = saved.get("iters_per_epoch", self.iters_per_epoch)
        done = saved.get("iteration", epoch * length)
        saved["within_epoch"] = done - epoch * length
        if length == self.iters_per_epoch:
            return
        warmup = saved.get("warmup_sched", {}).get("warmup_iters", 0)
        if saved["within_epoch"]:
            place = "the middle of an epoch"
        elif done < warmup or epoch * self.iters_per_epoch < self.warmup_iters:
            place = "the warm-up"
        else:
            return
        raise UserError(
            f"--resume: the checkpoint is from {place} with {length} steps per epoch, this "
            f"config has {self.iters_per_epoch}: keep the data and SOLVER.IMS_PER_BATCH "
            "until it is over"
        )

    def _load_weights(self, path: str) -> None:
        """Start from the weights of a file, as far as they fit."""
        weights = read_weights(path)
        for name, module in self.checkpointer.model.named_modules():
            if hasattr(module, "fill_state"):  # it has copies of parts of another network
                module.fill_state(weights, f"{name}." if name else "")
        own = self.checkpointer.model.state_dict()
        backbone = {name: v for name, v in own.items() if name.startswith("backbone.")} or own
        require_fit(match(backbone, weights, what="network"), weights, f"MODEL.WEIGHTS {path}")
        logger.info(f"Loading weights from {path}")
        incompatible = self.checkpointer._load_model({"model": weights})
        self.checkpointer._log_incompatible_keys(incompatible)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A context in which no other run writes to OUTPUT_DIR."""
        with contextlib.ExitStack() as stack:
            problem = None
            if comm.is_main_process():
                try:
                    os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
                    stack.enter_context(locked(self.cfg.OUTPUT_DIR))
                except UserError as error:
                    problem = str(error)
            problem = comm.all_gather(problem)[0]
            if problem:
                raise UserError(problem)
            yield
