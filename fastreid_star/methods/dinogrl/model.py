"""DinoGRL: gait from DINOv2's tokens beside appearance.

::

    images -> normalize -> two-stream backbone -> max over T -> stripes -> A [B, P, D]
    frames of the backbone -> corrector -> guide -> the first part of A, if there is a guide
    images -> normalize -> DINOv2, frozen -> silhouettes, gait maps -> trunk
                        -> max over T -> stripes -> G [B, P, D]
    G, A   -> exchange (PBMGE) -> clip [B, 2P', D] -> part CE, part triplet; retrieval
    silhouettes, gait maps -> reconstruction, smoothness, diversity

Shapes: B clips, T frames, N = B T frames, P parts of a stream, P' with the exchange's, D width of a
part.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.dinogrl.exchange import PartExchange
from fastreid_star.methods.dinogrl.layers import silhouette_of
from fastreid_star.methods.dinogrl.losses import READINGS
from fastreid_star.methods.dinogrl.streams import (
    GaitStream,
    PartPooling,
    build_gait,
    build_guide,
    drop_relu,
)
from fastreid_star.modeling.backbones.two_stream import build_two_stream
from fastreid_star.modeling.frame_correctors import build_frame_corrector
from fastreid_star.modeling.heads.clip_head import ClipHead
from fastreid_star.modeling.heads.part_head import PartHead
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import build_losses, outputs_needed
from fastreid_star.modeling.video_reid import VideoReID

STREAMS = ("both", "apart", "appearance", "gait")
GAIT_OUTPUTS = ("classes", "tokens", "rebuilt_tokens", "person", "support", "denoised")


@META_ARCH_REGISTRY.register()
class DinoGRL(VideoReID):
    """Parts of the appearance and of the gait, exchanged; features ``[B, P, D]`` are compared by
    the mean Euclidean distance of their parts.

    Args:
        appearance: pools the backbone's maps; None: gait alone.
        gait: the gait stream; None: appearance alone.
        exchange: between both; None: they stay apart.
        guide: pools the frames of the appearance to its first part; None: the maps do.
        augment: copy one color channel to all in half of the visible training clips.
        per_frame: each frame of such a clip draws its own channel.
        kwargs: see :class:`VideoReID`; `heads` is a PartHead. There is no frame head.
    """

    provides: tuple[str, ...] = ("is_visible", "clip", "clip_logits", "targets", "frame_targets")
    units = ("clip",)

    @configurable
    def __init__(
        self,
        *,
        appearance: PartPooling | None,
        gait: GaitStream | None,
        exchange: PartExchange | None,
        guide: ClipHead | None = None,
        augment: bool = True,
        per_frame: bool = False,
        **kwargs: Any,
    ):
        if appearance is not None:
            self.provides = (*self.provides, "frames")
        if gait is not None:
            self.provides = (*self.provides, *GAIT_OUTPUTS)
        if guide is not None:
            self.provides = (*self.provides, "corrected", *guide.provides)
        super().__init__(frame_heads=nn.Identity(), **kwargs)
        self.appearance, self.gait, self.exchange = appearance, gait, exchange
        self.guide = guide
        self.augment, self.per_frame = augment, per_frame
        self._check_needs()  # once more, with the guide

    @property
    def clip_head(self) -> Any:
        """The guide, or the part head."""
        guide = getattr(self, "guide", None)
        return self.heads if guide is None else guide

    @property
    def has_silhouettes(self) -> bool:
        """Whether :meth:`silhouettes` has something to show."""
        return self.gait is not None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL`` and ``MODEL.DINOGRL``."""
        own = cfg.MODEL.DINOGRL
        _check(cfg)
        head = REID_HEADS_REGISTRY.get(cfg.MODEL.HEADS.NAME)
        backbone = build_two_stream(cfg)
        if backbone.spatial_dims != (2, 3):
            raise UserError(
                f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}: DinoGRL needs a convolutional "
                "backbone, whose stages read maps"
            )
        width, bins = cfg.MODEL.HEADS.EMBEDDING_DIM, own.BINS
        gait = appearance = exchange = None
        if own.STREAMS != "appearance":
            gait = build_gait(cfg, backbone)
        if own.STREAMS != "gait":
            appearance = PartPooling(backbone.feature_width, width, bins)
            if own.READING == "authors":
                drop_relu(backbone)
        if own.STREAMS == "both":
            exchange = PartExchange(width, bins)
        guide = corrector = None
        if own.GUIDE:
            corrector = build_frame_corrector(cfg, feat_dim=backbone.feature_width)
            guide = build_guide(cfg, backbone.feature_width)
        parts = sum(bins) + (len(bins) - 1 if exchange else 0)
        parts *= 2 if own.STREAMS in ("both", "apart") else 1
        return {
            "backbone": backbone if appearance else nn.Identity(),
            "heads": head(cfg, feat_dim=width, num_parts=parts),
            "losses": build_losses(cfg, feat_dim=backbone.feature_width),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "appearance": appearance,
            "gait": gait,
            "exchange": exchange,
            "guide": guide,
            "corrector": corrector,
            "skeleton_dropout": cfg.MODEL.SKELETON_DROPOUT,
            "per_frame": own.READING == "authors",
        }

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        losses: dict[str, Any] = dict(self.losses.items())
        needs = outputs_needed(losses)
        used = {"clip_logits"} if self.gait is None else {"clip_logits", "rebuilt_tokens"}
        late = any(loss.first_epoch > (self.epoch or 0) for loss in losses.values())
        return late or not used <= needs

    def preprocess(self, images: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """As :class:`VideoReID`; in training some visible clips show one color channel only."""
        length = images.shape[1]
        images = super().preprocess(images, is_visible)
        if self.training and self.augment:
            order = channel_order(is_visible, length, per_frame=self.per_frame)
            order = order.to(images.device, non_blocking=True)
            images = images.gather(1, order[:, :, None, None].expand_as(images))
        return images

    def encode_frames(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images to the parts of both streams, and to `frames` ``[B, T, D]`` of the backbone."""
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch, length)
        images = self.preprocess(batch["images"], is_visible)
        outputs: dict[str, Any] = {"is_visible": is_visible}
        if self.appearance is not None:
            maps = self.backbone(images, is_visible, length)
            outputs["frames"] = self.pool_frames(maps).unflatten(0, (clips, length))
            outputs["stripes"] = self.appearance.pool(maps, clips, length)
        if self.gait is not None:
            outputs |= self.gait(images, clips, length)
        return outputs

    def encode_clip(self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool) -> None:
        """Add `clip`: the parts of the gait, then those of the appearance, after the exchange."""
        streams = [outputs.pop("gait_parts", None), None]
        if self.appearance is not None:
            stripes = outputs.pop("stripes")
            if self.guide is not None:
                super().encode_clip(outputs, batch, explain)
                stripes = torch.cat([outputs["clip"][:, None], stripes[:, 1:]], dim=1)
            streams[1] = self.appearance.fc(stripes)
        if self.exchange is not None:
            streams = self.exchange(*streams)
        outputs["clip"] = torch.cat([parts for parts in streams if parts is not None], dim=1)

    @torch.no_grad()
    def silhouettes(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The learned silhouettes of clips, in evaluation mode.

        Args:
            batch: see :meth:`encode`.

        Returns:
            the closed silhouettes, from 0 to 1, and the supports, bool: ``[B, T, H, W]`` each, on
            twice the grid of the tokens.

        Raises:
            UserError: the model has no gait stream.
        """
        if self.gait is None:
            raise UserError("MODEL.DINOGRL.STREAMS is appearance: there are no silhouettes")
        modes = {module: module.training for module in self.modules()}
        outputs = self.eval().encode(batch)
        for module, training in modes.items():
            module.training = training
        shape = batch["images"].shape[:2]
        maps = (silhouette_of(outputs["person"]), outputs["support"])
        silhouettes, supports = (each.reshape(*shape, *each.shape[2:]) for each in maps)
        return silhouettes, supports

    def retrieval_features(self, outputs: dict[str, Any]) -> torch.Tensor:
        """The parts ``[B, P, D]`` as they are: their length is part of their distance."""
        return at_least_float32(self.heads(outputs["clip"]))


def channel_order(
    is_visible: torch.Tensor, length: int, *, per_frame: bool = False
) -> torch.Tensor:
    """Which color channel each channel of a frame is read from: int64 ``[N, 3]``, on the CPU.

    Half of the visible clips, by a coin, get one channel three times, drawn for the clip.

    Args:
        is_visible: bool ``[N]``, on the host.
        length: T.
        per_frame: each frame of such a clip draws its own channel.
    """
    clips = len(is_visible) // length
    shape = (clips, length if per_frame else 1, 1)
    one = torch.randint(3, shape).expand(clips, length, 3)
    chosen = (torch.rand(clips, 1) < 0.5) & is_visible.view(clips, length)
    return torch.where(chosen[..., None], one, torch.arange(3)).flatten(0, 1)


def _check(cfg: CfgNode) -> None:
    """Raise a UserError for a value of ``MODEL.DINOGRL`` or a head that does not fit."""
    own = cfg.MODEL.DINOGRL
    for key, known in (("READING", READINGS), ("STREAMS", STREAMS)):
        if own[key] not in known:
            choices = ", ".join(known)
            raise UserError(f"MODEL.DINOGRL.{key} is {own[key]!r}: choose one of {choices}")
    if not own.BINS or own.BINS[0] != 1 or min(own.BINS) < 1:
        raise UserError(f"MODEL.DINOGRL.BINS is {list(own.BINS)}: the first number must be 1")
    if len(own.GRID) != 2 or min(own.GRID) < 1:
        raise UserError(f"MODEL.DINOGRL.GRID is {list(own.GRID)}: give rows and columns")
    if cfg.MODEL.HEADS.EMBEDDING_DIM < 1:
        raise UserError("MODEL.HEADS.EMBEDDING_DIM is the width of a part: DinoGRL has 256")
    head = REID_HEADS_REGISTRY.get(cfg.MODEL.HEADS.NAME)
    if not (isinstance(head, type) and issubclass(head, PartHead)):
        raise UserError(
            f"MODEL.HEADS.NAME is {cfg.MODEL.HEADS.NAME}, which is not a head for parts: DinoGRL "
            "needs PartHead or a subclass of it"
        )
