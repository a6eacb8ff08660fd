"""From a config to model, optimizer, loaders and evaluators: fast-reid's extension points."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.data.build import _test_loader_from_config, build_reid_test_loader
from fastreid.engine import DefaultTrainer
from fastreid.evaluation import inference_on_dataset
from fastreid.modeling.meta_arch import build_model
from fastreid.utils import comm

from fastreid_star import compat
from fastreid_star.data.build import (
    DeviceLoader,
    all_video,
    build_clip_test_loader,
    build_clip_train_loader,
    build_dataset,
    is_video_dataset,
)
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.engine import device as devices
from fastreid_star.engine.config_changes import check_evaluated
from fastreid_star.engine.failures import building
from fastreid_star.engine.solver import build_lr_scheduler, build_optimizer
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import CrossModalEvaluator
from fastreid_star.evaluation.rerank import build_reranking
from fastreid_star.modeling.backbones.pretrained import (
    as_fast_reid_reads,
    pretrained_file,
    pretrained_fit,
)
from fastreid_star.modeling.mirror import build_test_network
from fastreid_star.upgrade import upgrade_config
from fastreid_star.weights import misfits, read_file, weights_of

logger = logging.getLogger(__name__)


class Builders(DefaultTrainer):
    """The class methods of fast-reid's trainer, for clips and images on any device.

    A subclass may override them as in fast-reid. For image datasets everything except the device
    handling is fast-reid's.
    """

    @staticmethod
    def auto_scale_hyperparams(cfg, num_classes):
        """As fast-reid's, without replacing config.yaml: the run may still be refused."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.HEADS.NUM_CLASSES = cfg.MODEL.HEADS.NUM_CLASSES or num_classes
        cfg.freeze()
        return cfg

    @classmethod
    def build_model(cls, cfg):
        # before the first tensor is on the device
        devices.configure(
            device_of(cfg),
            fast_float32=cfg.SOLVER.FAST_FLOAT32,
            cudnn_benchmark=cfg.CUDNN_BENCHMARK,
            jit_compile=cfg.MODEL.NPU.JIT_COMPILE,
            internal_format=cfg.MODEL.NPU.INTERNAL_FORMAT,
        )
        cfg = _changed(cfg, MODEL_DEVICE=str(device_of(cfg)))  # as torch spells it
        with building("MODEL"), _plain_pretrained(cfg) as cfg:
            model = build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:  # the first convolution converts the images
            model.backbone.to(memory_format=torch.channels_last)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(f"{cfg.MODEL.META_ARCHITECTURE}: {trained / 1e6:.2f} M trainable parameters")
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        """The optimizer, and None where fast-reid returns its wrapper of flattened parameters."""
        with building("SOLVER"):
            return build_optimizer(cfg, model), None

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer, iters_per_epoch):
        with building("SOLVER (SCHED, WARMUP_METHOD)"):
            return build_lr_scheduler(cfg, optimizer, iters_per_epoch)

    @classmethod
    def build_train_loader(cls, cfg):
        with building("DATASETS, DATALOADER and INPUT"):
            if all_video(cfg.DATASETS.NAMES):
                loader = build_clip_train_loader(cfg, seed=cfg.SEED, **_loader_options(cfg))
            else:
                _use_dataset_root(cfg)
                loader = super().build_train_loader(cfg)
        return DeviceLoader(loader, device_of(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        _use_dataset_root(cfg)
        # in two steps: fast-reid's one-step call does not take the number of workers
        with building("DATASETS and INPUT"):
            parts = _test_loader_from_config(cfg, dataset_name=dataset_name)
        loader, num_query = build_reid_test_loader(**parts, num_workers=cfg.DATALOADER.NUM_WORKERS)
        return DeviceLoader(loader, device_of(cfg)), num_query

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_dir=None):
        if not is_video_dataset(dataset_name):
            return super().build_evaluator(cfg, dataset_name, output_dir)
        data = build_dataset(cfg, dataset_name)
        loader = build_clip_test_loader(cfg, dataset_name, data=data, **_loader_options(cfg))
        evaluator = CrossModalEvaluator(
            tracklets=loader.dataset.tracklets,  # type: ignore[attr-defined] # our dataset
            ranks=tuple(cfg.TEST.RANKS),
            camera_filter=cfg.TEST.CAMERA_FILTER,
            reranking=build_reranking(cfg),
            roc=cfg.TEST.ROC.ENABLED,
            min_frames=cfg.DATASETS.MIN_FRAMES,
            dataset_name=dataset_name,
            protocol_name=_protocol_name(cfg, data),
            trials=data.trials(),
            csv_path=os.path.join(cfg.OUTPUT_DIR, f"per_query_{dataset_name}.csv"),
            json_path=os.path.join(cfg.OUTPUT_DIR, f"results_{dataset_name}.json"),
        )
        return DeviceLoader(loader, device_of(cfg)), evaluator

    @classmethod
    def test(cls, cfg, model) -> dict:
        """Evaluate on every dataset of ``DATASETS.TESTS``.

        Returns:
            the results, by dataset if there are several; empty on other ranks than the main one.
        """
        # not in DDP's forward: ranks may have different numbers of batches
        model = getattr(model, "module", model)
        share_buffers(model)
        if not all_video(cfg.DATASETS.TESTS, "TESTS"):
            return super().test(cfg, model)
        network = build_test_network(cfg, model)
        results = OrderedDict()
        for name in cfg.DATASETS.TESTS:
            loader, evaluator = cls.build_evaluator(cfg, name)
            results[name] = inference_on_dataset(network, loader, evaluator)
            replaced = sum(comm.all_gather(loader.replaced))
            if replaced:
                logger.warning(
                    f"{replaced} broken test frames were replaced by their nearest good neighbor"
                )
        return next(iter(results.values())) if len(results) == 1 else results


def load_trained(cfg: CfgNode, path: str, *, allow_changed: bool = False) -> torch.nn.Module:
    """Build the model of `cfg` and load its weights, in eval mode.

    The number of identities is read from the weights, and no pretrained backbone is loaded.

    Args:
        cfg: of the model. A config in the checkpoint is compared with it.
        path: weights of fast-reid or this plugin, see
            :func:`~fastreid_star.weights.read_weights`.
        allow_changed: load the weights although the network is configured in another way.

    Raises:
        UserError: the file cannot be read, or the weights are of another model: one missing or
            misshapen weight is enough.
    """
    data = read_file(path)
    weights = weights_of(data, path)
    saved = upgrade_config(yaml.safe_load(data.get("config") or "{}"))
    check_evaluated(saved, cfg, allow=allow_changed)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    classifiers = [
        v for name, v in weights.items() if re.fullmatch(r"(heads|b\d+_head)\.weight", name)
    ]
    if classifiers:
        cfg.MODEL.HEADS.NUM_CLASSES = classifiers[0].shape[0]
    cfg.freeze()
    model = Builders.build_model(cfg)
    unused = [name for name in weights if name in ("pixel_mean", "pixel_std")]
    if unused:
        logger.info(f"Without effect in {path}: {', '.join(unused)}")
    weights = {name: value for name, value in weights.items() if name not in unused}
    # losses that own layers take no part in the evaluation
    weights = {name: value for name, value in weights.items() if not name.startswith("losses.")}
    wrong = [name for name in misfits(model, weights) if not name.startswith("losses.")]
    if wrong:
        raise UserError(
            f"checkpoint {path} is of another model: {len(wrong)} weights do not fit, first "
            f"{', '.join(wrong[:3])}; use the config it was trained with (config.yaml beside it)"
        )
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _protocol_name(cfg: CfgNode, data: VideoDataset) -> str:
    """The names of the dataset's protocol and of what TEST.FLIP and MODEL.UNIT add to it."""
    names = [data.protocol_name(cfg)]
    if cfg.MODEL.UNIT == "frame" and cfg.INPUT.CLIP.LENGTH > 1:
        first = "unit length, then " if cfg.MODEL.HEADS.JOIN == "normalized" else ""
        names.append(f"ours of single frames (their features: {first}mean over the clip)")
    if cfg.TEST.FLIP.ENABLED:
        names.append("mean of each clip and its mirror image")
    return ", ".join(filter(None, names))


def share_buffers(model: torch.nn.Module) -> None:
    """Give every rank the main rank's buffers, which are those of the checkpoints.

    Each rank's BatchNorm has seen other clips: without this a feature would depend on the rank.
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
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, but the training set has only "
            f"{images} images"
        )
    return images // cfg.SOLVER.IMS_PER_BATCH


def probe(model: torch.nn.Module, loader) -> None:
    """Evaluate one sample of a test set, so that errors come out before training.

    Raises:
        UserError: the network cannot be evaluated, for example a transformer with an
            ``INPUT.SIZE_TEST`` other than ``SIZE_TRAIN``.
    """
    model = getattr(model, "module", model)
    batch = loader.loader.collate_fn([loader.dataset[0]])
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        with torch.no_grad(), building("MODEL with INPUT.SIZE_TEST"):
            model(next(iter(DeviceLoader([batch], loader.device))))  # type: ignore[arg-type]
    finally:
        for name, module in model.named_modules():
            module.training = training[name]


def device_of(cfg: CfgNode) -> torch.device:
    """This process's device, of the kind MODEL.DEVICE names."""
    return devices.choose_device(cfg.MODEL.DEVICE, comm.get_local_rank())


@contextlib.contextmanager
def _plain_pretrained(cfg: CfgNode) -> Iterator[CfgNode]:
    """The config with ``PRETRAIN_PATH`` naming a file that fast-reid's builder reads as it is.

    fast-reid's backbones read the file themselves, with code in it where torch is old, know one
    layout of it each, and ignore every name that does not fit.
    """
    node = cfg.MODEL.BACKBONE
    given = pretrained_file(node)
    if given is None:
        yield cfg
        return
    found = pretrained_fit(cfg, given)
    logger.info(f"Pretrained weights: {given}, {found}")
    with tempfile.TemporaryDirectory() as folder:
        # fast-reid's ViT looks for "distilled" in the name
        path = os.path.join(folder, f"{Path(given).stem}.pth")
        torch.save(as_fast_reid_reads(node.NAME, found.weights), path)
        yield _changed(cfg, PRETRAIN_PATH=path)


def _changed(cfg: CfgNode, *, MODEL_DEVICE: str | None = None, **backbone) -> CfgNode:
    cfg = cfg.clone()
    frozen = cfg.is_frozen()
    cfg.defrost()
    if MODEL_DEVICE is not None:
        cfg.MODEL.DEVICE = MODEL_DEVICE
    for key, value in backbone.items():
        cfg.MODEL.BACKBONE[key] = value
    if frozen:
        cfg.freeze()
    return cfg


def _loader_options(cfg: CfgNode) -> dict:
    pinned = devices.needs_pinned_memory(device_of(cfg))
    return {"rank": comm.get_rank(), "world_size": comm.get_world_size(), "pin_memory": pinned}


def _use_dataset_root(cfg: CfgNode) -> None:
    if cfg.DATASETS.ROOT:
        compat.set_dataset_root(cfg.DATASETS.ROOT)
