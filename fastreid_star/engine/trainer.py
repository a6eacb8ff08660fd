"""The trainer: fast-reid's DefaultTrainer with exact resume, and the function behind `train`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from typing import Any, NoReturn

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
from fastreid_star.engine import hooks as star_hooks
from fastreid_star.engine.builders import device_of, iterations_per_epoch, load_trained, probe
from fastreid_star.engine.checkpoint import ROLLING, Checkpointer, ScalerState, versions
from fastreid_star.engine.checks import require
from fastreid_star.engine.defaults import setup
from fastreid_star.engine.failures import in_one_line
from fastreid_star.engine.interruption import Interrupted, Interruption, NoBatch
from fastreid_star.engine.resume import Progress, Resumable
from fastreid_star.engine.solver import resolve_schedule
from fastreid_star.engine.trackers import start_trackers
from fastreid_star.engine.train_loop import StepRunner
from fastreid_star.engine.unread_keys import RecordedConfig, check_unread
from fastreid_star.errors import UserError
from fastreid_star.files import drop_cut_line, write_whole

__all__ = ["Trainer", "load_trained", "train_or_evaluate"]
logger = logging.getLogger(__name__)


class Trainer(Resumable):
    """fast-reid's trainer, for clips and images, on any device.

    Its class methods (build_model, build_train_loader, build_evaluator, test, ...) may be
    overridden as in fast-reid.

    Args:
        cfg: a complete config; see :func:`fastreid_star.engine.defaults.setup`.

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
            # parts that only some losses use have no gradient while those are inactive, and a stem
            # has none if its modality is absent in a process's share of a batch
            mixed = getattr(loader.batch_sampler, "modalities", 2) == 1
            absent = mixed and cfg.MODEL.BACKBONE.STREAMS == 2
            model = DistributedDataParallel(
                model,
                device_ids=None if self.device.type == "cpu" else [self.device.index],
                find_unused_parameters=absent or getattr(model, "has_idle_parameters", False),
            )
        self._trainer = StepRunner(
            model,
            loader,
            optimizer,
            device=self.device,
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
            seed=cfg.SEED,
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
            **self._own_optimizer(),
        )
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
        evaluates = all_video(cfg.DATASETS.TESTS, "TESTS") and cfg.TEST.EVAL_PERIOD > 0
        check_unread(
            recorded,
            clips=all_video(cfg.DATASETS.NAMES),
            without=() if evaluates else ("TEST", "DATASETS.TESTS"),
        )

    def build_hooks(self) -> list:
        """fast-reid's hooks, with the plugin's for evaluation, checkpoints and the bar."""
        cfg = self.cfg
        model: Any = getattr(self.model, "module", self.model)

        def test_and_keep_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        evaluation = star_hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_keep_results)
        metric = "metric" if len(cfg.DATASETS.TESTS) == 1 else f"{cfg.DATASETS.TESTS[0]}/metric"
        ret = [hooks.IterationTimer()]
        if comm.is_main_process() and cfg.SOLVER.CHECKPOINT_PERIOD > 0:
            ret.append(star_hooks.SaveBeforeEvaluation(self.checkpointer, evaluation))
        ret.append(star_hooks.LRScheduler(self.optimizer, self.scheduler))
        if cfg.TEST.PRECISE_BN.ENABLED:
            if all_video(cfg.DATASETS.NAMES):
                raise UserError(
                    "TEST.PRECISE_BN.ENABLED supports only image datasets: set it to False"
                )
            if hooks.get_bn_modules(self.model):
                data = cfg.clone()
                data.defrost()
                data.DATALOADER.NUM_WORKERS = 0
                data.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
                loader = self.build_train_loader(data)
                ret.append(hooks.PreciseBN(self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        if cfg.MODEL.FREEZE_LAYERS:
            layers, iterations = list(cfg.MODEL.FREEZE_LAYERS), cfg.SOLVER.FREEZE_ITERS
            ret.append(star_hooks.Freeze(model, self.optimizer, layers, iterations))
        ret.append(star_hooks.SetEpoch(model))
        ret.append(star_hooks.ReplacedFrames(self.data_loader))
        ret.append(evaluation)
        if comm.is_main_process():
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            ret.append(star_hooks.CheckpointHook(self.checkpointer, period, evaluation, metric))
            ret.append(star_hooks.PeriodicWriter(self.build_writers, cfg.SOLVER.LOG_PERIOD))
            if star_hooks.ProgressBar.fits():
                ret.append(star_hooks.ProgressBar())
        return ret

    def _own_optimizer(self) -> dict[str, Any]:
        """The optimizer of a model that trains a part of itself, for the checkpoints."""
        own = getattr(getattr(self.model, "module", self.model), "own_optimizer", None)
        return {} if own is None else {"own_optimizer": own}

    def build_writers(self) -> list:
        """Log lines, metrics.json, TensorBoard, and the trackers of TRACKERS."""
        folder = self.cfg.OUTPUT_DIR
        metrics = os.path.join(folder, "metrics.json")
        drop_cut_line(metrics)
        own = [CommonMetricPrinter(self.max_iter), JSONWriter(metrics), TensorboardXWriter(folder)]
        return [*own, *start_trackers(self.cfg_as_written, self.progress.trackers)]

    def train(self) -> dict:
        """Run training to its end.

        SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 end it after the current step, with a
        checkpoint; an evaluation is finished before. A second signal ends it at once. If the step
        gets no batch, a single process ends without it, with a checkpoint; several processes end
        after a minute without a new checkpoint.

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
                        interruption.in_step = True
                        try:
                            self.run_step()
                        except NoBatch:  # the step has not begun
                            if comm.get_world_size() > 1:
                                raise  # other processes are in the middle of theirs
                            self._stop(interruption.number)
                        finally:
                            interruption.in_step = False
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
        self.checkpointer.save(ROLLING, **star_hooks.place(self, self.epoch - 1))
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
    with in_one_line():
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
            check_unread(cfg, sections=("TEST",), without=("TEST.EVAL_PERIOD",))  # of training
        return Trainer.test(cfg, model)
