"""The datasets of video tracklets; importing this package registers them in fast-reid's DATASET_REGISTRY."""

from fastreid_star.data.datasets.base import VideoDataset
from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM
from fastreid_star.data.datasets.synthetic import SyntheticVCM

__all__ = ["HITSZVCM", "SyntheticVCM", "VideoDataset"]
