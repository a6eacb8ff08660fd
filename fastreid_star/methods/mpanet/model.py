"""MPANet: one network for both modalities, parts under six masks, classifiers of the modalities.

::

    images -> one stem -> stages 1-3 -> alleviation -> stage 4 -> alleviation -> maps
    maps   -> masks [N, K, h, w] -> mean under each mask; mean over h, w -> clip, (K + 1) D wide
    clip   -> center cluster loss; clip -> neck -> classifier -> CE; retrieval
    neck   -> classifier of the row's modality -> CE;  KL to the slow copy of the other one
    masks  -> separation

    Q. Wu et al. "Discover cross-modality nuances for visible-infrared person re-identification".
    CVPR 2021.

Shapes: N = B T frames, R rows (frames or clips), D feature width of the backbone, K masks.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.mpanet.layers import ModalityAlleviation, ModalityClassifiers
from fastreid_star.methods.sad.model import SAD
from fastreid_star.modeling.backbones.two_stream import check_maps, probe
from fastreid_star.modeling.layers.parts import PartMasks, masked_gem
from fastreid_star.modeling.losses.loss import outputs_needed
from fastreid_star.modeling.losses.pairing import rows_are_visible

PARTS = 6
MODALITY_OUTPUTS = ("modality_logits", "crossed_logits")


@META_ARCH_REGISTRY.register()
class MPANet(SAD):
    """:class:`SAD` with alleviated maps and parts; see the module.

    Args:
        alleviations: after stage 3 and after stage 4.
        masks: of the maps.
        classifiers: of the modalities; None: no loss needs them.
        kwargs: see :class:`SAD`.

    Raises:
        UserError: the frames are pooled by another power than 1: they have both signs.
    """

    provides = (*SAD.provides, "masks", *MODALITY_OUTPUTS)
    views = PARTS + 1

    @configurable
    def __init__(
        self,
        *,
        alleviations: tuple[ModalityAlleviation, ModalityAlleviation],
        masks: PartMasks,
        classifiers: ModalityClassifiers | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if getattr(self.heads, "gem_p", 1) != 1 or self.spatial_p != 1:
            raise UserError(
                "MPANet's features have both signs, so only their mean can be taken: set "
                "MODEL.HEADS.GEM_P and MODEL.HEADS.SPATIAL_P to 1"
            )
        self.backbone.after["3"], self.backbone.after["4"] = alleviations
        self.masks, self.classifiers = masks, classifiers

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`SAD`; a loss decides whether there are classifiers of the modalities."""
        if cfg.MODEL.FRAME_CORRECTOR.NAME:
            raise UserError("MPANet has no frame corrector: set MODEL.FRAME_CORRECTOR.NAME ''")
        options = super().from_config(cfg)
        backbone, width = options["backbone"], options["backbone"].feature_width
        check_maps(cfg, backbone, cls.__name__)
        middle = nn.Sequential(backbone.visible_stem, *backbone.stages[:3])
        widths = probe(middle, cfg.INPUT.SIZE_TRAIN).shape[1], width
        classifiers = None
        if outputs_needed(options["losses"]) & set(MODALITY_OUTPUTS):
            embedded = cfg.MODEL.HEADS.EMBEDDING_DIM or cls.views * width
            classifiers = ModalityClassifiers(embedded, cfg.MODEL.HEADS.NUM_CLASSES)
        return {
            **options,
            "alleviations": tuple(ModalityAlleviation(each) for each in widths),
            "masks": PartMasks(width, PARTS),
            "classifiers": classifiers,
        }

    @property
    def needed(self) -> set[str]:
        """As :class:`SAD`; the classifiers of the modalities see the clips after the neck."""
        found = super().needed
        return found | {"clip_embeddings"} if found & set(MODALITY_OUTPUTS) else found

    def pool_frames(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, D, h, w]`` to the means under each mask and the mean ``[N, (K + 1) D]``."""
        masks = self.masks(maps)
        return masked_gem(maps, torch.cat([masks, torch.ones_like(masks[:, :1])], 1), 1).flatten(1)

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`SAD`, with the masks and the logits by modality where a loss needs them."""
        super().training_outputs(outputs)
        needed = self.needed
        if "masks" in needed:
            outputs["masks"] = self.masks(outputs["maps"])
        if self.classifiers is None or not needed & set(MODALITY_OUTPUTS):
            return
        rows = outputs["clip_embeddings"]
        is_visible = rows_are_visible(outputs["is_visible"], rows)
        outputs["modality_logits"] = self.classifiers(rows, is_visible)
        if "crossed_logits" in needed:
            self.classifiers.follow(self.epoch or 0)
            outputs["crossed_logits"] = self.classifiers.crossed(rows, is_visible)
