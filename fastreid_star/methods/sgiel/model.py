"""SGIEL: a second pass of body shapes, and features without the shape's directions.

::

    images -> stem per modality -+-> stages 1-4 -> GeM over h, w -> x -> neck per modality -> f
    shapes -> the same stems ----+-> (three BatchNorms each)  -> x_s -> neck of the shapes -> f_s
    f -> W -> CE, distillation;   x -> triplet;   f_s P_s = z_s -> W_s -> CE
    P^T f -> z_s of the averaged network (E);   f - Q Q^T f -> W -> CE, two distillations
    the average of all weights over the steps -> the feature for retrieval, f

Shapes: B clips, T frames, N = B T frames, D feature width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import comm
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.sad.model import SAD
from fastreid_star.methods.sgiel.layers import ShapeHead, cutmix_donors, erase_shape, paste
from fastreid_star.methods.sgiel.losses import MIXED_LOSSES
from fastreid_star.modeling.average import averaged, follow
from fastreid_star.modeling.backbones.two_stream import TwoStreamBackbone
from fastreid_star.modeling.heads.clip_head import ClipHead, FrameHead
from fastreid_star.modeling.layers.colors import cutmix_box
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.layers.split_norm import RowSets, rows_of, split_norms
from fastreid_star.modeling.losses.loss import Loss, outputs_needed
from fastreid_star.weights import fill_copy

SHAPE_OUTPUTS = (
    *("second_targets", "first_share", "projection", "shape_features", "shape_logits"),
    *("erased_logits", "shape_estimates", "estimate_logits", "average_shapes", "average_logits"),
)
SHAPE = 2  # the set of BatchNorm of the shapes; 0 is that of visible, 1 of infrared images
ERASURES = ("orthogonal", "columns")


class Network(NamedTuple):
    """The parts of which there is an average: the trained ones, or the averaged ones."""

    backbone: TwoStreamBackbone
    heads: ClipHead
    shape_head: ShapeHead


@META_ARCH_REGISTRY.register()
class SGIEL(SAD):
    """Feng et al., "Shape-erased feature learning for visible-infrared person re-identification",
    CVPR 2023.

    Training needs `shapes` in the batch, ``[B, T, H, W]``, 0 to 255. Retrieval uses the averaged
    network, and no shapes.

    Args:
        shape_head: projections, and the classifier of shapes.
        erasure: see :func:`erase_shape`, `orthogonal` or `columns`.
        cutmix: share of the steps with CutMix.
        ema: (first epoch, rate) pairs of the averaged network.
        kwargs: see :class:`SAD`.

    Raises:
        UserError: an argument is invalid, or a norm of the backbone is no BatchNorm.
    """

    provides = (*SAD.provides, *SHAPE_OUTPUTS)

    @configurable
    def __init__(
        self,
        *,
        shape_head: ShapeHead,
        erasure: str = "orthogonal",
        cutmix: float = 0.2,
        ema: list[list[float]],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if erasure not in ERASURES:
            raise UserError(
                f"MODEL.SGIEL.ERASURE is {erasure!r}: choose one of {', '.join(ERASURES)}"
            )
        if not 0 <= cutmix <= 1:
            raise UserError(f"MODEL.SGIEL.CUTMIX is {cutmix}: give a share from 0 to 1")
        _check_rates(ema)
        self.shape_head, self.erasure = shape_head, erasure
        self.cutmix, self.ema = cutmix, ema
        self.mixed = False  # whether CutMix has mixed this step's clips
        stems = (self.backbone.visible_stem, self.backbone.infrared_stem)
        for stem in filter(None, stems):
            split_norms(stem, 2)  # its images, and their shapes
        parts = (self.backbone.stages, self.backbone.non_local, self.backbone.after)
        split_norms(nn.ModuleList(parts), 3)
        split_norms(self.heads.bottleneck, 3)
        self.average = averaged(nn.ModuleDict(self.trained._asdict()))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`SAD`, with ``MODEL.SGIEL``."""
        options, own = super().from_config(cfg), cfg.MODEL.SGIEL
        classes, width = options["heads"].weight.shape
        return {
            **options,
            "shape_head": ShapeHead(width, classes),
            "erasure": own.ERASURE,
            "cutmix": own.CUTMIX,
            "ema": own.EMA,
        }

    @property
    def trained(self) -> Network:
        """The parts that learn by gradients."""
        return Network(self.backbone, self.heads, self.shape_head)

    @property
    def evaluated(self) -> Network:
        """The averaged parts, which retrieval uses."""
        return Network(*(self.average[name] for name in Network._fields))  # type: ignore[index]

    @property
    def active_losses(self) -> dict[str, Loss]:
        """As :class:`VideoReID`; in a step with CutMix those of mixed labels."""
        found = super().active_losses
        if not self.mixed:
            return found
        return {name: loss for name, loss in found.items() if isinstance(loss, MIXED_LOSSES)}

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        losses: dict[str, Any] = dict(self.losses.items())
        late = any(loss.first_epoch > (self.epoch or 0) for loss in losses.values())
        needs = outputs_needed(losses)
        used = {"clip_logits", "shape_logits", "projection"} <= needs
        return late or not used or isinstance(self.frame_heads, FrameHead)

    def fill_state(self, state: dict[str, Any], prefix: str) -> None:
        """Let the averaged network start from the trained one, where a state has no other."""
        for name in Network._fields:
            fill_copy(state, f"{prefix}{name}.", f"{prefix}average.{name}.")

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; those of another method have no average."""
        self.fill_state(state, prefix)
        super()._load_from_state_dict(state, prefix, *args)

    def shape_images(self, batch: dict[str, Any]) -> torch.Tensor:
        """The shapes as normalized images ``[N, 3, H, W]``.

        Raises:
            UserError: the batch has none.
        """
        if "shapes" not in batch:
            raise UserError(
                "SGIEL needs a body shape of each training frame: set DATASETS.SHAPES, see "
                "docs/sgiel.md"
            )
        shapes = batch["shapes"].to(self.device, non_blocking=True).flatten(0, 1)
        return (shapes[:, None] - self.pixel_mean) / self.pixel_std

    def encode_frames(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images to `is_visible`, `low` and `frames`; in training also what the shapes give."""
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch, length)
        images = self.preprocess(batch["images"], is_visible)
        if not self.training:
            low, maps = encode_maps(self.evaluated.backbone, images, is_visible, length)
            frames = self.pool_frames(maps).unflatten(0, (clips, length))
            return {"is_visible": is_visible, "low": low, "frames": frames}
        follow(self.average, nn.ModuleDict(self.trained._asdict()), self.rate)
        shapes = self.shape_images(batch)
        outputs: dict[str, Any] = {"is_visible": is_visible, "first_share": 1.0}
        targets = batch["targets"].to(self.device, non_blocking=True)
        # the main process decides for all: a step with CutMix has other losses
        self.mixed = comm.all_gather(bool(torch.rand(()) < self.cutmix))[0]
        if self.mixed:
            donors = cutmix_donors(targets, is_visible[::length])
            height, width = images.shape[2:]
            top, bottom, left, right = box = cutmix_box(height, width)
            outputs["first_share"] = 1 - (bottom - top) * (right - left) / (height * width)
            images, shapes = (
                paste(part.unflatten(0, (clips, length)), donors, box).flatten(0, 1)
                for part in (images, shapes)
            )
            targets = targets[donors]
        outputs["second_targets"] = targets
        low, maps = encode_maps(self.backbone, images, is_visible, length, shapes)
        both = self.pool_frames(maps).unflatten(0, (2, clips, length))
        outputs |= {"low": low[: clips * length], "frames": both[0], "shape_frames": both[1]}
        if not self.mixed:
            with torch.no_grad():
                maps = encode_maps(self.evaluated.backbone, images, is_visible, length, shapes)[1]
                outputs["average_frames"] = self.pool_frames(maps).unflatten(0, (2, clips, length))
        return outputs

    def rate(self, name: str) -> float:
        """How fast a weight of the averaged network follows in this epoch."""
        rate = [rate for first, rate in self.ema if first <= (self.epoch or 0)][-1]
        return rate if name.startswith("backbone.") else min(1.0, 2 * rate)

    def embed(self, outputs: dict[str, Any]) -> torch.Tensor:
        """The feature f of each clip ``[B, D]``, from the averaged network."""
        clip, is_visible = outputs["clip"], outputs["is_visible"]
        of_clips = is_visible[:: outputs["frames"].shape[1]]
        take_modality(rows_of(self.evaluated.heads), of_clips, clip.device)
        return self.evaluated.heads(clip)

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`SAD`, with the outputs of the shapes and of the erased features."""
        clip, targets, head = outputs["clip"], outputs["targets"], self.shape_head
        sets = modality_sets(outputs["is_visible"][:: outputs["frames"].shape[1]])
        rows_of(self.heads).take(sets, self.device)
        super().training_outputs(outputs)
        features = at_least_float32(outputs["clip_embeddings"])
        with torch.autocast(clip.device.type, enabled=False):
            shapes = self.project(self.trained, outputs["shape_frames"])
            outputs["projection"] = head.image
            outputs["shape_features"], outputs["shape_logits"] = shapes, head.classify(shapes)
            if self.mixed:
                return
            erased = erase_shape(features, head.image, orthogonal=self.erasure == "orthogonal")
            outputs["erased_logits"] = self.heads.classify(erased, targets)
            outputs["shape_estimates"] = features @ head.image
            outputs["estimate_logits"] = head.classify(outputs["shape_estimates"], learn=False)
            with torch.no_grad():
                images, shapes = outputs["average_frames"]
                rows_of(self.evaluated.heads).take(sets, self.device)
                neck(self.evaluated.heads, self.clip_head.pool(images))  # for its statistics
                outputs["average_shapes"] = self.project(self.evaluated, shapes)
                logits = self.evaluated.shape_head.classify(outputs["average_shapes"])
                outputs["average_logits"] = logits

    def project(self, network: Network, frames: torch.Tensor) -> torch.Tensor:
        """The frames of shapes ``[B, T, D]`` to z_s ``[B, d]``."""
        rows_of(network.heads).all_take(SHAPE)
        return neck(network.heads, self.clip_head.pool(frames)) @ network.shape_head.shape

    def attack(self, low: torch.Tensor, is_visible: torch.Tensor, length: int = 1) -> torch.Tensor:
        """As :class:`SAD`, with the norms of the images."""
        take_modality(rows_of(self.backbone.stages), is_visible, low.device)
        return super().attack(low, is_visible, length)


def encode_maps(
    backbone: TwoStreamBackbone,
    images: torch.Tensor,
    is_visible: torch.Tensor,
    length: int,
    shapes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and after them their shapes, to the maps after stage 2 and after stage 4.

    Args:
        backbone: with split norms.
        images, shapes: ``[N, 3, H, W]``, normalized. The shapes pass the stem of their images.
        is_visible: ``[N]``, see :meth:`TwoStreamBackbone.stem`.
        length: T.
    """
    stems = [stem for stem in (backbone.visible_stem, backbone.infrared_stem) if stem is not None]
    x = []
    for number, part in enumerate(part for part in (images, shapes) if part is not None):
        for stem in stems:
            rows_of(stem).all_take(number)
        x.append(backbone.stem(part, is_visible))
    rows = rows_of(backbone.stages)
    if shapes is None:
        take_modality(rows, is_visible, images.device)
    else:
        sets = modality_sets(is_visible)
        rows.take(torch.cat([sets, torch.full_like(sets, SHAPE)]), images.device)
    low = backbone.low(torch.cat(x), length)
    return low, backbone.stage4(backbone.stage3(low, length), length)


def modality_sets(is_visible: torch.Tensor) -> torch.Tensor:
    """Bool ``[N]`` on the host to the sets of images: 0 visible, 1 infrared."""
    return (~is_visible).long()


def take_modality(rows: RowSets, is_visible: torch.Tensor, device: torch.device) -> None:
    """Let images take the set of their modality; flags may be floats, for export."""
    if is_visible.is_floating_point():
        rows.choose(is_visible)
    else:
        rows.take(modality_sets(is_visible), device)


def neck(head: ClipHead, features: torch.Tensor) -> torch.Tensor:
    """Features ``[B, D]`` through the neck of a head."""
    return head.bottleneck(features[..., None, None])[..., 0, 0]


def _check_rates(pairs: list[list[float]]) -> None:
    """Raise a UserError unless the rates begin with epoch 0, in rising order."""
    firsts = [pair[0] for pair in pairs if len(pair) == 2]
    rates = [pair[-1] for pair in pairs]
    rising = len(firsts) == len(pairs) and firsts == sorted(set(firsts)) and firsts[:1] == [0]
    if not (rising and all(0 <= rate <= 1 for rate in rates)):
        raise UserError(
            f"MODEL.SGIEL.EMA is {pairs}: give [first epoch, rate] pairs, the first of epoch 0, "
            "with rates from 0 to 1"
        )
