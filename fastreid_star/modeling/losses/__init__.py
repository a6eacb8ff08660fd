"""The losses that methods share, one class of LOSS_REGISTRY in each file; docs/losses.md."""

from fastreid_star.modeling.losses.center_cluster import CenterClusterLoss
from fastreid_star.modeling.losses.center_pair_mining import CenterPairMiningLoss
from fastreid_star.modeling.losses.contrastive import CrossModalContrastiveLoss
from fastreid_star.modeling.losses.cross_entropy import (
    CrossEntropyLoss,
    FrameCrossEntropyLoss,
    cross_entropy_loss,
)
from fastreid_star.modeling.losses.discriminative_center import DiscriminativeCenterLoss
from fastreid_star.modeling.losses.hetero_center import HeteroCenterLoss
from fastreid_star.modeling.losses.hetero_center_triplet import HeteroCenterTripletLoss
from fastreid_star.modeling.losses.logit_distillation import LogitDistillationLoss
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss, build_losses, outputs_needed
from fastreid_star.modeling.losses.mean_discrepancy import MeanDiscrepancyLoss
from fastreid_star.modeling.losses.modality_alignment import ModalityAlignmentLoss
from fastreid_star.modeling.losses.modality_reversal import ModalityReversalLoss
from fastreid_star.modeling.losses.orthogonality import OrthogonalityLoss
from fastreid_star.modeling.losses.part_triplet import PartTripletLoss, part_triplet_loss
from fastreid_star.modeling.losses.shared_enhancement import SharedEnhancementLoss
from fastreid_star.modeling.losses.squared_difference import SquaredDifferenceLoss
from fastreid_star.modeling.losses.triplet import TripletLoss, triplet_loss
from fastreid_star.modeling.losses.weighted_triplet import WeightedTripletLoss

__all__ = [
    "LOSS_REGISTRY",
    "CenterClusterLoss",
    "CenterPairMiningLoss",
    "CrossEntropyLoss",
    "CrossModalContrastiveLoss",
    "DiscriminativeCenterLoss",
    "FrameCrossEntropyLoss",
    "HeteroCenterLoss",
    "HeteroCenterTripletLoss",
    "LogitDistillationLoss",
    "Loss",
    "MeanDiscrepancyLoss",
    "ModalityAlignmentLoss",
    "ModalityReversalLoss",
    "OrthogonalityLoss",
    "PartTripletLoss",
    "SharedEnhancementLoss",
    "SquaredDifferenceLoss",
    "TripletLoss",
    "WeightedTripletLoss",
    "build_losses",
    "cross_entropy_loss",
    "outputs_needed",
    "part_triplet_loss",
    "triplet_loss",
]
