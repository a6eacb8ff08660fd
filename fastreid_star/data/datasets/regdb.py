"""RegDB: ten random splits into training and test identities, as text files."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.datasets.base import (
    VideoDataset,
    check_images,
    find_folder,
    published_counts,
    require_files,
)
from fastreid_star.data.datasets.images import read_labels, require_choice
from fastreid_star.structures import Modality, Tracklet

SPLITS = 10
_FILES = {Modality.VISIBLE: "visible", Modality.INFRARED: "thermal"}


@DATASET_REGISTRY.register()
class RegDB(VideoDataset):
    """RegDB, visible-thermal person re-identification of single images.

    Reference:
        Nguyen et al. Person Recognition System Based on a Combination of Body Images from Visible
        Light and Thermal Cameras. Sensors 17(3), 2017. The splits are those of Ye et al.,
        Hierarchical Discriminative Learning for Visible Thermal Person Re-Identification, AAAI
        2018.

    License:
        Given by its authors on request, for research.

    Dataset statistics: 412 identities with 10 visible and 10 thermal images each.

    Protocol: ten splits into 206 identities for training and 206 for testing. All test images of
    one modality are queries, all of the other are the gallery, in both directions. Published
    results are means over the ten splits, each with a network of its own. Thermal counts as
    infrared. There are two cameras, one for each modality, so the camera filter has no effect.

    Layout::

        idx/train_visible_1.txt, train_thermal_1.txt, test_visible_1.txt, test_thermal_1.txt, ...
            lines "Visible/285/male_back_v_05528_285.bmp 0": image and label, from 0 in each list
        Visible/285/male_back_v_05528_285.bmp
        Thermal/285/...

    Identities are numbered as in the lists, those of the test set after those for training.

    Args:
        root: the folder that holds ``RegDB``, or that folder itself.
        min_frames: must be 1.
        check_frames: check that some images exist.
        split: DATASETS.IMAGE_PROTOCOL.SPLIT, from 1 to 10.

    Raises:
        UserError: something is missing or malformed; the message names file and line.
    """

    dataset_dir = "RegDB"
    dataset_name = "regdb"
    published: ClassVar = {
        f"{part} {modality}": published_counts(2060, 2060, 206, cameras=1)
        for part in ("train", "test")
        for modality in ("infrared", "visible")
    }

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 1,
        check_frames: bool = True,
        split: int = 1,
        **kwargs,
    ):
        require_choice("SPLIT", split, range(1, SPLITS + 1))
        folder = find_folder(root, self.dataset_dir, ("idx", "Visible"))
        train = _read_part(folder, "train", split)
        test = _read_part(folder, "test", split, first=1 + max(image.pid for image in train))
        parts = {"train": train, "test": test}
        self.compare_with_published(parts)
        if check_frames:
            for part, images in parts.items():
                check_images(part, images)
        query, gallery = (
            [image for image in test if image.modality == modality]
            for modality in (Modality.INFRARED, Modality.VISIBLE)
        )
        super().__init__(train, query, gallery, folder=folder, min_frames=min_frames, **kwargs)

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        return {"split": _split(cfg)}

    @staticmethod
    def protocol_name(cfg: CfgNode) -> str:
        return f"split {_split(cfg)} of {SPLITS}"


def _split(cfg: CfgNode) -> int:
    """DATASETS.IMAGE_PROTOCOL.SPLIT; 0 takes split 1 for SEED 0, split 2 for SEED 1, ..."""
    return cfg.DATASETS.IMAGE_PROTOCOL.SPLIT or 1 + cfg.SEED % SPLITS


def _read_part(folder: str, part: str, split: int, first: int = 0) -> list[Tracklet]:
    """The images of a part of a split, visible ones first.

    Args:
        part: ``train`` or ``test``.
        first: the number of the identity with label 0.
    """
    names = {m: f"idx/{part}_{name}_{split}.txt" for m, name in _FILES.items()}
    require_files(folder, list(names.values()))
    return [
        Tracklet(first + label, int(modality), modality, folder, (image,))
        for modality, name in names.items()
        for image, label in read_labels(os.path.join(folder, name))
    ]
