"""Where in the frames the similarity of two clips comes from: Grad-CAM, as in the paper's Figure 4.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017. What
is explained is no class but the cosine similarity of a clip's feature, which depends on the frames, to a fixed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from torch import nn

from fastreid_star.data.clips import collate_clips
from fastreid_star.methods.sad import SAD
from fastreid_star.report.pictures import DENSITY, Clip, Picture, encode, side_by_side

STRENGTH = 0.6  # of the colors over the frame, where the map is largest
COLORS = matplotlib.colormaps["turbo"]


@dataclass(frozen=True)
class Explained:
    """Where in a clip one network sees the similarity to another clip.

    Args:
        name: of the run.
        similarity: of the two clips.
        picture: the frames, warm where the similarity comes from.
    """

    name: str
    similarity: float
    picture: Picture


class ClipOfFrames(nn.Module):
    """A network that maps frames ``[T, 3, H, W]`` to their clip's feature ``[1, D]``, as image libraries want it.

    Args:
        model: takes batches of clips.
        batch: of one clip; whatever is not its images stays as it is.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, torch.Tensor]):
        super().__init__()
        self.model = model
        self.batch = dict(batch)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.model({**self.batch, "images": frames[None]})


class SimilarityTo:
    """The cosine similarity of a clip's feature to a fixed one, [D] both."""

    def __init__(self, feature: torch.Tensor):
        self.feature = feature

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cosine_similarity(
            output, self.feature.to(output.device, output.dtype), dim=0
        )


class ClipGradCAM(GradCAM):
    """Grad-CAM whose maps share one scale over the frames of the clip: the library scales each image by itself."""

    def compute_cam_per_layer(
        self, input_tensor: torch.Tensor, targets: list[Any], eigen_smooth: bool
    ) -> list[np.ndarray]:
        activations = self.activations_and_grads.activations[0].numpy()
        gradients = self.activations_and_grads.gradients[0].numpy()
        maps = self.get_cam_image(
            input_tensor, self.target_layers[0], targets, activations, gradients, eigen_smooth
        )
        width, height = self.get_target_width_height(input_tensor)
        return [
            np.stack([cv2.resize(np.maximum(one, 0), (width, height)) for one in maps])[:, None]
        ]

    def aggregate_multi_layers(self, cam_per_target_layer: list[np.ndarray]) -> np.ndarray:
        (maps,) = cam_per_target_layer
        return maps[:, 0] / max(float(maps.max()), 1e-12)


def similarity_maps(model: SAD, clip: Clip, feature: torch.Tensor) -> tuple[np.ndarray, float]:
    """Where in a clip its similarity to another's feature comes from.

    The gradient reaches the frames only: skeletons, and what the network makes of them, count as fixed.

    Args:
        model: :class:`~fastreid_star.modeling.SAD` or a subclass, in eval mode.
        clip: to be explained.
        feature: the other clip's, [D].

    Returns:
        maps [T, H, W] of 0 to 1, one scale for the whole clip, all 0 where nothing speaks for the similarity; and the
        similarity.
    """
    batch = collate_clips([clip.item])
    wrapped = ClipOfFrames(model, batch)
    target = SimilarityTo(feature)
    layer, reshape = target_layer(model.backbone)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        # Only the frames take a gradient, so none runs back through the LSTM, which cuDNN refuses in eval mode.
        for parameter in frozen:
            parameter.requires_grad_(False)
        frames = batch["images"][0].float().to(model.device).requires_grad_()
        with ClipGradCAM(wrapped, [layer], reshape_transform=reshape) as cam:
            maps = cam(frames, [target])
            similarity = float(target(cam.outputs[0].detach()))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return maps, similarity


def explain(name: str, model: SAD, clip: Clip, feature: torch.Tensor, *, height: int) -> Explained:
    """:func:`similarity_maps` as a picture with frames of this height in CSS pixels; see there."""
    maps, similarity = similarity_maps(model, clip, feature)
    frames = [
        overlay(*pair, round(DENSITY * height)) for pair in zip(clip.frames, maps, strict=True)
    ]
    alt = f"{len(frames)} frames of the {clip.what}, colored by what speaks for the similarity in {name}"
    return Explained(name, similarity, encode(side_by_side(frames), height=height, alt=alt))


def target_layer(backbone: Any) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor] | None]:
    """The last stage that gives maps, and how its output becomes ``[N, C, h, w]``.

    A transformer's last stage ends in the class token alone; its third hands over tokens of all patches.
    """
    if backbone.spatial_dims == (2, 3):
        return backbone.stages[3], None
    patches = backbone.visible_stem.patch_embed

    def to_maps(tokens: torch.Tensor) -> torch.Tensor:
        rows, columns = patches.num_y, patches.num_x
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))

    return backbone.stages[2], to_maps


def overlay(frame: np.ndarray, heat: np.ndarray, height: int) -> np.ndarray:
    """A map [H, W] of 0 to 1 in colors over its frame [H, W, 3], uint8, at another height.

    The frame turns gray, and shows where nothing is warm.
    """
    size = max(1, round(height / frame.shape[0] * frame.shape[1])), height
    gray = cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC), cv2.COLOR_RGB2GRAY)
    heat = np.clip(cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), 0, 1)
    weight = STRENGTH * np.sqrt(heat)[..., None]
    return np.rint((1 - weight) * gray[..., None] + weight * 255 * COLORS(heat)[..., :3]).astype(
        np.uint8
    )
