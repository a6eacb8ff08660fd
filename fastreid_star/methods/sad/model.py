"""SAD, the baseline: a two-stream network with style augmentation, attack and defense.

::

    images -> normalize -> augment -> stem per modality -> stages 1-2 -+
                                                                       |
        +--------------------------------------------------------------+
        |
        +-> stage 3 -> stage 4 -> X
        |
        +-> AdaIN(same modality) -> stage 3 -> AdaIN(other modality) -> stage 4 -> X_dis

    X     -> GeM over T -> clip head  -> clip CE, triplet; the feature for retrieval
    X     -> frame head -> frame CE
    X_dis -> frame head -> attack CE
    |X - X_dis|         -> defense

Shapes: B clips, T frames of a clip, N = B T frames, D feature width of the backbone.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.style import (
    STD_KINDS,
    adain,
    attack_partners,
    augment_style,
    style_factors,
)
from fastreid_star.modeling.losses.loss import outputs_needed
from fastreid_star.modeling.video_reid import FRAME_OUTPUTS, VideoReID

ATTACK_OUTPUTS = ("attacked_frames", "attacked_logits")
STYLE_RANGE = (0.5, 1.5)  # of the factors of the style augmentation


@META_ARCH_REGISTRY.register()
class SAD(VideoReID):
    """:class:`VideoReID` with style augmentation of the images and a style attack on the maps.

    The attack runs where a loss needs `attacked_frames` ``[B, T, D]`` or `attacked_logits`
    ``[N, C]``. The clean and the attacked frames share one frame head.

    Args:
        augment: change the style of the images in training.
        std: the standard deviation of the attack, see
            :func:`~fastreid_star.modeling.layers.style.channel_statistics`.
        kwargs: see :class:`VideoReID`.

    Raises:
        UserError: an unknown `std`.
    """

    provides = (*VideoReID.provides, *ATTACK_OUTPUTS)

    @configurable
    def __init__(
        self,
        *,
        augment: bool = True,
        std: str = "sqrt_var",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if std not in STD_KINDS:
            raise UserError(f"MODEL.SAD.STD is {std!r}: choose one of {', '.join(STD_KINDS)}")
        self.augment = augment
        self.std = std

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`VideoReID`, with ``MODEL.SAD``; there is a frame head if a loss needs it."""
        options, sad = super().from_config(cfg), cfg.MODEL.SAD
        if not outputs_needed(options["losses"]) & {*FRAME_OUTPUTS, "attacked_logits"}:
            options["frame_heads"] = nn.Identity()
        return {**options, "augment": sad.AUGMENT, "std": sad.STD}

    def preprocess(self, images: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """As :class:`VideoReID`; in training each frame gets a new style."""
        images = super().preprocess(images, is_visible)
        if self.training and self.augment:
            drawn = style_factors(is_visible, *STYLE_RANGE)
            factors, order = (part.to(self.device, non_blocking=True) for part in drawn)
            images = augment_style(images, factors, order)
        return images

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`VideoReID`, with the outputs of the attack where a loss needs them."""
        attacks = self.needed & set(ATTACK_OUTPUTS)
        if attacks:
            length = outputs["frames"].shape[1]
            attacked = self.attack(outputs["low"], outputs["is_visible"], length)
            outputs["attacked_frames"] = attacked.view_as(outputs["frames"])
        super().training_outputs(outputs)
        if "attacked_logits" in attacks:
            outputs["attacked_logits"] = self.frame_logits(
                outputs["attacked_frames"], outputs["frame_targets"]
            )

    def attack(self, low: torch.Tensor, is_visible: torch.Tensor, length: int = 1) -> torch.Tensor:
        """The attack pass from the maps after stage 2 on: X_dis ``[N, D]``.

        The maps after stage 2 take the style of a frame of the same modality, those after stage 3
        the style of a frame of the other modality. The BatchNorm statistics of stages 3 and 4 are
        updated by this pass as well as by the clean one, as in the authors' program: it changes the
        result.
        """
        dims = self.backbone.spatial_dims
        # without non_blocking, the copy to a device would wait for the clean pass
        same, other = (
            partner.to(low.device, non_blocking=True) for partner in attack_partners(is_visible)
        )
        middle = self.backbone.stage3(adain(low, same, dims, self.std), length)
        return self.pool_frames(self.backbone.stage4(adain(middle, other, dims, self.std), length))
