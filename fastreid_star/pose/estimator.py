"""The interface of all pose estimators: crops of a person in, COCO's 17 joints out."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
FALL_OFF, REACH = 0.5, 1 / 8  # see keep_central_peaks
RULE = f"highest score * exp(-((x - middle) / ({FALL_OFF} * crop width))^2 / 2)"
# backend -> its module, its class, and the packages that the training environment does not have
BACKENDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "movenet": ("fastreid_star.pose.movenet", "MoveNetEstimator", ()),
    "mmpose": (
        "fastreid_star.pose.mmpose",
        "MMPoseEstimator",
        ("mmpose", "mmengine", "mmcv", "xtcocotools"),
    ),
    "vitpose": ("fastreid_star.pose.vitpose", "VitPoseEstimator", ("transformers",)),
}


class PoseEstimator(ABC):
    """A network that finds the joints of the person in a crop.

    Attributes:
        prepare: turns a crop, uint8 ``[H, W, 3]`` in RGB, into an input of :meth:`estimate`. It can
            be pickled without the network and runs in loading processes.
        description: see :meth:`describe`.
    """

    prepare: Callable[[np.ndarray], Any]
    description: dict[str, Any]

    @abstractmethod
    def estimate(self, prepared: Sequence[Any]) -> np.ndarray:
        """The joints of N crops in one batch.

        Args:
            prepared: the result of `prepare` for each crop, at least one.

        Returns:
            float32 ``[N, V, 3]``: x and y in pixels of the crop, with the center of the first pixel
            at (0, 0), and the score in [0, 1]. Joints may lie outside of the crop. x and y of a
            joint with score 0 have no meaning. An output that is not finite stays so.
        """

    def describe(self) -> dict[str, Any]:
        """Everything that the joints depend on, see :func:`description_of`."""
        return dict(self.description)


def build_estimator(
    backend: str = "movenet",
    *,
    model: str = "",
    checkpoint: str = "",
    device: torch.device,
    flip_test: bool = False,
    dtype: str | None = None,
) -> PoseEstimator:
    """A pose estimator with trained weights on its device. Nothing is downloaded.

    Args:
        backend: ``movenet``, ``mmpose`` (HRNet, RTMPose and the other top-down networks of mmpose
            1.3.2) or ``vitpose`` (ViTPose of Hugging Face transformers).
        model: movenet: thunder or lightning; empty: thunder. mmpose: the name of one of its
            configs, or the path of a config file; empty: HRNet-w32, 256x192. vitpose: empty.
        checkpoint: movenet: the ``.json`` file, with its ``.bin`` file beside it, or their folder;
            empty: the files that :func:`fastreid_star.pose.movenet_weights.fetch` has kept.
            mmpose: the file with the weights. vitpose: the folder with config.json,
            preprocessor_config.json and model.safetensors.
        device: where the network runs.
        flip_test: average with the output for the mirrored crop. This takes twice the time.
        dtype: ``float16`` or ``bfloat16`` for mixed precision; None: float32.

    Raises:
        UserError: the backend is unknown or not installed, the config does not fit, or the
            checkpoint is missing, damaged, of another network, or contains more than weights.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown pose backend {backend!r}: use {' or '.join(sorted(BACKENDS))}")
    module, name, packages = BACKENDS[backend]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"the pose backend {backend} needs {', '.join(missing)}: run `python tools/dev.py "
            "pose` once, then repeat this command with .venv-pose/bin/python"
        )
    estimator = getattr(importlib.import_module(module), name)
    return estimator(
        model=model, checkpoint=checkpoint, device=device, flip_test=flip_test, dtype=dtype
    )


def keep_central_peaks(maps: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Score maps in which the peak of the person in the middle is the highest.

    The decoder of a top-down network takes the highest peak of each map, which may belong to a
    passer-by at the edge of the crop. Here the peak is chosen by ::

        score * exp(-((x - middle) / (FALL_OFF * width of the crop))^2 / 2)

    a factor of 1 in the middle and 0.61 at the edges. People stand beside each other, so there is
    no such factor along y. If the chosen peak is not the highest, positive scores elsewhere become
    0. Otherwise the map does not change: a crop of one person gives the joints of the library
    exactly. Two peaks count as two if each is the highest within REACH of the map's width.

    Args:
        maps: ``[N, K, h, w]``; the x vectors of a SimCC network as ``[N, K, 1, w]``.
        widths: ``[N]``, the share of the map's width that each crop takes, in the map's middle.

    Returns:
        ``[N, K, h, w]``.
    """
    height, width = maps.shape[-2:]
    reach = max(1, round(REACH * width))
    down = min(reach, height - 1)
    rows, columns = (torch.arange(size, device=maps.device) for size in (height, width))
    distance = (columns - (width - 1) / 2) / (FALL_OFF * width * widths.to(maps)[:, None])
    window = torch.exp(-(distance**2) / 2)[:, None, None, :]

    around = F.max_pool2d(maps, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    around = F.max_pool2d(around, (2 * down + 1, 1), stride=1, padding=(down, 0))
    weighted = torch.where(maps == around, maps, 0).clamp(min=0) * window

    highest = maps.flatten(2).argmax(2, keepdim=True)
    chosen = weighted.flatten(2).argmax(2, keepdim=True)
    better = weighted.flatten(2).gather(2, chosen) > weighted.flatten(2).gather(2, highest)

    def off(center: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return (positions - center).abs() > reach

    x, y = chosen % width, torch.div(chosen, width, rounding_mode="floor")
    other = off(x, highest % width) | off(y, torch.div(highest, width, rounding_mode="floor"))
    elsewhere = off(x, columns)[:, :, None, :] | off(y, rows)[:, :, :, None]
    return torch.where((better & other)[..., None] & elsewhere, maps.clamp(max=0), maps)


def join_joints(xy: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Coordinates ``[N, V, 2]`` and scores ``[N, V]``, clipped to [0, 1], as ``[N, V, 3]``."""
    joints = np.empty((len(xy), NUM_JOINTS, 3), np.float32)
    joints[..., :2] = xy
    joints[..., 2] = np.clip(scores, 0, 1)
    return joints


def mixed_precision(device: torch.device, dtype: str | None) -> contextlib.AbstractContextManager:
    """A context for the forward pass; `dtype` as in :func:`build_estimator`."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[dtype])


def description_of(
    files: Sequence[Path],
    packages: Sequence[str],
    *,
    flip_test: bool,
    dtype: str | None,
    several_people: str = RULE,
    **network: Any,
) -> dict[str, Any]:
    """Everything that the joints depend on, as JSON values.

    Args:
        files: the weights; their names and SHA-256 are taken.
        packages: libraries whose versions are taken, beside torch.
        flip_test, dtype: see :func:`build_estimator`.
        several_people: which person of a crop is taken.
        network: its name, `input_size` (width, height), the meaning of `score`, ...
    """
    found = {package: importlib.metadata.version(package) for package in packages}
    return {
        **network,
        "checkpoint": ", ".join(file.name for file in files),
        "sha256": sha256(files),
        "several_people": several_people,
        "flip_test": flip_test,
        "dtype": dtype or "float32",
        "versions": {"torch": torch.__version__, **found},
    }


def sha256(paths: Sequence[Path]) -> str:
    """The digest of the concatenated files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
