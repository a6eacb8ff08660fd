"""Features of tracklets that a program has: images in memory, image files, videos.

    predictor = StarPredictor.from_run("logs/run")
    anna = TrackletInput(["1.jpg", "2.jpg"], "infrared", name="anna")
    features = predictor.features([anna])  # [1, D]

A feature equals the one that the evaluation computes from the same frames and skeletons, bit for
bit if the batches are the same too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch.utils.data import DataLoader, Dataset

from fastreid_star.data.build import DeviceLoader
from fastreid_star.data.clips import clip_tensors, collate_clips
from fastreid_star.data.tracklets import TrackletInput, as_modality, check_input, read_test_clip
from fastreid_star.data.transforms import Transform, build_transforms
from fastreid_star.data.workers import one_thread
from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import checkpoint_config
from fastreid_star.engine.configs import load_config, merge_options
from fastreid_star.engine.trainer import load_trained
from fastreid_star.errors import UserError
from fastreid_star.evaluation.similarity import check_features, normalize, shorten, similarity
from fastreid_star.inference.fingerprint import fingerprint
from fastreid_star.inference.process import (
    gpu_switches,
    gpu_switches_kept,
    opencv_ready_to_fork,
    set_switches,
)
from fastreid_star.inference.suspicions import SUSPICIONS, suspicions
from fastreid_star.inference.threshold import Threshold, require_both_modalities
from fastreid_star.modeling.mirror import build_test_network

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16")
# The best checkpoint by the evaluation, or the last one of a run that was never evaluated.
RUN_WEIGHTS = ("model_best.pth", "model_final.pth", "model_last.pth")


class StarPredictor:
    """A trained model of clips that turns tracklets into features.

    The program's settings stay as they are: random numbers, threads, and the switches of a GPU
    (TF32, cuDNN's benchmark), which are the model's only while it computes. The switches of an NPU
    cannot be read, so they stay as the model's config sets them.

    Args:
        cfg: the config that the model was trained with.
        weights: its checkpoint.
        device: replaces ``MODEL.DEVICE``.
        dtype: ``float16`` or ``bfloat16`` computes in mixed precision (torch's autocast): products
            and convolutions in 16 bits, powers and norms in float32. The features stay float32.
        allow_changed: load the weights although ``MODEL`` differs from the config they were
            trained with, which the checkpoint contains.

    Raises:
        UserError: the model does not read clips, the checkpoint is missing, damaged or of another
            model, the device is not usable, or `dtype` is another one.
    """

    def __init__(
        self,
        cfg: CfgNode,
        weights: str | os.PathLike,
        device: str = "auto",
        *,
        dtype: str = "float32",
        allow_changed: bool = False,
    ):
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        cfg.freeze()
        architecture = META_ARCH_REGISTRY._obj_map.get(cfg.MODEL.META_ARCHITECTURE)
        if not getattr(architecture, "takes_clips", False):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not read clips: use a "
                "model such as SAD or STAR"
            )
        if cfg.INPUT.CLIP.LENGTH < 1:
            raise UserError(
                f"INPUT.CLIP.LENGTH is {cfg.INPUT.CLIP.LENGTH}: a clip has at least one frame"
            )
        self.cfg = cfg
        self.weights = os.fspath(weights)
        self.device = devices.choose_device(device)
        self.dtype = dtype
        self.transform = build_transforms(cfg, is_train=False)
        # building a model draws its first weights, and sets the switches of its device
        with torch.random.fork_rng(devices=[]), gpu_switches_kept():
            self.model = load_trained(cfg, self.weights, allow_changed=allow_changed)
            self._gpu_switches = gpu_switches()
        self._warned: set[str] = set()

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike,
        device: str = "auto",
        weights: str = "",
        opts: Sequence[str] = (),
        *,
        dtype: str = "float32",
    ) -> StarPredictor:
        """Load the model of a training run.

        The config is the one stored in the checkpoint; ``config.yaml`` of the folder is used only
        if the checkpoint has none.

        Args:
            folder: the run's OUTPUT_DIR.
            device: replaces ``MODEL.DEVICE``.
            weights: a file in the folder; empty: see :func:`find_weights`.
            opts: config keys and values to change, ``[KEY, VALUE, ...]``.
            dtype: see the constructor.

        Raises:
            UserError: the folder, its weights or its config do not exist; and see the constructor.
        """
        folder = os.fspath(folder)
        if not os.path.isdir(folder):
            raise UserError(f"run folder {folder} does not exist")
        path = find_weights(folder, weights)
        logger.info("Weights: %s", path)
        cfg = _run_config(folder, path, list(opts))
        return cls(cfg, path, device, dtype=dtype, allow_changed=bool(opts))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Identifies the model, see :func:`~fastreid_star.inference.fingerprint.fingerprint`."""
        return fingerprint(self.model, self.cfg)

    @property
    def threshold(self) -> Threshold:
        """What ``fastreid-star threshold`` has computed for these weights, beside their file.

        Raises:
            UserError: see :meth:`Threshold.load`.
        """
        return Threshold.load(os.path.dirname(self.weights), self.fingerprint)

    def same_person(
        self, first: TrackletInput, second: TrackletInput, threshold: float | None = None
    ) -> bool:
        """Whether the similarity of two tracklets is above a threshold.

        Args:
            first, second: two tracklets.
            threshold: None: the run's, which is for an infrared and a visible tracklet.

        Raises:
            UserError: see :attr:`threshold` and :meth:`features`; or both have the same modality.
        """
        if threshold is None:
            one, other = (as_modality(tracklet.modality) for tracklet in (first, second))
            require_both_modalities([one], [other])
            threshold = self.threshold.value
        return similarity(*self.features([first, second]).split(1)).item() > threshold

    def features(
        self,
        tracklets: Sequence[TrackletInput],
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Compute one feature for each tracklet.

        A warning is logged if tracklets have no skeletons but the model was trained with skeletons,
        and for the other suspicions of :mod:`~fastreid_star.inference.suspicions`.

        Args:
            tracklets: N tracklets.
            batch_size: tracklets in a batch; None: TEST.IMS_PER_BATCH, as in the evaluation.
            num_workers: processes that decode images; 0: this process does.
            progress: called after each batch with the number of its tracklets.

        Returns:
            float32 ``[N, D]`` on the CPU, of unit length, or ``[N, P, D]`` of a model with parts.

        Raises:
            UserError: there are no tracklets; a tracklet has no readable frames, a wrong modality,
                or skeletons that do not match its frames; or a feature is not finite.
        """
        if len(tracklets) == 0:
            raise UserError("there are no tracklets to compute features of")
        batch_size = max(1, self.cfg.TEST.IMS_PER_BATCH) if batch_size is None else batch_size
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: at least one tracklet at a time")
        for position, tracklet in enumerate(tracklets):
            _named(tracklet, position, check_input)
        loader = DeviceLoader(
            DataLoader(
                _TestClips(tracklets, self.cfg.INPUT.CLIP, self.transform),
                batch_size=batch_size,
                num_workers=num_workers,
                collate_fn=collate_clips,
                worker_init_fn=one_thread,
                pin_memory=devices.needs_pinned_memory(self.device),
                generator=torch.Generator(),  # the program's random numbers stay as they are
            ),
            self.device,
        )
        parts = []
        flags: dict[str, list[int]] = {name: [] for name in SUSPICIONS}
        network = build_test_network(self.cfg, self.model)
        half = None if self.dtype == "float32" else self.dtype
        with torch.no_grad(), opencv_ready_to_fork(num_workers), gpu_switches_kept():
            set_switches(self._gpu_switches)
            for batch in loader:
                for name, found in flags.items():
                    found += batch.pop(name).tolist()
                with devices.autocast(self.device, half):
                    parts.append(network(batch).to("cpu", torch.float32))
                if progress is not None:
                    progress(len(parts[-1]))
        if loader.replaced:
            logger.warning(
                "%d broken frames were replaced by their nearest good neighbor", loader.replaced
            )
        expected = {
            "without_skeletons": not getattr(self.model, "reads_skeletons", False),
            "sixteen_bits": bool(self.cfg.INPUT.RANGE_16BIT),
        }
        for name, found in flags.items():
            if not expected.get(name):
                self._warn(tracklets, found, SUSPICIONS[name])
        features = torch.cat(parts)
        check_features(features, "the tracklets'")
        return normalize(features)

    def _warn(self, tracklets: Sequence[TrackletInput], flags: list[int], message: str) -> None:
        """Warn once of the tracklets whose flag is set."""
        if any(flags) and message not in self._warned:
            self._warned.add(message)
            found = [tracklets[n].name or f"index {n}" for n, flag in enumerate(flags) if flag]
            logger.warning(
                "%d of %d tracklets %s (%s)", len(found), len(flags), message, shorten(found)
            )


def find_weights(folder: str | os.PathLike, name: str = "") -> str:
    """The checkpoint `name` in a run's folder; without a name the best one, or else the last.

    Raises:
        UserError: there is none.
    """
    names = [name] if name else RUN_WEIGHTS
    for path in (os.path.join(folder, each) for each in names):
        if os.path.isfile(path):
            return path
    others = sorted(each for each in os.listdir(folder) if each.endswith(".pth"))
    cure = f"choose one of {', '.join(others)}" if others else "train the model first"
    raise UserError(f"{folder} does not contain {' or '.join(names)}: {cure}")


def load_predictor(
    *,
    run: str = "",
    config_file: str = "",
    weights: str = "",
    opts: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "float32",
) -> StarPredictor:
    """The predictor of a run's folder, or of a config and weights, as the command line names them.

    Raises:
        UserError: neither or both are given; and see :class:`StarPredictor`.
    """
    if run and config_file:
        raise UserError(
            "--run has its own config: leave out --config-file, or give --config-file and --weights"
        )
    if run:
        return StarPredictor.from_run(run, device, weights, opts, dtype=dtype)
    if not (config_file and weights):
        raise UserError(
            "no model is given: add --run FOLDER, or --config-file FILE and --weights FILE"
        )
    return StarPredictor(load_config(config_file, list(opts)), weights, device, dtype=dtype)


class _TestClips(Dataset):
    """Tracklets as test clips, with the keys of :class:`~fastreid_star.data.clips.ClipDataset`."""

    def __init__(self, tracklets: Sequence[TrackletInput], clip: CfgNode, transform: Transform):
        self.tracklets, self.transform = tracklets, transform
        self.length, self.sampling = clip.LENGTH, clip.SAMPLING

    def __len__(self) -> int:
        return len(self.tracklets)

    def __getitem__(self, index: int) -> dict:
        tracklet = self.tracklets[index]
        clip, replaced = _named(
            tracklet, index, lambda it: read_test_clip(it, self.length, self.sampling)
        )
        modality = as_modality(tracklet.modality)
        return {
            **suspicions(clip, modality),
            **clip_tensors(self.transform(clip, np.random.default_rng(0))),
            "modality": int(modality),
            "replaced": replaced,
        }


def _run_config(folder: str, weights: str, opts: list[str]) -> CfgNode:
    """The config in a checkpoint, or else ``config.yaml`` of the run's folder."""
    cfg = checkpoint_config(weights)
    if cfg is None:
        path = os.path.join(folder, "config.yaml")
        if not os.path.isfile(path):
            raise UserError(
                f"neither {folder} nor {weights} contains a config: give --config-file and "
                "--weights instead"
            )
        return load_config(path, opts)
    cfg = cfg.clone()
    cfg.defrost()
    merge_options(cfg, opts)
    cfg.freeze()
    return cfg


def _named(tracklet: TrackletInput, position: int, act: Callable):
    """``act(tracklet)``; an error names the tracklet."""
    try:
        return act(tracklet)
    except UserError as error:
        name = f"tracklet {position}" + (f" ({tracklet.name})" if tracklet.name else "")
        raise UserError(f"{name}: {error}") from error
