"""The trainer: fast-reid's DefaultTrainer with exact resume, and the function behind `train`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NoReturn

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.engine import hooks
from fastreid.engine.train_loop import TrainerBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
)
from torch.nn.parallel import DistributedDataParallel

from fastreid_star.data.build import DeviceLoader, all_video
from fastreid_star.engine import device as devices
from fastreid_star.engine.builders import Builders, device_of, iterations_per_epoch, probe
from fastreid_star.engine.checkpoint import (
    ROLLING,
    Checkpointer,
    ScalerState,
    misfits,
    read_weights,
    set_earlier_run_aside,
    versions,
)
from fastreid_star.engine.checks import require
from fastreid_star.engine.checks_machine import little_room
from fastreid_star.engine.defaults import setup
from fastreid_star.engine.failures import in_one_line
from fastreid_star.engine.fingerprint import check_evaluated, check_resumed
from fastreid_star.engine.hooks import (
    CheckpointHook,
    EvalHook,
    Freeze,
    LRScheduler,
    PeriodicWriter,
    ProgressBar,
    ReplacedFrames,
    SaveBeforeEvaluation,
    SetEpoch,
    place,
)
from fastreid_star.engine.interruption import Interrupted, Interruption
from fastreid_star.engine.solver import apply_config, resolve_schedule, settings
from fastreid_star.engine.train_loop import StepRunner
from fastreid_star.engine.unread_keys import RecordedConfig, check_unread
from fastreid_star.engine.weights import read_file, require_most, weights_of
from fastreid_star.errors import UserError
from fastreid_star.files import drop_cut_line, locked, remove_abandoned, write_whole

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a checkpoint holds beside the weights, the optimizer and the schedule."""

    seed: int
    best_metric: float = -1.0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Trainer(Builders):
    """fast-reid's trainer, for clips and images, on any device.

    Its class methods (build_model, build_train_loader, build_evaluator, test, ...) may be
    overridden as in fast-reid.

    Args:
        cfg: a complete config; see :func:`fastreid_star.engine.defaults.setup`.

    Attributes:
        start_epoch: the first incomplete epoch, from 0.
        start_iter: number of completed steps.

    Raises:
        UserError: the config or the data are wrong. Nothing was written then.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        require(cfg)
        self.device = device_of(cfg)
        # image augmentations differ between ranks; DDP shares the weights
        seed_all_rng(cfg.SEED + comm.get_rank())
        self.cfg_as_written = cfg
        recorded = cfg = RecordedConfig.of(cfg)
        loader = self.build_train_loader(cfg)
        if not isinstance(loader, DeviceLoader):  # of a subclass
            loader = DeviceLoader(loader, self.device)
        cfg = self.auto_scale_hyperparams(cfg, loader.dataset.num_classes)
        self.iters_per_epoch = iterations_per_epoch(cfg, loader)
        cfg = resolve_schedule(cfg, self.iters_per_epoch)

        model = self.build_model(cfg)
        optimizer, _ = self.build_optimizer(cfg, model)
        if comm.get_world_size() > 1:
            model = DistributedDataParallel(
                model,
                device_ids=None if self.device.type == "cpu" else [self.device.index],
                # parts that only some losses use have no gradient while those are inactive
                find_unused_parameters=cfg.MODEL.LOSSES.CE_ONLY_EPOCHS > 0
                or "CrossEntropyLoss" not in cfg.MODEL.LOSSES.NAME,
            )
        self._trainer = StepRunner(
            model,
            loader,
            optimizer,
            device=self.device,
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
            seed=cfg.SEED,
            max_skipped=cfg.SOLVER.AMP.MAX_SKIPPED,
            cfg=cfg,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer, self.iters_per_epoch)
        self.progress = Progress(seed=cfg.SEED)
        scaler = {} if self.grad_scaler is None else {"grad_scaler": ScalerState(self.grad_scaler)}
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            notes={"config": self.cfg_as_written.dump(), "versions": versions()},
            optimizer=optimizer,
            progress=self.progress,
            **self.scheduler,
            **scaler,
        )
        self.start_epoch = self.start_iter = 0
        self.max_epoch = cfg.SOLVER.MAX_EPOCH
        self.max_iter = self.max_epoch * self.iters_per_epoch
        self.warmup_iters = cfg.SOLVER.WARMUP_ITERS
        self.delay_epochs = cfg.SOLVER.DELAY_EPOCHS
        self.cfg = cfg
        self._last_eval_results: dict = {}
        self.register_hooks(self.build_hooks())
        if cfg.TEST.EVAL_PERIOD > 0:
            for name in cfg.DATASETS.TESTS:
                probe(self.model, self.build_evaluator(cfg, name)[0])
        # fast-reid's own evaluator reads its keys only when it evaluates
        clips = all_video(cfg.DATASETS.TESTS, "TESTS") and cfg.TEST.EVAL_PERIOD > 0
        check_unread(recorded, without=() if clips else ("TEST", "DATASETS.TESTS"))

    def build_hooks(self) -> list:
        """fast-reid's hooks, with the plugin's for evaluation, checkpoints and the bar."""
        cfg = self.cfg
        model = getattr(self.model, "module", self.model)

        def test_and_keep_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        evaluation = EvalHook(cfg.TEST.EVAL_PERIOD, test_and_keep_results)
        metric = "metric" if len(cfg.DATASETS.TESTS) == 1 else f"{cfg.DATASETS.TESTS[0]}/metric"
        ret = [hooks.IterationTimer()]
        if comm.is_main_process() and cfg.SOLVER.CHECKPOINT_PERIOD > 0:
            ret.append(SaveBeforeEvaluation(self.checkpointer, evaluation))
        ret.append(LRScheduler(self.optimizer, self.scheduler))
        if cfg.TEST.PRECISE_BN.ENABLED:
            if all_video(cfg.DATASETS.NAMES):
                raise UserError("TEST.PRECISE_BN.ENABLED supports only image datasets: set it to False")
            if hooks.get_bn_modules(self.model):
                data = cfg.clone()
                data.defrost()
                data.DATALOADER.NUM_WORKERS = 0
                data.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
                loader = self.build_train_loader(data)
                ret.append(hooks.PreciseBN(self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        if cfg.MODEL.FREEZE_LAYERS:
            layers, iterations = list(cfg.MODEL.FREEZE_LAYERS), cfg.SOLVER.FREEZE_ITERS
            ret.append(Freeze(model, self.optimizer, layers, iterations))
        ret.append(SetEpoch(model, cfg.MODEL.LOSSES.CE_ONLY_EPOCHS))
        ret.append(ReplacedFrames(self.data_loader))
        ret.append(evaluation)
        if comm.is_main_process():
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            ret.append(CheckpointHook(self.checkpointer, period, evaluation, metric))
            ret.append(PeriodicWriter(self.build_writers, cfg.SOLVER.LOG_PERIOD))
            if ProgressBar.fits():
                ret.append(ProgressBar())
        return ret

    def build_writers(self) -> list:
        """Log lines, metrics.json and TensorBoard; warns if the disk has no room for the run."""
        warning = little_room(self.cfg, self.model, self.optimizer)
        if warning:
            logger.warning(warning)
        folder = self.cfg.OUTPUT_DIR
        metrics = os.path.join(folder, "metrics.json")
        drop_cut_line(metrics)
        return [CommonMetricPrinter(self.max_iter), JSONWriter(metrics), TensorboardXWriter(folder)]

    def resume_or_load(self, resume: bool = True, *, allow_changed: bool = False) -> None:
        """Resume from ``OUTPUT_DIR``'s last checkpoint, or load ``MODEL.WEIGHTS`` and start anew.

        A resumed run continues exactly, also in the middle of an epoch: weights, optimizer,
        schedule, scaler, best metric, seed and the sampler's position are restored. (fast-reid's
        image samplers draw from global generators, so later image batches differ.) A run that
        starts anew moves the checkpoints of an earlier run in its folder aside.

        Args:
            resume: False, or no checkpoint: start anew.
            allow_changed: resume although the config differs from the checkpoint's in keys that
                make an exact continuation impossible; the new values apply.

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
        fresh = settings(self.optimizer, self.scheduler)
        saved = self.checkpointer.resume(path, check=lambda data: self._compare(data, allow_changed))
        for group in self.optimizer.param_groups:
            if "fused" in group:  # this device's choice, not the checkpoint's
                group["fused"] = self.optimizer.defaults["fused"]
        if any(key.startswith("SOLVER.") for key in saved["changed"]):
            apply_config(self.optimizer, self.scheduler, fresh)
        self.start_epoch = saved.get("epoch", -1) + 1
        self.start_iter = self.start_epoch * self.iters_per_epoch + saved["within_epoch"]

    def _compare(self, saved: dict, allow_changed: bool) -> None:
        """Refuse a checkpoint that this config cannot continue."""
        config = yaml.safe_load(saved.get("config") or "{}")
        saved["changed"] = check_resumed(config, self.cfg_as_written, allow=allow_changed)
        for key in ("SOLVER.OPT", "MODEL.CHANNELS_LAST"):  # the optimizer's state would not fit
            if key in saved["changed"]:
                raise UserError(f"--resume: {key} cannot change within a run: keep its value")
        epoch = saved.get("epoch", -1) + 1
        length = saved.get("iters_per_epoch", self.iters_per_epoch)
        done = saved.get("iteration", epoch * length)
        saved["within_epoch"] = done - epoch * length
        if length == self.iters_per_epoch:
            return
        warmup = saved.get("warmup_sched", {}).get("warmup_iters", 0)
        if saved["within_epoch"]:
            until = "that epoch"
        elif done < warmup or epoch * self.iters_per_epoch < self.warmup_iters:
            until = "the warm-up"
        else:
            return
        raise UserError(
            f"--resume: the checkpoint's epochs have {length} steps, this config's have "
            f"{self.iters_per_epoch}: keep the data and SOLVER.IMS_PER_BATCH until {until} is over"
        )

    def _load_weights(self, path: str) -> None:
        """Start from the weights of a file, as far as they fit."""
        weights = read_weights(path)
        own = self.checkpointer.model.state_dict()
        backbone = {name: v for name, v in own.items() if name.startswith("backbone.")} or own
        require_most(backbone, weights, f"MODEL.WEIGHTS {path}")
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

    def train(self) -> dict:
        """Run training to its end.

        SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 end it after the current step, with a
        checkpoint; an evaluation is finished before. A second signal ends it at once.

        Returns:
            the last evaluation's results; empty on other ranks than the main one, and without
            evaluation.

        Raises:
            Interrupted: a signal has ended it; on all ranks.
        """
        if self.start_epoch >= self.max_epoch:
            logger.info(
                f"Nothing to train: {self.cfg.OUTPUT_DIR} has {self.start_epoch} of "
                f"{self.max_epoch} epochs"
            )
            return self.test(self.cfg, self.model)
        with self._alone(), Interruption() as interruption:
            if comm.is_main_process():
                for name in remove_abandoned(self.cfg.OUTPUT_DIR):
                    logger.info(f"Removed {name}, which a killed process had not finished")
                config = self.cfg_as_written.dump().encode()
                path = os.path.join(self.cfg.OUTPUT_DIR, "config.yaml")
                write_whole(path, lambda file: file.write(config))
            done = self.start_iter - self.start_epoch * self.iters_per_epoch
            logger.info(
                f"Starting training from epoch {self.start_epoch + 1} of {self.max_epoch}"
                + (f", of which {done} of {self.iters_per_epoch} steps are done" if done else "")
            )
            self._train(interruption)
            number = interruption.at_end()
        memory = devices.peak_memory(self.device)
        if memory is not None:
            logger.info(f"Peak memory on {self.device}: {memory / 2**20:,.0f} MiB")
        if number:
            logger.warning(f"{signal.Signals(number).name}: the run was complete and is saved")
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
                    self.storage.epoch = epoch + 1  # log lines count from 1, as the bar does
                    end = (epoch + 1) * self.iters_per_epoch
                    if self.iter == end:  # only what follows the epoch's last step is left
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
        """The number of epochs done, for metrics.json: a resumed run may have longer epochs."""
        epochs = (self.storage.iter + 1) / self.iters_per_epoch
        self.storage.put_scalar("epoch", epochs, smoothing_hint=False)

    def _stop(self, number: int) -> NoReturn:
        """End the run between two steps; what follows an epoch is left to the resumed run."""
        self.checkpointer.save(ROLLING, **place(self, self.epoch - 1))
        comm.synchronize()  # a process that ends may end the others while the main one writes
        logger.warning(
            f"{signal.Signals(number).name}: stopped after step {self.iter} of {self.max_iter}; "
            "continue with --resume"
        )
        raise Interrupted(number)


def train_or_evaluate(args: argparse.Namespace) -> dict:
    """Train, or with ``--eval-only`` evaluate ``MODEL.WEIGHTS``.

    Args:
        args: of :func:`fastreid_star.engine.defaults.argument_parser`.

    Returns:
        the last evaluation's results (empty on other ranks than the main one).

    Raises:
        UserError: config, data or machine are wrong.
    """
    cfg = setup(args)
    allow_changed = getattr(args, "allow_changed", False)
    with in_one_line(cfg.MODEL.DEVICE):
        if not args.eval_only:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume, allow_changed=allow_changed)
            return trainer.train()
        require(cfg, training=False)
        cfg = RecordedConfig.of(cfg)
        model = load_trained(cfg, cfg.MODEL.WEIGHTS, allow_changed=allow_changed)
        if all_video(cfg.DATASETS.TESTS, "TESTS"):
            for name in cfg.DATASETS.TESTS:
                Trainer.build_evaluator(cfg, name)
            check_unread(cfg, sections=("TEST",))
        return Trainer.test(cfg, model)


def load_trained(cfg: CfgNode, path: str, *, allow_changed: bool = False) -> torch.nn.Module:
    """Build the model of `cfg` and load its weights, in eval mode.

    The number of identities is read from the weights, and no pretrained backbone is loaded.

    Args:
        cfg: of the model. A config in the checkpoint is compared with it.
        path: weights of fast-reid or this plugin, see
            :func:`~fastreid_star.engine.weights.read_weights`.
        allow_changed: load the weights although the network is configured in another way.

    Raises:
        UserError: the file cannot be read, or the weights are of another model: one missing or
            misshapen weight is enough.
    """
    data = read_file(path)
    weights = weights_of(data, path)
    check_evaluated(yaml.safe_load(data.get("config") or "{}"), cfg, allow=allow_changed)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    classifiers = [v for name, v in weights.items() if re.fullmatch(r"(heads|b\d+_head)\.weight", name)]
    if classifiers:
        cfg.MODEL.HEADS.NUM_CLASSES = classifiers[0].shape[0]
    cfg.freeze()
    model = Trainer.build_model(cfg)
    unused = [name for name in weights if name in ("pixel_mean", "pixel_std")]
    if unused:
        logger.info(f"Without effect in {path}: {', '.join(unused)}")
    weights = {name: value for name, value in weights.items() if name not in unused}
    wrong = misfits(model, weights)
    if wrong:
        raise UserError(
            f"checkpoint {path} is of another model: {len(wrong)} weights do not fit, first "
            f"{', '.join(wrong[:3])}; use the config it was trained with (config.yaml beside it)"
        )
    model.load_state_dict(weights)
    return model.eval()

