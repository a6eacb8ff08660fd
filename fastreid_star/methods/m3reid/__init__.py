"""M3-ReID: one stream, non-local blocks over the clip, six masks, alignment of the modalities."""

from fastreid_star.methods.m3reid.config import TRAINING_KEYS, add_config
from fastreid_star.methods.m3reid.heads import MeanHead
from fastreid_star.methods.m3reid.layers import ViewCorrector
from fastreid_star.methods.m3reid.losses import (
    FrameModalityAlignmentLoss,
    FrameOrthogonalityLoss,
    MaskDiversityLoss,
    ModalityAlignmentLoss,
)
from fastreid_star.methods.m3reid.model import M3ReID

__all__ = [
    "TRAINING_KEYS",
    "FrameModalityAlignmentLoss",
    "FrameOrthogonalityLoss",
    "M3ReID",
    "MaskDiversityLoss",
    "MeanHead",
    "ModalityAlignmentLoss",
    "ViewCorrector",
    "add_config",
]
