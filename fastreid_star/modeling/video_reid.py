"""The meta-architecture of all methods: a batch becomes named outputs, outputs become losses.

::

    images -> normalize -> stem of the modality -> stages 1-4 -> mean over h, w -> frames
    frames -> frame corrector, if there is one -> corrected -> head: pooled over T -> clip
    clip   -> neck, classifier -> features (evaluation), clip_logits (training)
    frames -> neck, classifier -> frame_logits (training)

Shapes: B clips, T frames of a clip, N = B T frames, D feature width of the backbone, C identities.
B and T are read from the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.augmentations import Augmentations
from fastreid_star.modeling.backbones.two_stream import TwoStreamBackbone, build_two_stream
from fastreid_star.modeling.clips import UNITS, as_units, check_unit, frame_modality, join_frames
from fastreid_star.modeling.frame_correctors import FrameCorrectorBase, build_frame_corrector
from fastreid_star.modeling.heads.clip_head import ClipHead, FrameHead
from fastreid_star.modeling.layers.pooling import at_least_float32, pool_maps
from fastreid_star.modeling.layers.skeleton_graph import drop_skeletons
from fastreid_star.modeling.losses.cross_entropy import log_accuracy
from fastreid_star.modeling.losses.loss import Loss, build_losses, check_needs, outputs_needed

CLIP_OUTPUTS = ("clip_logits", "clip_features", "clip_embeddings")
FRAME_OUTPUTS = ("frame_logits",)


@META_ARCH_REGISTRY.register()
class VideoReID(nn.Module):
    """Clips of two modalities to one feature a clip, trained with any registered losses.

    A method extends :meth:`encode_frames`, :meth:`encode_clip` or :meth:`training_outputs`, adds
    the names of its outputs to `provides`, and registers losses that need them.

    Args:
        backbone: stems and stages.
        heads: pools the frames of a clip; neck and classifier of the clip.
        frame_heads: neck and classifier of the frames.
        losses: by name.
        pixel_mean, pixel_std: three numbers each, for pixels of 0 to 255.
        corrector: changes the frame features before they are pooled; None: they stay.
        skeleton_dropout: share of training clips that lose their skeletons.
        spatial_p: exponent of the spatial pooling, see :meth:`pool_frames`.
        unit, join: what the network sees, and how the features of frames become those of a clip,
            see :mod:`fastreid_star.modeling.clips`.
        augmentations: of the pixels of training clips.

    Attributes:
        epoch: set by the trainer: a loss is active from its `first_epoch` on. None: all losses are
            active.
        provides: names of the outputs in training, beside those of the corrector and of the head.
        views: features of a frame, each as wide as the backbone's maps; heads see all of them.
        classified: name of the output with the frames that the frame head classifies.
        units: the values of `unit` that the method has.

    Raises:
        UserError: an argument is invalid, or a loss or the head needs an output that no part of the
            model provides.
    """

    takes_clips = True  # the trainer pairs networks and datasets by this
    views = 1
    classified = "frames"
    units: tuple[str, ...] = UNITS
    frame_modality = staticmethod(frame_modality)
    provides: tuple[str, ...] = (
        *("is_visible", "frames", "corrected", "clip", "targets", "frame_targets"),
        *CLIP_OUTPUTS,
        *FRAME_OUTPUTS,
    )

    @configurable
    def __init__(
        self,
        *,
        backbone: TwoStreamBackbone,
        heads: ClipHead,
        frame_heads: FrameHead,
        losses: Mapping[str, Loss],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        corrector: FrameCorrectorBase | None = None,
        skeleton_dropout: float = 0.0,
        spatial_p: float = 1.0,
        unit: str = "clip",
        join: str = "mean",
        augmentations: Augmentations | None = None,
    ):
        super().__init__()
        if not 0 <= skeleton_dropout <= 1:
            raise UserError(f"MODEL.SKELETON_DROPOUT is {skeleton_dropout}: give a share, 0 to 1")
        if spatial_p <= 0:
            raise UserError(f"MODEL.HEADS.SPATIAL_P is {spatial_p}: give a number above 0")
        check_unit(type(self).__name__, self.units, unit, join)
        self.spatial_p, self.skeleton_dropout = spatial_p, skeleton_dropout
        self.unit, self.join, self.augmentations = unit, join, augmentations or Augmentations()
        self.backbone, self.corrector = backbone, corrector
        self.heads, self.frame_heads = heads, frame_heads
        self.losses = nn.ModuleDict(losses)
        self.epoch: int | None = None
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        for name, numbers in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(numbers).view(-1, 1, 1), persistent=False)
        self._check_needs()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL``; the width of heads, corrector and losses follows from the backbone's."""
        head = REID_HEADS_REGISTRY.get(cfg.MODEL.HEADS.NAME)
        if not (isinstance(head, type) and issubclass(head, ClipHead)):
            raise UserError(
                f"MODEL.HEADS.NAME is {cfg.MODEL.HEADS.NAME}, which is not a head for clips: "
                f"{cls.__name__} needs ClipHead or a subclass of it"
            )
        backbone = build_two_stream(cfg)
        width = backbone.feature_width
        return {
            "backbone": backbone,
            "heads": head(cfg, feat_dim=cls.views * width),
            "frame_heads": FrameHead(cfg, feat_dim=cls.views * width),
            "corrector": build_frame_corrector(cfg, feat_dim=width),
            "losses": build_losses(cfg, feat_dim=width),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "skeleton_dropout": cfg.MODEL.SKELETON_DROPOUT,
            "spatial_p": cfg.MODEL.HEADS.SPATIAL_P,
            "unit": cfg.MODEL.UNIT,
            "join": cfg.MODEL.HEADS.JOIN,
            "augmentations": Augmentations(cfg.INPUT.AUGMENTATIONS),
        }

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.pixel_mean.device

    @property
    def clip_head(self) -> ClipHead:
        """The head that pools the frames of a clip."""
        return self.heads

    @property
    def reads_skeletons(self) -> bool:
        """Whether the corrector or the head needs skeletons."""
        corrects = self.corrector is not None and self.corrector.reads_skeletons
        return self.clip_head.reads_skeletons or corrects

    @property
    def active_losses(self) -> dict[str, Loss]:
        """The losses that train in the current epoch, by name."""
        losses: dict[str, Any] = dict(self.losses.items())
        if self.epoch is None:
            return losses
        return {name: loss for name, loss in losses.items() if loss.first_epoch <= self.epoch}

    @functools.cached_property
    def own_optimizer(self) -> torch.optim.Optimizer | None:
        """Of a part that the model trains itself, see :mod:`fastreid_star.modeling.own_optimizer`;
        None: there is none. It is built when the model is on its device."""
        return None

    @property
    def needed(self) -> set[str]:
        """The names of the outputs that the losses of the current epoch need."""
        return outputs_needed(self.active_losses)

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        losses: dict[str, Any] = dict(self.losses.items())
        needs = outputs_needed(losses)
        has_frame_head = isinstance(self.frame_heads, FrameHead)
        idle = "clip_logits" not in needs or (has_frame_head and not needs & set(FRAME_OUTPUTS))
        if self.corrector is not None and not self.corrector.corrects:
            trains = {*self.corrector.provides} - {*self.corrector.without_gradient}
            idle = idle or not trains & {*needs, *self.heads.needs}
        return idle or any(loss.first_epoch > (self.epoch or 0) for loss in losses.values())

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor] | torch.Tensor:
        """One training or evaluation step; see :meth:`encode` for the batch.

        Returns:
            in training the weighted losses by the name of the log; in evaluation the features of
            the clips, of unit length, ``[B, D]`` or ``[B, P, D]``.
        """
        outputs = self.encode(batch)
        if not self.training:
            return outputs["features"]
        return {loss.log_name: loss.of(outputs) for loss in self.active_losses.values()}

    def encode(self, batch: dict[str, Any], explain: bool = False) -> dict[str, Any]:
        """Compute the named outputs of a batch of clips.

        Args:
            batch: `images` ``[B, T, 3, H, W]``, uint8 or float, 0 to 255; `modality` ``[B]`` on the
                host, 1 infrared or 2 visible, in any order; `skeletons` ``[B, T, V, 3]`` and
                `has_skeleton`, bool ``[B, T]``, where a part reads them, and `crop_sizes` ``[B, T,
                2]``, height and width of the crops that were resized to the images (without it, the
                images are the crops); in training `targets` ``[B]``, class indices. In place of
                `modality`, `is_visible`: a float tensor ``[B]`` on the device, 0 or 1, computes
                both stems without a branch on data (for export).
            explain: add `attention`, a dict of what the parts attended to.

        Returns:
            `is_visible` ``[N]``, `frames` X ``[B, T, D]``, `corrected` Y ``[B, T, D]``, `clip`
            ``[B, D]`` before the neck. In evaluation `features`, after the neck, of unit length.
            In training `targets` ``[B]``, `frame_targets` ``[N]`` and, as far as the losses need
            them, `clip_logits` ``[B, C]``, `clip_features` and, after the neck, `clip_embeddings`
            ``[B, D]``, `frame_logits` ``[N, C]``. The corrector, the head and subclasses add their
            own. With `unit` frame, B is the number of frames and T 1 everywhere but in `features`.
        """
        length = batch["images"].shape[1]
        batch = self.move_skeletons(as_units(batch, self.unit))
        if self.training:
            batch = self.augmentations(batch, self.pixel_mean, self.pixel_std)
        outputs = self.encode_frames(batch)
        self.encode_clip(outputs, batch, explain)
        if not self.training:
            outputs["length"] = length if self.unit == "frame" else 1  # rows of a feature
            outputs["features"] = self.retrieval_features(outputs)
            return outputs
        targets = batch["targets"].to(self.device, non_blocking=True)
        outputs["targets"] = targets
        outputs["frame_targets"] = targets.repeat_interleave(batch["images"].shape[1])
        self.training_outputs(outputs)
        return outputs

    def move_skeletons(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its skeletons on the device, some of them dropped in training."""
        if not self.reads_skeletons:
            return batch
        moved: dict[str, Any] = {
            key: batch[key].to(self.device, non_blocking=True)
            for key in ("skeletons", "has_skeleton", "crop_sizes")
            if key in batch
        }
        if self.training and self.skeleton_dropout:
            moved["has_skeleton"] = drop_skeletons(moved["has_skeleton"], self.skeleton_dropout)
        return {**batch, **moved}

    def encode_frames(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images to `is_visible`, `frames` X ``[B, T, D]``, and the maps after stages 2, 3 and 4:
        `low`, `middle` and `maps`."""
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch, length)
        images = self.preprocess(batch["images"], is_visible)
        low = self.backbone.low(self.backbone.stem(images, is_visible), length)
        middle = self.backbone.stage3(low, length)
        maps = self.backbone.stage4(middle, length)
        frames = self.pool_frames(maps).unflatten(0, (clips, length))
        found = {"low": low, "middle": middle, "maps": maps, "frames": frames}
        return found | {"is_visible": is_visible}

    def encode_clip(self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool) -> None:
        """Add `corrected`, `clip` and what else the corrector and the head provide."""
        attention = self.correct_frames(outputs, batch, explain)
        found = self.clip_head.aggregate(outputs, batch, explain)
        attention.update(found.pop("attention", {}))
        outputs.update(found)
        if explain:
            outputs["attention"] = attention

    def correct_frames(
        self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool
    ) -> dict[str, torch.Tensor]:
        """Add `corrected` and what else the corrector provides; return its attention."""
        outputs["corrected"] = outputs["frames"]
        if self.corrector is None:
            return {}
        found = self.corrector(outputs["frames"], batch, explain)
        attention = found.pop("attention", {})
        outputs.update(found)
        return attention

    def retrieval_features(self, outputs: dict[str, Any]) -> torch.Tensor:
        """The features that are compared: :meth:`embed`, joined over a clip, of unit length."""
        features = at_least_float32(self.embed(outputs))
        joined = join_frames(features, outputs["length"], self.join)
        return F.normalize(joined, dim=-1)

    def embed(self, outputs: dict[str, Any]) -> torch.Tensor:
        """The feature of each row for retrieval ``[B, D]``: the `clip` outputs after the neck."""
        return self.heads(outputs["clip"])

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """Add the logits and features that the losses of the current epoch need."""
        needed = self.needed
        if needed & set(CLIP_OUTPUTS):
            found = self.heads(outputs["clip"], outputs["targets"])
            outputs["clip_logits"] = found["cls_outputs"]
            outputs["clip_features"] = found["features"]
            outputs["clip_embeddings"] = found.get("embeddings", found["features"])
            log_accuracy(found["pred_class_logits"], outputs["targets"])
        if "frame_logits" in needed:
            frames = outputs[self.classified]
            outputs["frame_logits"] = self.frame_logits(frames, outputs["frame_targets"])

    def frame_logits(self, frames: torch.Tensor, frame_targets: torch.Tensor) -> torch.Tensor:
        """Frame features ``[B, T, D]`` to logits ``[N, C]``."""
        return self.frame_heads(frames.flatten(0, 1), frame_targets)["cls_outputs"]

    def preprocess(self, images: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """Clips ``[B, T, 3, H, W]`` to normalized frames ``[N, 3, H, W]``, in a new tensor."""
        images = images.to(self.device, non_blocking=True).flatten(0, 1)
        return (images - self.pixel_mean) / self.pixel_std

    def pool_frames(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, D, h, w]`` to features ``[N, D]``; a method with signed ones overrides it."""
        return pool_maps(maps, self.spatial_p)

    @torch.no_grad()
    def explain(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the parts of the model attended to in these clips, in evaluation mode.

        Returns:
            the `attention` of the corrector and of the head, by name; see there.

        Raises:
            UserError: no part of the model attends to skeletons.
        """
        if not self.reads_skeletons:
            raise UserError("this model reads no skeletons, so it has no attention to show")
        modes = {module: module.training for module in self.modules()}
        attention = self.eval().encode(batch, explain=True)["attention"]
        for module, training in modes.items():
            module.training = training
        return attention

    def _check_needs(self) -> None:
        """Raise a UserError where a loss or the head needs an output that nothing provides."""
        parts: dict[str, Any] = {**self.losses, type(self.clip_head).__name__: self.clip_head}
        corrector = getattr(self.corrector, "provides", ())
        check_needs(parts, {*self.provides, *corrector, *self.clip_head.provides})
