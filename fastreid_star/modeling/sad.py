"""SAD, the baseline: a two-stream network trained with style augmentation, attack and defense.

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

Shapes: B clips, T frames of a clip, N = B T frames, D feature width of the backbone. B and T are read from the
batch, and so is its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.heads import ClipHead, FrameHead
from fastreid_star.modeling.losses import (
    cross_entropy_loss,
    defense_loss,
    log_accuracy,
    triplet_loss,
)
from fastreid_star.modeling.pooling import at_least_float32
from fastreid_star.modeling.style import (
    STD_KINDS,
    adain,
    attack_partners,
    augment_style,
    style_factors,
)
from fastreid_star.modeling.two_stream import TwoStreamBackbone, build_two_stream
from fastreid_star.structures import Modality


@META_ARCH_REGISTRY.register()
class SAD(nn.Module):
    """Two-stream network with style attack and defense.

    A subclass with another idea of a clip overrides :meth:`clip_feature`; one with losses of its own extends
    `known_losses` and :meth:`losses`.

    Args:
        backbone: stems and stages.
        heads: the clip's head, on the clip feature ``[B, D]``.
        frame_heads: the frames' head, shared by X and X_dis.
        pixel_mean, pixel_std: three numbers each, for pixels of 0 to 255.
        loss_names: which losses to train with, of `known_losses`; None: all.
        cross_entropy, triplet: keyword arguments of the losses of these names.
        augment: change the style of the pixels in training.
        augment_range: (low, high) of the augmentation's factors.
        std: how the attack takes a standard deviation, see :func:`~fastreid_star.modeling.style.channel_statistics`.

    Raises:
        UserError: an unknown loss or `std`, or an `augment_range` out of order.
    """

    takes_clips = True  # the trainer pairs networks and datasets by this
    known_losses: tuple[str, ...] = (
        "CrossEntropyLoss",
        "TripletLoss",
        "StyleAttackLoss",
        "StyleDefenseLoss",
    )

    @configurable
    def __init__(
        self,
        *,
        backbone: TwoStreamBackbone,
        heads: ClipHead,
        frame_heads: FrameHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        loss_names: Sequence[str] | None = None,
        cross_entropy: dict | None = None,
        triplet: dict | None = None,
        augment: bool = True,
        augment_range: Sequence[float] = (0.5, 1.5),
        std: str = "sqrt_var",
    ):
        super().__init__()
        loss_names = self.known_losses if loss_names is None else tuple(loss_names)
        unknown = [name for name in loss_names if name not in self.known_losses]
        if unknown or not loss_names:
            raise UserError(
                f"MODEL.LOSSES.NAME has {', '.join(unknown) or 'no loss'}: {type(self).__name__} knows "
                f"{', '.join(self.known_losses)}"
            )
        if std not in STD_KINDS:
            raise UserError(f"MODEL.SAD.STD is {std!r}: choose one of {', '.join(STD_KINDS)}")
        if len(augment_range) != 2 or augment_range[0] > augment_range[1]:
            raise UserError(f"MODEL.SAD.AUGMENT_RANGE is {list(augment_range)}: give [low, high]")
        self.backbone = backbone
        self.heads = heads
        self.frame_heads = frame_heads
        self.loss_names = loss_names
        self.cross_entropy = dict(cross_entropy or {})
        self.triplet = dict(triplet or {})
        self.augment = augment
        self.augment_range = tuple(augment_range)
        self.std = std
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read ``MODEL``; the heads' width is the backbone's."""
        losses = cfg.MODEL.LOSSES
        if losses.CE.EPSILON < 0:
            raise UserError(
                "MODEL.LOSSES.CE.EPSILON is negative: fast-reid's adaptive smoothing is not offered here"
            )
        head = REID_HEADS_REGISTRY.get(cfg.MODEL.HEADS.NAME)
        if not (isinstance(head, type) and issubclass(head, ClipHead)):
            raise UserError(
                f"MODEL.HEADS.NAME is {cfg.MODEL.HEADS.NAME}, which is no head for clips: {cls.__name__} needs "
                f"ClipHead or a subclass of it"
            )
        backbone = build_two_stream(cfg)
        return {
            "backbone": backbone,
            "heads": head(cfg, feat_dim=backbone.feature_width),
            "frame_heads": FrameHead(cfg, feat_dim=backbone.feature_width),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_names": losses.NAME,
            "cross_entropy": {"epsilon": losses.CE.EPSILON, "scale": losses.CE.SCALE},
            "triplet": {
                "margin": losses.TRI.MARGIN,
                "norm_feat": losses.TRI.NORM_FEAT,
                "hard_mining": losses.TRI.HARD_MINING,
                "scale": losses.TRI.SCALE,
                "all_ranks": losses.TRI.ALL_RANKS,
            },
            "augment": cfg.MODEL.SAD.AUGMENT,
            "augment_range": cfg.MODEL.SAD.AUGMENT_RANGE,
            "std": cfg.MODEL.SAD.STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @property
    def attacks(self) -> bool:
        """Whether training needs the attack pass."""
        return bool({"StyleAttackLoss", "StyleDefenseLoss"} & set(self.loss_names))

    def forward(self, batch: dict) -> dict[str, torch.Tensor] | torch.Tensor:
        """One training or evaluation step.

        Args:
            batch: `images` ``[B, T, 3, H, W]``, uint8 or float, 0 to 255; `modality` ``[B]``, on the host,
                1 infrared or 2 visible, in any order; in training `targets` ``[B]``, class indices.

        Returns:
            in training an ordered dict of losses; in evaluation the clip features after BatchNorm, of unit
            length, ``[B, D]``: their dot product is the similarity.
        """
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch["modality"], length)
        images = self.preprocess(batch["images"], is_visible)
        low = self.backbone.low(self.backbone.stem(images, is_visible))
        frames = self.frame_features(low).unflatten(0, (clips, length))
        clip, extras = self.clip_feature(frames, batch)
        if not self.training:
            return F.normalize(at_least_float32(self.heads(clip)))

        attacked = None
        if self.attacks:
            attacked = self.attacked_features(low, is_visible).unflatten(0, (clips, length))
        targets = batch["targets"].to(self.device, non_blocking=True)
        return self.losses(frames, attacked, clip, extras, targets)

    @staticmethod
    def frame_modality(modality: torch.Tensor, length: int) -> torch.Tensor:
        """Modality ``[B]`` of the clips to is_visible ``[N]`` of their frames, bool, on the host.

        Raises:
            UserError: a number that is no modality.
        """
        modality = torch.as_tensor(modality).cpu()  # of no cost where it belongs, on the host
        is_visible = modality == Modality.VISIBLE
        if not (is_visible | (modality == Modality.INFRARED)).all():
            raise UserError(
                f"modality must be 1 (infrared) or 2 (visible), but the batch has {modality.tolist()}"
            )
        return is_visible.repeat_interleave(length)

    def preprocess(self, images: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """Clips ``[B, T, 3, H, W]`` to normalized frames ``[N, 3, H, W]``, in training in a new style.

        Out of place: the caller's images stay as they are.
        """
        images = images.to(self.device, non_blocking=True).flatten(0, 1)
        images = (images - self.pixel_mean) / self.pixel_std
        if self.training and self.augment:
            drawn = style_factors(is_visible, *self.augment_range)
            factors, order = (part.to(self.device, non_blocking=True) for part in drawn)
            images = augment_style(images, factors, order)
        return images

    def frame_features(self, low: torch.Tensor) -> torch.Tensor:
        """The clean pass from the output of stage 2 on: X ``[N, D]``."""
        return self.pool_frames(self.backbone.stage4(self.backbone.stage3(low)))

    def attacked_features(self, low: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """The attack pass from the output of stage 2 on: X_dis ``[N, D]``.

        Stage 2's maps take the style of a frame of the same modality, stage 3's that of a frame of the other. The
        BatchNorm statistics of stages 3 and 4 are updated by this pass as well as by the clean one, as in the
        authors' program: it changes the result, so it is kept.
        """
        dims = self.backbone.spatial_dims
        # a plain copy to a device waits for all that was given to it before, here the clean pass
        same, other = (
            partner.to(low.device, non_blocking=True) for partner in attack_partners(is_visible)
        )
        middle = self.backbone.stage3(adain(low, same, dims, self.std))
        return self.pool_frames(self.backbone.stage4(adain(middle, other, dims, self.std)))

    @staticmethod
    def pool_frames(maps: torch.Tensor) -> torch.Tensor:
        """Global average pooling of maps ``[N, D, h, w]`` to non-negative features ``[N, D]``, at least float32.

        The temporal pooling raises them to a power and needs them non-negative. They are where the backbone ends
        in a ReLU, and the relu here does nothing; MobileNetV2 and V3 (ReLU6) are too; EfficientNet (Swish) and
        transformers (LayerNorm) are not, and are cut off at 0.
        """
        return F.relu(at_least_float32(maps).mean(dim=(2, 3)))

    def clip_feature(self, frames: torch.Tensor, batch: dict) -> tuple[torch.Tensor, dict]:
        """What becomes of the frames' features X in the clip: here GeM over T.

        Args:
            frames: X ``[B, T, D]``.
            batch: as given to :meth:`forward`, for whatever else a subclass needs of it.

        Returns:
            the clip feature ``[B, D]`` before BatchNorm, and a dict that is handed on to :meth:`losses`: tensors
            that a subclass' own losses need. Here empty.
        """
        return self.heads.pool(frames), {}

    def losses(
        self,
        frames: torch.Tensor,
        attacked: torch.Tensor | None,
        clip: torch.Tensor,
        extras: dict,
        targets: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The chosen losses, in the order of `known_losses`.

        Args:
            frames: X ``[B, T, D]``.
            attacked: X_dis ``[B, T, D]``, or None where no chosen loss needs it.
            clip: ``[B, D]``, before BatchNorm.
            extras: the second result of :meth:`clip_feature`.
            targets: ``[B]``, class indices; a frame's label is its clip's.
        """
        losses = {}
        frame_targets = targets.repeat_interleave(frames.shape[1])
        if "CrossEntropyLoss" in self.loss_names or "TripletLoss" in self.loss_names:
            outputs = self.heads(clip, targets)
            log_accuracy(outputs["pred_class_logits"], targets)
        if "CrossEntropyLoss" in self.loss_names:
            losses["loss_cls"] = cross_entropy_loss(
                outputs["cls_outputs"], targets, **self.cross_entropy
            )
            losses["loss_cls_frame"] = self.frame_loss(frames, frame_targets)
        if "TripletLoss" in self.loss_names:
            losses["loss_triplet"] = triplet_loss(outputs["features"], targets, **self.triplet)
        if "StyleAttackLoss" in self.loss_names:
            assert attacked is not None
            losses["loss_cls_attack"] = self.frame_loss(attacked, frame_targets)
        if "StyleDefenseLoss" in self.loss_names:
            assert attacked is not None
            losses["loss_defense"] = defense_loss(frames, attacked)
        return losses

    def frame_loss(self, frames: torch.Tensor, frame_targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy of frame features ``[B, T, D]`` through the frames' head."""
        outputs = self.frame_heads(frames.flatten(0, 1), frame_targets)
        return cross_entropy_loss(outputs["cls_outputs"], frame_targets, **self.cross_entropy)
