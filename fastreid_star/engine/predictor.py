"""Features of tracklets that a program has: images in memory, image files, videos.

    predictor = StarPredictor.from_run("logs/run")
    features = predictor.features([TrackletInput(["1.jpg", "2.jpg"], "infrared", name="anna")])  # [1, D]

A feature equals the evaluator's of the same frames and skeletons: the frames of the clip, the transform, the network
and the normalization are the evaluator's own. Where the batches are the same too, it does so bit for bit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch.utils.data import DataLoader, Dataset

from fastreid_star.data.build import DeviceLoader
from fastreid_star.data.clips import clip_tensors, collate_clips
from fastreid_star.data.tracklets import (
    TrackletInput,
    as_modality,
    check_input,
    read_test_clip,
)
from fastreid_star.data.transforms import Transform, build_transforms
from fastreid_star.data.workers import one_thread, ready_to_fork
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.fingerprint import Fingerprint
from fastreid_star.engine.trainer import load_trained
from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import check_features

logger = logging.getLogger(__name__)

# The best by the evaluation, or the last of a run that was never evaluated.
RUN_WEIGHTS = ("model_best.pth", "model_final.pth")


class StarPredictor:
    """A trained model of clips, SAD or STAR, that turns tracklets into features.

    Args:
        cfg: the config that the model was trained with.
        weights: its checkpoint.
        device: as ``MODEL.DEVICE``, whose place it takes.

    Raises:
        UserError: the model is of images, the checkpoint is missing, damaged or of another model, or the device is
            not usable.
    """

    def __init__(self, cfg: CfgNode, weights: str | os.PathLike, device: str = "auto"):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        cfg.freeze()
        architecture = META_ARCH_REGISTRY._obj_map.get(cfg.MODEL.META_ARCHITECTURE)
        if not getattr(architecture, "takes_clips", False):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is no model of clips: use SAD or STAR"
            )
        if cfg.INPUT.CLIP.LENGTH < 1:
            raise UserError(
                f"INPUT.CLIP.LENGTH is {cfg.INPUT.CLIP.LENGTH}: a clip has at least one frame"
            )
        self.cfg = cfg
        self.device = devices.choose_device(device)
        self.transform = build_transforms(cfg, is_train=False)
        self.model = load_trained(cfg, os.fspath(weights))
        self._may_warn = bool(getattr(self.model, "reads_skeletons", False))

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike,
        device: str = "auto",
        weights: str = "",
        opts: Sequence[str] = (),
    ) -> StarPredictor:
        """From what a training run leaves in its folder: ``config.yaml`` and weights.

        Args:
            folder: the run's OUTPUT_DIR.
            device: as ``MODEL.DEVICE``.
            weights: a file in the folder, such as ``model_last.pth`` of a run that is not over; empty:
                ``model_best.pth``, or where no evaluation has made one ``model_final.pth``.
            opts: config keys and values to change, ``[KEY, VALUE, ...]``.

        Raises:
            UserError: no such folder, config or weights, or as for the constructor.
        """
        folder = os.fspath(folder)
        if not os.path.isdir(folder):
            raise UserError(f"run folder {folder} does not exist")
        config = os.path.join(folder, "config.yaml")
        if not os.path.isfile(config):
            raise UserError(
                f"{folder} holds no config.yaml: it is not a run's folder; name a config and weights instead"
            )
        there = [
            name
            for name in ([weights] if weights else RUN_WEIGHTS)
            if os.path.isfile(os.path.join(folder, name))
        ]
        if not there:
            missing = weights or " nor ".join(RUN_WEIGHTS)
            others = sorted(name for name in os.listdir(folder) if name.endswith(".pth"))
            hint = (
                f"there is {', '.join(others)}, which can be named" if others else "train it first"
            )
            raise UserError(f"{folder} holds {'no' if weights else 'neither'} {missing}: {hint}")
        path = os.path.join(folder, there[0])
        logger.info("Weights: %s", path)
        return cls(load_config(config, list(opts)), path, device)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the features are made with, see :class:`~fastreid_star.engine.fingerprint.Fingerprint`."""
        return Fingerprint.of(self.model, self.cfg)

    def features(
        self,
        tracklets: Sequence[TrackletInput],
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """One feature a tracklet, in their order.

        Args:
            tracklets: N of them. Without skeletons a model that reads some takes the baseline's path, and a warning
                says so once.
            batch_size: tracklets at a time; None: TEST.IMS_PER_BATCH, as the evaluator's.
            num_workers: processes that decode; 0: this one does.
            progress: called after each batch with the number of tracklets in it.

        Returns:
            float32 [N, D] on the host, of unit length: as the evaluator compares them, by dot product.

        Raises:
            UserError: there is no tracklet; one that is named has no frames, none that can be read, another modality
                or skeletons that do not fit its frames; or a feature is not finite.
        """
        if len(tracklets) == 0:
            raise UserError("there are no tracklets to make features of")
        batch_size = max(1, self.cfg.TEST.IMS_PER_BATCH) if batch_size is None else batch_size
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: at least one tracklet at a time")
        for position, tracklet in enumerate(tracklets):
            _named(tracklet, position, check_input)
        self._warn_without_skeletons(tracklets)
        ready_to_fork()
        loader = DeviceLoader(
            DataLoader(
                _TestClips(tracklets, self.cfg.INPUT.CLIP.LENGTH, self.transform),
                batch_size=batch_size,
                num_workers=num_workers,
                collate_fn=collate_clips,
                worker_init_fn=one_thread,
                pin_memory=devices.needs_pinned_memory(self.device),
                generator=torch.Generator(),  # its own: the program's global one stays where it is
            ),
            self.device,
        )
        parts = []
        with torch.no_grad():
            for batch in loader:
                parts.append(self.model(batch).to("cpu", torch.float32))
                if progress is not None:
                    progress(len(parts[-1]))
        if loader.replaced:
            logger.warning(
                "%d broken frames were replaced by their nearest good neighbor", loader.replaced
            )
        features = torch.cat(parts)
        check_features(features, "the tracklets'")
        return F.normalize(features, dim=1)

    def _warn_without_skeletons(self, tracklets: Sequence[TrackletInput]) -> None:
        without = sum(tracklet.skeletons is None for tracklet in tracklets)
        if without and self._may_warn:
            self._may_warn = False
            logger.warning(
                "%d of %d tracklets come without skeletons, which this model reads: they take the baseline's path",
                without,
                len(tracklets),
            )


class _TestClips(Dataset):
    """Tracklets as the clips that a test shows; an item is as :class:`~fastreid_star.data.clips.ClipDataset`'s."""

    def __init__(self, tracklets: Sequence[TrackletInput], length: int, transform: Transform):
        self.tracklets, self.length, self.transform = tracklets, length, transform

    def __len__(self) -> int:
        return len(self.tracklets)

    def __getitem__(self, index: int) -> dict:
        tracklet = self.tracklets[index]
        clip, replaced = _named(tracklet, index, lambda it: read_test_clip(it, self.length))
        return {
            **clip_tensors(self.transform(clip, np.random.default_rng(0))),
            "modality": int(as_modality(tracklet.modality)),
            "replaced": replaced,
        }


def _named(tracklet: TrackletInput, position: int, act: Callable):
    """``act(tracklet)``, whose complaint is told with the tracklet's name."""
    try:
        return act(tracklet)
    except UserError as error:
        name = f"tracklet {position}" + (f" ({tracklet.name})" if tracklet.name else "")
        raise UserError(f"{name}: {error}") from error
