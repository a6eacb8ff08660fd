"""ViTPose as Hugging Face transformers has it: plain PyTorch, from a local folder.

Only the network is the library's. Its image processor cuts the crop out with scipy: ten times slower than OpenCV, with
which ViTPose was trained, and with other pixels along the crop's border. Its post-processing blurs the heatmaps with a
standard deviation of 0.8 cells before it refines the peaks; ViTPose's own takes 2, the width of the peaks, and is half
as far off on noisy maps. :class:`PrepareCrop` and :func:`find_joints` do what ViTPose was trained and published with:
unbiased data processing (UDP, Huang et al., 2020) and the refinement of DARK (Zhang et al., 2020). A pixel's center at
x goes to (x - left) * (W - 1) / width of the box, where W is the input's width, and back from the heatmap's cells in
the same way. Several people in a crop: see :mod:`fastreid_star.pose.central`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.pose.central import RULE, keep_central_peaks
from fastreid_star.pose.estimator import PoseEstimator, joined, mixed_precision, sha256, versions

PADDING = 1.25  # of the box, in training
COCO = 0  # of the datasets that the experts of ViTPose+ are for
_BLUR, _SIGMA = 11, 2.0


@dataclass(frozen=True)
class PreparedCrop:
    """A crop in the network's input.

    Args:
        image: uint8 [3,H,W], RGB.
        left, top: where the input's first pixel lies, in pixels of the crop.
        width, height: of the box that the input shows, in pixels of the crop.
        share: of the input's width that the crop takes.
    """

    image: torch.Tensor
    left: float
    top: float
    width: float
    height: float
    share: float


@dataclass(frozen=True)
class PrepareCrop:
    """The whole crop with a quarter more around it, black, in the input's proportions, scaled to the input.

    Args:
        width, height: of the input.
    """

    width: int
    height: int

    def __call__(self, crop: np.ndarray) -> PreparedCrop:
        height, width = crop.shape[:2]
        pixels = PADDING * max(
            width / self.width, height / self.height
        )  # of the crop to one of the input
        box_width, box_height = pixels * self.width, pixels * self.height
        left, top = (width - box_width) / 2, (height - box_height) / 2
        scale_x, scale_y = (self.width - 1) / box_width, (self.height - 1) / box_height
        matrix = np.array([[scale_x, 0, -left * scale_x], [0, scale_y, -top * scale_y]])
        warped = cv2.warpAffine(
            np.ascontiguousarray(crop), matrix, (self.width, self.height), flags=cv2.INTER_LINEAR
        )
        image = torch.from_numpy(warped).permute(2, 0, 1).contiguous()
        return PreparedCrop(image, left, top, box_width, box_height, width / box_width)


class VitPoseEstimator(PoseEstimator):
    """See :func:`fastreid_star.pose.estimator.build_estimator`."""

    def __init__(
        self,
        *,
        model: str | None,
        checkpoint: str | None,
        device: torch.device,
        flip_test: bool,
        dtype: str | None,
    ):
        if model is not None:
            raise UserError(
                "vitpose takes no --model: the folder that --checkpoint names says which one it is"
            )
        if checkpoint is None:
            raise UserError(
                "vitpose needs its trained weights: download the files of a ViTPose from the Hugging Face hub, such as "
                "usyd-community/vitpose-base-simple, into a folder, and name the folder with --checkpoint"
            )
        folder = Path(checkpoint)
        files = _weight_files(folder)
        self._model, processor = _load(folder)
        backbone = self._model.config.backbone_config
        size = (processor.size["width"], processor.size["height"])
        if size[::-1] != tuple(backbone.image_size):
            raise UserError(
                f"{folder}: preprocessor_config.json makes images of {size[0]} x {size[1]}, config.json wants "
                f"{backbone.image_size[1]} x {backbone.image_size[0]}: download both again"
            )
        self._model.to(device)
        self._with_experts = backbone.num_experts > 1
        self._device, self._flip_test, self._dtype = device, flip_test, dtype
        factor = processor.rescale_factor if processor.do_rescale else 1
        mean, std = (
            (processor.image_mean, processor.image_std)
            if processor.do_normalize
            else ([0] * 3, [1] * 3)
        )
        self._mean, self._std = (
            torch.tensor(x, device=device).view(3, 1, 1) / factor for x in (mean, std)
        )
        self.prepare = PrepareCrop(*size)
        self._description = {
            "backend": "vitpose",
            "model": folder.resolve().name,
            "config": f"layers: {backbone.num_hidden_layers}, width: {backbone.hidden_size}, "
            f"experts: {backbone.num_experts}",
            "config_sha256": sha256([folder / "config.json", folder / "preprocessor_config.json"]),
            "checkpoint": ", ".join(file.name for file in files),
            "sha256": sha256(files),
            "input_size": list(size),
            "score": "heatmap maximum",
            "several_people": RULE,
            "flip_test": flip_test,
            "dtype": dtype or "float32",
            "versions": versions("transformers"),
        }

    def describe(self) -> dict[str, Any]:
        return dict(self._description)

    def estimate(self, prepared: Sequence[PreparedCrop]) -> np.ndarray:
        if not prepared:
            return joined(np.empty((0, NUM_JOINTS, 2)), np.empty((0, NUM_JOINTS)))
        shares = torch.tensor([crop.share for crop in prepared], device=self._device)
        with torch.inference_mode():
            images = torch.stack([crop.image for crop in prepared]).to(self._device)
            images = (images - self._mean) / self._std
            maps = self._heatmaps(images)
            if self._flip_test:
                maps = (maps + self._heatmaps(images.flip(-1)).flip(-1)[:, list(LEFT_RIGHT)]) / 2
            cells, scores = find_joints(keep_central_peaks(maps, shares))
        last = np.array(maps.shape[:1:-1]) - 1
        boxes = np.array([(crop.width, crop.height) for crop in prepared])[:, None]
        corners = np.array([(crop.left, crop.top) for crop in prepared])[:, None]
        return joined(cells.cpu().numpy() / last * boxes + corners, scores.cpu().numpy())

    def _heatmaps(self, images: torch.Tensor) -> torch.Tensor:
        experts = {}
        if self._with_experts:
            experts["dataset_index"] = torch.full((len(images),), COCO, device=self._device)
        with mixed_precision(self._device, self._dtype):
            return self._model(images, **experts).heatmaps.float()


def find_joints(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest peak of each map, between the cells.

    After a blur, as wide as the peaks that the network was taught, a parabola is laid through the logarithm of the nine
    cells around the highest one: on a Gaussian that is exact. Where its top is further away than a peak is wide, the
    parabola is none of a peak, and the highest cell it is.

    Args:
        maps: float32 [N,K,h,w].

    Returns:
        x and y in cells, [N,K,2]; the highest score, [N,K].
    """
    height, width = maps.shape[-2:]
    scores, places = maps.flatten(2).max(2)
    x, y = places % width, torch.div(places, width, rounding_mode="floor")

    kernel = torch.arange(_BLUR, device=maps.device, dtype=maps.dtype) - _BLUR // 2
    kernel = torch.exp(-(kernel**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    blurred = F.conv2d(
        maps.flatten(0, 1)[:, None], kernel.view(1, 1, 1, -1), padding=(0, _BLUR // 2)
    )
    blurred = (
        F.conv2d(blurred, kernel.view(1, 1, -1, 1), padding=(_BLUR // 2, 0))
        .view_as(maps)
        .flatten(2)
    )
    # as high as before, so that the floor of the logarithm lies where it did
    blurred = blurred * (scores / blurred.amax(2).clamp(min=1e-12))[..., None]
    logs = blurred.clamp(1e-3, 50).log()

    def at(dx: int, dy: int) -> torch.Tensor:
        cell = (y + dy).clamp(0, height - 1) * width + (x + dx).clamp(0, width - 1)
        return logs.gather(2, cell[..., None])[..., 0]

    here, right, left, below, above = at(0, 0), at(1, 0), at(-1, 0), at(0, 1), at(0, -1)
    slope_x, slope_y = (right - left) / 2, (below - above) / 2
    bend_x, bend_y = right - 2 * here + left, below - 2 * here + above
    twist = (at(1, 1) - right - below + 2 * here - left - above + at(-1, -1)) / 2
    tiny = torch.finfo(maps.dtype).eps  # nothing is known of a flat map, and nothing is moved
    bend_x, bend_y = bend_x + tiny, bend_y + tiny
    determinant = bend_x * bend_y - twist**2
    step_x = (bend_y * slope_x - twist * slope_y) / determinant
    step_y = (bend_x * slope_y - twist * slope_x) / determinant
    close = (step_x.abs() <= _SIGMA) & (step_y.abs() <= _SIGMA)
    step = torch.stack([step_x, step_y], dim=-1)
    return torch.stack([x, y], dim=-1) - torch.where(close[..., None], step, 0), scores


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(
            f"folder {folder} does not exist: download a ViTPose into it, or name another with --checkpoint"
        )
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} holds no model.safetensors: download that file too; a pytorch_model.bin may run code and is not "
            "read"
        )
    return files


def _load(folder: Path) -> tuple[Any, Any]:
    """The network in evaluation mode, float32, and the image processor's settings."""
    from transformers import AutoConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if config.model_type != "vitpose":
                raise UserError(
                    f"{folder} holds a {config.model_type}, not a ViTPose: name another with --checkpoint"
                )
            if config.num_labels != NUM_JOINTS:
                raise UserError(
                    f"{folder} finds {config.num_labels} joints, not COCO's {NUM_JOINTS}: name another folder"
                )
            processor = VitPoseImageProcessor.from_pretrained(folder, local_files_only=True)
            model, info = VitPoseForPoseEstimation.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # lists them for what follows
            )
    except UserError:
        raise
    except (
        Exception
    ) as error:  # transformers and safetensors raise about any kind on a folder that is not whole
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} cannot be read ({reason}): download it again") from error
    for what in ("missing", "unexpected", "mismatched"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[f"{what}_keys"])
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f"{folder}: {len(names)} weights are {what} ({listed}): download it again"
            )
    return model.float().eval(), processor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and its report on missing weights, which advises to train on."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
