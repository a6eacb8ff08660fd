"""One interface for all pose estimators: crops of a person in, COCO's 17 joints out."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class PoseEstimator(ABC):
    """A network that finds the joints of the person in a crop.

    Attributes:
        prepare: makes of a crop, uint8 [H,W,3] in RGB, what :meth:`estimate` takes, the crop's geometry included. It
            can be pickled without the network, touches no device and is meant to run in loading processes.
    """

    prepare: Callable[[np.ndarray], Any]

    @abstractmethod
    def estimate(self, prepared: Sequence[Any]) -> np.ndarray:
        """The joints of N crops, all at a time.

        Args:
            prepared: what `prepare` made of each of them.

        Returns:
            float32 [N,V,3]: x and y in pixels of the crop, the center of its first pixel at (0, 0), and the score in
            [0, 1]. Joints may lie outside of the crop; x and y of a joint with the score 0 mean nothing. What is not
            finite in the network's output is not finite here.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the joints depend on, in values that JSON has.

        Returns:
            ``backend``, ``model``, ``config`` and its ``config_sha256``, ``checkpoint`` and its ``sha256``,
            ``input_size`` (width, height), what ``score`` is, ``flip_test``, ``dtype`` and the ``versions`` of the
            libraries.
        """


@dataclass(frozen=True)
class _Backend:
    module: str
    estimator: str
    packages: tuple[str, ...]  # what it imports that the training environment has not


BACKENDS = {
    "mmpose": _Backend(
        "fastreid_star.pose.mmpose_backend",
        "MMPoseEstimator",
        ("mmpose", "mmengine", "mmcv", "xtcocotools"),
    ),
    "vitpose": _Backend("fastreid_star.pose.vitpose", "VitPoseEstimator", ("transformers",)),
}


def build_estimator(
    backend: str,
    *,
    model: str | None = None,
    checkpoint: str | None = None,
    device: torch.device,
    flip_test: bool = False,
    dtype: str | None = None,
) -> PoseEstimator:
    """A pose estimator with trained weights, ready on its device. Nothing is downloaded.

    Args:
        backend: ``mmpose`` (HRNet, RTMPose and the other top-down networks of mmpose 1.3.2) or ``vitpose`` (ViTPose of
            Hugging Face transformers).
        model: mmpose: the name of one of its configs or the path of a config file; none or empty: HRNet-w32, 256x192.
            vitpose: none or empty, the checkpoint's folder says it.
        checkpoint: mmpose: the file with the weights. vitpose: the folder with config.json, preprocessor_config.json
            and model.safetensors.
        device: where the network runs.
        flip_test: average with what the network says of the mirrored crop: a little better, twice the time.
        dtype: ``float16`` or ``bfloat16`` for mixed precision; None: float32.

    Raises:
        UserError: no such backend, its libraries are not installed, the config is of no use here, or the checkpoint
            is missing, damaged, of another network or more than weights.
    """
    if backend not in BACKENDS:
        raise UserError(
            f"there is no pose backend {backend!r}: use {' or '.join(sorted(BACKENDS))}"
        )
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: use float16, bfloat16 or none")
    entry = BACKENDS[backend]
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"the pose backend {backend} needs {', '.join(missing)}: run `python tools/dev.py pose` once, then this "
            "again with that environment's Python, .venv-pose/bin/python"
        )
    estimator = getattr(importlib.import_module(entry.module), entry.estimator)
    return estimator(
        model=model or None,
        checkpoint=checkpoint or None,
        device=device,
        flip_test=flip_test,
        dtype=dtype,
    )


def joined(xy: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Coordinates [N,V,2] and scores [N,V] as float32 [N,V,3], the scores clipped to [0, 1]."""
    joints = np.empty((len(xy), NUM_JOINTS, 3), np.float32)
    joints[..., :2] = xy
    joints[..., 2] = np.clip(scores, 0, 1)
    return joints


def mixed_precision(device: torch.device, dtype: str | None) -> contextlib.AbstractContextManager:
    """A context for the network's run: `dtype` as for :func:`build_estimator`."""
    return (
        contextlib.nullcontext()
        if dtype is None
        else torch.autocast(device.type, dtype=DTYPES[dtype])
    )


def sha256(paths: Iterable[str | os.PathLike]) -> str:
    """The digest of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages, by their names as pip knows them, and torch's."""
    return {
        "torch": torch.__version__,
        **{package: importlib.metadata.version(package) for package in packages},
    }
