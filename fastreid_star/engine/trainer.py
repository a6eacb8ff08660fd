"""A trainer on fast-reid's DefaultTrainer and hooks: any device, video or image datasets, exact resume."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict

import torch
from fastreid.config import CfgNode
from fastreid.data.build import _test_loader_from_config, build_reid_test_loader
from fastreid.engine import hooks
from fastreid.engine.train_loop import TrainerBase
from fastreid.evaluation import inference_on_dataset
from fastreid.modeling.meta_arch import build_model
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch.nn.parallel import DistributedDataParallel

from fastreid_star import compat
from fastreid_star.data.build import (
    DeviceLoader,
    all_video,
    build_clip_test_loader,
    build_clip_train_loader,
    is_video_dataset,
)
from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import Checkpointer, ScalerState, versions
from fastreid_star.engine.checks import check
from fastreid_star.engine.checks_machine import little_room
from fastreid_star.engine.hooks import (
    CheckpointHook,
    EvalHook,
    LRScheduler,
    PeriodicWriter,
    ProgressBar,
    ReplacedFrames,
    SaveBeforeEvaluation,
    SetEpoch,
)
from fastreid_star.engine.resume import Progress, ResumableTrainer
from fastreid_star.engine.solver import build_lr_scheduler, build_optimizer, resolve_schedule
from fastreid_star.engine.step import StepRunner
from fastreid_star.engine.writers import open_writers
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import CrossModalEvaluator
from fastreid_star.files import drop_cut_line

logger = logging.getLogger(__name__)


class Trainer(ResumableTrainer):
    """fast-reid's trainer for clips and for images, on any device.

    Its class methods (build_model, build_train_loader, build_evaluator, test, ...) are fast-reid's extension points
    and may be overridden as there. For image datasets everything but the device handling is fast-reid's.

    Args:
        cfg: a complete config; see :func:`fastreid_star.engine.defaults.setup`.

    Raises:
        UserError: config or data are wrong.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        self.device = _device(cfg)
        if comm.is_main_process():
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        seed_all_rng(
            cfg.SEED + comm.get_rank()
        )  # image augmentations differ between ranks; DDP shares the weights
        check(cfg)
        notes = {"config": cfg.dump(), "versions": versions()}  # as the user has written it
        loader = self.build_train_loader(cfg)
        if not isinstance(loader, DeviceLoader):  # an override's own
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
                # parts that only some losses reach have no gradient while those losses rest
                find_unused_parameters=getattr(model, "has_idle_parameters", False),
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
            notes=notes,
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

    def build_hooks(self) -> list:
        """fast-reid's hooks, with evaluation, checkpoints and the bar from :mod:`fastreid_star.engine.hooks`."""
        cfg = self.cfg

        def test_and_keep_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        evaluation = EvalHook(cfg.TEST.EVAL_PERIOD, test_and_keep_results)
        metric = "metric" if len(cfg.DATASETS.TESTS) == 1 else f"{cfg.DATASETS.TESTS[0]}/metric"
        ret = [hooks.IterationTimer()]
        if comm.is_main_process() and cfg.SOLVER.CHECKPOINT_PERIOD > 0:
            ret.append(SaveBeforeEvaluation(self.checkpointer, evaluation))
        ret.append(LRScheduler(self.optimizer, self.scheduler))
        if cfg.TEST.PRECISE_BN.ENABLED and hooks.get_bn_modules(self.model):
            own = cfg.clone()
            own.defrost()
            own.DATALOADER.NUM_WORKERS = 0
            own.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
            ret.append(
                hooks.PreciseBN(
                    self.model, self.build_train_loader(own), cfg.TEST.PRECISE_BN.NUM_ITER
                )
            )
        if cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0:
            ret.append(
                hooks.LayerFreeze(self.model, cfg.MODEL.FREEZE_LAYERS, cfg.SOLVER.FREEZE_ITERS)
            )
        model = getattr(self.model, "module", self.model)
        if hasattr(model, "epoch"):
            ret.append(SetEpoch(model))
        ret.append(ReplacedFrames(self.data_loader))
        ret.append(evaluation)
        if comm.is_main_process():
            ret.append(
                CheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, evaluation, metric)
            )
            ret.append(PeriodicWriter(self.build_writers(), cfg.SOLVER.LOG_PERIOD))
            if ProgressBar.fits():
                ret.append(ProgressBar())
        return ret

    def build_writers(self) -> list:
        """Log lines, metrics.json and TensorBoard; a warning where the disk has no room for the checkpoints too."""
        warning = little_room(self.cfg, self.model, self.optimizer)
        if warning:
            logger.warning(warning)
        drop_cut_line(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
        return open_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    @classmethod
    def build_model(cls, cfg):
        # before the first tensor is on the device; here, because training, evaluation and scripts all come by
        devices.configure(
            _device(cfg),
            fast_float32=cfg.SOLVER.FAST_FLOAT32,
            cudnn_benchmark=cfg.CUDNN_BENCHMARK,
            jit_compile=cfg.MODEL.NPU.JIT_COMPILE,
            internal_format=cfg.MODEL.NPU.INTERNAL_FORMAT,
            keep_memory=cfg.MODEL.CPU.KEEP_MEMORY,
        )
        model = build_model(_with_device(cfg))
        if (
            cfg.MODEL.CHANNELS_LAST
        ):  # of the weights: the first convolution turns the images, the rest follow
            model.backbone.to(memory_format=torch.channels_last)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(f"{cfg.MODEL.META_ARCHITECTURE}: {trained / 1e6:.2f} M parameters to train")
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        """The optimizer, and None where fast-reid returns its wrapper of flattened parameters."""
        return build_optimizer(cfg, model), None

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer, iters_per_epoch):
        return build_lr_scheduler(cfg, optimizer, iters_per_epoch)

    @classmethod
    def build_train_loader(cls, cfg):
        if all_video(cfg.DATASETS.NAMES):
            loader = build_clip_train_loader(cfg, seed=cfg.SEED, **_loader_options(cfg))
            identities = loader.batch_sampler.num_identities  # type: ignore[union-attr] # our sampler
            if not cfg.MODEL.LOSSES.TRI.ALL_RANKS:
                identities //= comm.get_world_size()
            if "TripletLoss" in cfg.MODEL.LOSSES.NAME and identities < 2:
                raise UserError(
                    "TripletLoss needs two identities in each process's share of a batch, and there would be one: "
                    "raise SOLVER.IMS_PER_BATCH, use fewer devices, or mine in the whole batch "
                    "(MODEL.LOSSES.TRI.ALL_RANKS True)"
                )
        else:
            _use_dataset_root(cfg)
            loader = super().build_train_loader(cfg)
        return DeviceLoader(loader, _device(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        _use_dataset_root(cfg)
        # in two steps: fast-reid's one-step call does not take the number of workers
        parts = _test_loader_from_config(cfg, dataset_name=dataset_name)
        loader, num_query = build_reid_test_loader(**parts, num_workers=cfg.DATALOADER.NUM_WORKERS)
        return DeviceLoader(loader, _device(cfg)), num_query

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_dir=None):
        if not is_video_dataset(dataset_name):
            return super().build_evaluator(cfg, dataset_name, output_dir)
        loader = build_clip_test_loader(cfg, dataset_name, **_loader_options(cfg))
        csv_path = (
            os.path.join(cfg.OUTPUT_DIR, f"per_query_{dataset_name}.csv")
            if cfg.TEST.PER_QUERY_CSV
            else None
        )
        evaluator = CrossModalEvaluator(
            tracklets=loader.dataset.tracklets,  # type: ignore[attr-defined] # our dataset
            ranks=tuple(cfg.TEST.RANKS),
            camera_filter=cfg.TEST.CAMERA_FILTER,
            min_frames=cfg.DATASETS.MIN_FRAMES,
            dataset_name=dataset_name,
            csv_path=csv_path,
        )
        return DeviceLoader(loader, _device(cfg)), evaluator

    @classmethod
    def test(cls, cfg, model) -> dict:
        """Evaluate on every dataset of ``DATASETS.TESTS``.

        Returns:
            the results, by dataset where there are several; empty on other ranks than the main one.
        """
        model = getattr(
            model, "module", model
        )  # ranks may hold different numbers of batches: no DDP forward
        share_buffers(model)
        if not all_video(cfg.DATASETS.TESTS, "TESTS"):
            return super().test(cfg, model)
        results = OrderedDict()
        for name in cfg.DATASETS.TESTS:
            loader, evaluator = cls.build_evaluator(cfg, name)
            results[name] = inference_on_dataset(model, loader, evaluator)
            replaced = sum(comm.all_gather(loader.replaced))
            if replaced:
                logger.warning(
                    f"{replaced} broken test frames were replaced by their nearest good neighbor"
                )
        return next(iter(results.values())) if len(results) == 1 else results


def share_buffers(model: torch.nn.Module) -> None:
    """Give every rank the main rank's buffers, which are the ones that checkpoints hold.

    Each rank's BatchNorm has seen other clips: without this a tracklet's feature would depend on which rank
    extracts it.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def iterations_per_epoch(cfg: CfgNode, loader) -> int:
    """Batches of an epoch: the clip sampler's own count, or fast-reid's for images.

    Raises:
        UserError: an epoch of images holds less than one batch.
    """
    if hasattr(loader.batch_sampler, "batches_per_epoch"):
        return loader.batch_sampler.batches_per_epoch
    images = len(loader.dataset)
    if images < cfg.SOLVER.IMS_PER_BATCH:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, the training set has {images} images"
        )
    return images // cfg.SOLVER.IMS_PER_BATCH


def _loader_options(cfg: CfgNode) -> dict:
    pinned = devices.needs_pinned_memory(_device(cfg))
    return {"rank": comm.get_rank(), "world_size": comm.get_world_size(), "pin_memory": pinned}


def _device(cfg: CfgNode) -> torch.device:
    return devices.choose_device(cfg.MODEL.DEVICE, comm.get_local_rank())


def _use_dataset_root(cfg: CfgNode) -> None:
    if cfg.DATASETS.ROOT:
        compat.set_dataset_root(cfg.DATASETS.ROOT)


def _with_device(cfg: CfgNode) -> CfgNode:
    """The config with MODEL.DEVICE spelled as torch does; fast-reid's build_model moves the model there."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = str(_device(cfg))
    cfg.freeze()
    return cfg
