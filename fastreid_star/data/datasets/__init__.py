"""The datasets of video tracklets; importing this package registers them with fast-reid."""

from fastreid_star.data.datasets.base import ListedTracklet, VideoDataset
from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM

# Error messages name the datasets in the order of registration: the main one first.
# isort: split
from fastreid_star.data.datasets.bupt_campus import BUPTCampus, BUPTCampusAuxiliary
from fastreid_star.data.datasets.own import Folders
from fastreid_star.data.datasets.synthetic import SyntheticVCM

__all__ = [
    "HITSZVCM",
    "BUPTCampus",
    "BUPTCampusAuxiliary",
    "Folders",
    "ListedTracklet",
    "SyntheticVCM",
    "VideoDataset",
]
