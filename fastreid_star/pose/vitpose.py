"""ViTPose of Hugging Face transformers, from a local folder.

Only the network is taken from the library. Its image processor is ten times slower than OpenCV,
with which ViTPose was trained. Its post-processing blurs heatmaps less than ViTPose's own, which
halves the error on noisy maps. :class:`PrepareCrop` and :func:`find_joints` do what ViTPose was
published with: unbiased data processing (UDP, Huang et al., CVPR 2020) and the refinement of DARK
(Zhang et al., CVPR 2020). The center of a pixel at x moves to (x - left) * (W - 1) / width of the
box, where W is the width of the input, and back from the cells of the heatmap in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import (
    PoseEstimator,
    description_of,
    join_joints,
    keep_central_peaks,
    mixed_precision,
    sha256,
)

PADDING = 1.25  # of the box, in training
COCO = 0  # of the datasets that the experts of ViTPose+ are for
_BLUR, _SIGMA = 11, 2.0


class PreparedCrop(NamedTuple):
    """A crop in the network's input.

    Attributes:
        image: uint8 ``[3, H, W]``, RGB.
        corner: x and y of the input's first pixel, in pixels of the crop.
        box: width and height of what the input shows, in pixels of the crop.
        share: the share of the input's width that the crop takes.
    """

    image: torch.Tensor
    corner: np.ndarray
    box: np.ndarray
    share: float


@dataclass(frozen=True)
class PrepareCrop:
    """Scale the whole crop to the input, with a black border of a quarter of its size.

    Args:
        width, height: the size of the input.
    """

    width: int
    height: int

    def __call__(self, crop: np.ndarray) -> PreparedCrop:
        size, own = np.array([self.width, self.height]), np.array(crop.shape[1::-1])
        box = PADDING * (own / size).max() * size
        corner = (own - box) / 2
        scale = (size - 1) / box
        matrix = np.column_stack([np.diag(scale), -corner * scale])
        warped = cv2.warpAffine(
            np.ascontiguousarray(crop), matrix, (self.width, self.height), flags=cv2.INTER_LINEAR
        )
        image = torch.from_numpy(warped).permute(2, 0, 1).contiguous()
        return PreparedCrop(image, corner, box, float(own[0] / box[0]))


class VitPoseEstimator(PoseEstimator):
    """See :func:`fastreid_star.pose.estimator.build_estimator`."""

    def __init__(
        self,
        *,
        model: str,
        checkpoint: str,
        device: torch.device,
        flip_test: bool,
        dtype: str | None,
    ):
        if model:
            raise UserError(
                "vitpose has no --model: the folder given by --checkpoint defines the network"
            )
        if not checkpoint:
            raise UserError(
                "vitpose needs trained weights: download the files of a ViTPose from the Hugging "
                "Face hub, such as usyd-community/vitpose-base-simple, and give their folder by "
                "--checkpoint"
            )
        folder = Path(checkpoint)
        files = _weight_files(folder)
        self._model, processor = _load(folder)
        backbone = self._model.config.backbone_config
        size = (processor.size["width"], processor.size["height"])
        self._model.to(device)
        self._with_experts = backbone.num_experts > 1
        self._device, self._flip_test, self._dtype = device, flip_test, dtype
        self._mean, self._std = (
            torch.tensor(x, device=device).view(3, 1, 1) / processor.rescale_factor
            for x in (processor.image_mean, processor.image_std)
        )
        self.prepare = PrepareCrop(*size)
        self.description = description_of(
            files,
            ["transformers"],
            flip_test=flip_test,
            dtype=dtype,
            backend="vitpose",
            model=folder.resolve().name,
            config=f"layers: {backbone.num_hidden_layers}, width: {backbone.hidden_size}, "
            f"experts: {backbone.num_experts}",
            config_sha256=sha256([folder / "config.json", folder / "preprocessor_config.json"]),
            input_size=list(size),
            score="heatmap maximum",
        )

    def estimate(self, prepared: Sequence[PreparedCrop]) -> np.ndarray:
        shares = torch.tensor([crop.share for crop in prepared], device=self._device)
        with torch.inference_mode():
            images = torch.stack([crop.image for crop in prepared]).to(self._device)
            images = (images - self._mean) / self._std
            maps = self._heatmaps(images)
            if self._flip_test:
                maps = (maps + self._heatmaps(images.flip(-1)).flip(-1)[:, list(LEFT_RIGHT)]) / 2
            cells, scores = find_joints(keep_central_peaks(maps, shares))
        last = np.array(maps.shape[:1:-1]) - 1
        boxes = np.stack([crop.box for crop in prepared])[:, None]
        corners = np.stack([crop.corner for crop in prepared])[:, None]
        return join_joints(cells.cpu().numpy() / last * boxes + corners, scores.cpu().numpy())

    def _heatmaps(self, images: torch.Tensor) -> torch.Tensor:
        experts = {}
        if self._with_experts:
            experts["dataset_index"] = torch.full((len(images),), COCO, device=self._device)
        with mixed_precision(self._device, self._dtype):
            return self._model(images, **experts).heatmaps.float()


def find_joints(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest peak of each map, with a precision below one cell (DARK).

    The maps are blurred by the width of the peaks in training. Then a paraboloid is fitted to the
    logarithm of the nine cells around the highest one, which is exact for a Gaussian. If its top is
    further away than the width of a peak, the highest cell is taken.

    Args:
        maps: float32 ``[N, K, h, w]``.

    Returns:
        x and y in cells, ``[N, K, 2]``, and the highest score, ``[N, K]``.
    """
    height, width = maps.shape[-2:]
    scores, places = maps.flatten(2).max(2)
    x, y = places % width, torch.div(places, width, rounding_mode="floor")

    kernel = torch.arange(_BLUR, device=maps.device, dtype=maps.dtype) - _BLUR // 2
    kernel = torch.exp(-(kernel**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    half = _BLUR // 2
    blurred = F.conv2d(maps.flatten(0, 1)[:, None], kernel.view(1, 1, 1, -1), padding=(0, half))
    blurred = F.conv2d(blurred, kernel.view(1, 1, -1, 1), padding=(half, 0))
    blurred = blurred.view_as(maps).flatten(2)
    # restore the height of the peak, for the clamp below
    blurred = blurred * (scores / blurred.amax(2).clamp(min=1e-12))[..., None]
    logs = blurred.clamp(1e-3, 50).log()

    def at(dx: int, dy: int) -> torch.Tensor:
        cell = (y + dy).clamp(0, height - 1) * width + (x + dx).clamp(0, width - 1)
        return logs.gather(2, cell[..., None])[..., 0]

    here, right, left, below, above = at(0, 0), at(1, 0), at(-1, 0), at(0, 1), at(0, -1)
    slope_x, slope_y = (right - left) / 2, (below - above) / 2
    bend_x, bend_y = right - 2 * here + left, below - 2 * here + above
    twist = (at(1, 1) - right - below + 2 * here - left - above + at(-1, -1)) / 2
    tiny = torch.finfo(maps.dtype).eps  # of a flat map the highest cell is taken
    bend_x, bend_y = bend_x + tiny, bend_y + tiny
    determinant = bend_x * bend_y - twist**2
    step_x = (bend_y * slope_x - twist * slope_y) / determinant
    step_y = (bend_x * slope_y - twist * slope_x) / determinant
    close = (step_x.abs() <= _SIGMA) & (step_y.abs() <= _SIGMA)
    step = torch.stack([step_x, step_y], dim=-1)
    return torch.stack([x, y], dim=-1) - torch.where(close[..., None], step, 0), scores


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist: download a ViTPose into it")
    files = sorted(folder.glob("model*.safetensors"))  # large networks have several
    if not files:
        raise UserError(
            f"{folder} contains no model.safetensors: download that file too; pytorch_model.bin "
            "may run code and is not read"
        )
    return files


def _load(folder: Path) -> tuple[Any, Any]:
    """The network in evaluation mode, float32, and the settings of the image processor."""
    from transformers import VitPoseForPoseEstimation, VitPoseImageProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()  # without the advice to train missing weights
    logging.disable_progress_bar()
    try:
        processor = VitPoseImageProcessor.from_pretrained(folder, local_files_only=True)
        model, info = VitPoseForPoseEstimation.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below
        )
    except Exception as error:  # of a damaged folder the libraries raise many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} cannot be read ({reason}): download it again") from error
    if model.config.num_labels != NUM_JOINTS:
        raise UserError(
            f"{folder} finds {model.config.num_labels} joints, not COCO's {NUM_JOINTS}: choose "
            "another network"
        )
    for what in ("missing", "unexpected", "mismatched"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[f"{what}_keys"])
        if names:
            raise UserError(
                f"{folder}: {len(names)} weights are {what} ({', '.join(names[:3])}): download it "
                "again"
            )
    return model.float().eval(), processor
