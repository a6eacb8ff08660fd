"""The datasets of video tracklets, and of images, which are tracklets of one frame.

Importing this package registers them with fast-reid.
"""

from fastreid_star.data.datasets.base import ListedTracklet, VideoDataset
from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM

# Error messages name the datasets in the order of registration: the main one first.
# isort: split
from fastreid_star.data.datasets.bupt_campus import BUPTCampus, BUPTCampusAuxiliary
from fastreid_star.data.datasets.llcm import LLCM
from fastreid_star.data.datasets.regdb import RegDB
from fastreid_star.data.datasets.synthetic import SyntheticVCM
from fastreid_star.data.datasets.sysu_mm01 import SYSUMM01

__all__ = [
    "HITSZVCM",
    "LLCM",
    "SYSUMM01",
    "BUPTCampus",
    "BUPTCampusAuxiliary",
    "ListedTracklet",
    "RegDB",
    "SyntheticVCM",
    "VideoDataset",
]
