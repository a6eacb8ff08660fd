"""The datasets of video tracklets; importing this package registers them in fast-reid's DATASET_REGISTRY."""

from fastreid_star.data.datasets.base import ListedTracklet, VideoDataset
from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM

# Messages name the datasets in the order of their registration: the main one first.
# isort: split
from fastreid_star.data.datasets.bupt_campus import BUPTCampus
from fastreid_star.data.datasets.synthetic import SyntheticVCM

__all__ = ["HITSZVCM", "BUPTCampus", "ListedTracklet", "SyntheticVCM", "VideoDataset"]
