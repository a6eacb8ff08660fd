"""SYSU-MM01: folders of cameras and identities, and lists of the identities of each split."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from scipy.io import loadmat  # type: ignore[import-untyped]

from fastreid_star.data.datasets.base import VideoDataset, find_folder, published_counts
from fastreid_star.data.datasets.images import (
    TRIALS,
    draw,
    list_images,
    of_one_camera,
    read_ids,
    require_choice,
    require_images,
)
from fastreid_star.data.io import reason
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Trials

VISIBLE = (1, 2, 4, 5)
INFRARED = (3, 6)
GALLERY = {"all": VISIBLE, "indoor": (1, 2)}
SAME_PLACE = (3, 2)  # camera of the query, camera of the gallery entry
DRAWS = ("seeded", "official")
PERMUTATION = "exp/rand_perm_cam.mat"


@DATASET_REGISTRY.register()
class SYSUMM01(VideoDataset):
    """SYSU-MM01, visible-infrared person re-identification of single images.

    Reference:
        Wu et al. RGB-Infrared Cross-Modality Person Re-Identification. ICCV 2017.

    URL: `<https://github.com/wuancong/SYSU-MM01>`_

    License:
        Given by its authors on request, for research.

    Dataset statistics: see `published`. Cameras 1, 2, 4 and 5 are visible, 3 and 6 infrared.

    Protocol: the identities of ``train_id`` and ``val_id`` are for training. All infrared test
    images are queries. The gallery has `shots` images of each identity and visible camera, drawn in
    ten trials; results are means over them. Cameras 2 and 3 are in one room: queries of camera 3
    skip camera 2. In the CMC an identity counts once. There is no V2I.

    Layout::

        exp/train_id.txt, val_id.txt, test_id.txt   or .mat: identities with commas between them
        exp/rand_perm_cam.mat                       for the official draw only
        cam1/0001/0001.jpg

    Args:
        root: the folder that holds ``SYSU-MM01``, or that folder itself.
        min_frames: must be 1.
        check_frames: is ignored, the images are found in their folders.
        search: DATASETS.IMAGE_PROTOCOL.SEARCH, ``all`` visible cameras, or ``indoor``: 1 and 2.
        shots: DATASETS.IMAGE_PROTOCOL.SHOTS, 1 or 10.
        drawn: DATASETS.IMAGE_PROTOCOL.GALLERY, ``seeded`` or ``official``.

    Raises:
        UserError: something is missing or malformed.
    """

    dataset_dir = "SYSU-MM01"
    dataset_name = "sysu_mm01"
    published: ClassVar = {
        "train infrared": published_counts(11909, 11909, 395, cameras=2),
        "train visible": published_counts(22258, 22258, 395, cameras=4),
        "test infrared": published_counts(3803, 3803, 96, cameras=2),
    }

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 1,
        check_frames: bool = True,
        search: str = "all",
        shots: int = 1,
        drawn: str = "seeded",
        **kwargs,
    ):
        require_choice("SEARCH", search, tuple(GALLERY))
        require_choice("SHOTS", shots, (1, 10))
        require_choice("GALLERY", drawn, DRAWS)
        folder = find_folder(root, self.dataset_dir, ("exp", "cam1"))
        self.shots, self.drawn = shots, drawn
        ids = {name: _identities(folder, f"{name}_id") for name in ("train", "val", "test")}
        infrared, visible = (
            [(f"cam{number}", number) for number in cameras]
            for cameras in (INFRARED, GALLERY[search])
        )
        everywhere = [(f"cam{number}", number) for number in VISIBLE]
        trained = [*ids["train"], *ids["val"]]
        train = list_images(folder, everywhere, trained, Modality.VISIBLE)
        train += list_images(folder, infrared, trained, Modality.INFRARED)
        query = list_images(folder, infrared, ids["test"], Modality.INFRARED)
        gallery = list_images(folder, visible, ids["test"], Modality.VISIBLE)
        require_images(
            folder,
            {
                "training image in cam1/ to cam6/": train,
                "infrared test image in cam3/ and cam6/": query,
                f"visible test image of the {search} search": gallery,
            },
        )
        self.compare_with_published({"train": train, "test": [*query, *gallery]})
        super().__init__(train, query, gallery, folder=folder, min_frames=min_frames, **kwargs)

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        protocol = cfg.DATASETS.IMAGE_PROTOCOL
        return {"search": protocol.SEARCH, "shots": protocol.SHOTS, "drawn": protocol.GALLERY}

    @staticmethod
    def protocol_name(cfg: CfgNode) -> str:
        protocol = cfg.DATASETS.IMAGE_PROTOCOL
        shots = "single" if protocol.SHOTS == 1 else "multi"
        return f"{protocol.SEARCH} search, {shots}-shot, {protocol.GALLERY} gallery"

    def trials(self) -> Trials:
        queries = np.arange(len(self.query))
        groups = of_one_camera(self.gallery, len(queries))
        if self.drawn == "seeded":
            galleries = draw(groups.values(), self.shots)
        else:
            galleries = _official(self.path(PERMUTATION), groups, self.shots)
        pairs = [(queries, gallery) for gallery in galleries]
        return Trials({"I2V": pairs}, skipped=frozenset({SAME_PLACE}), by_identity=True)


def _identities(folder: str, name: str) -> list[int]:
    """The identities of a list in ``exp/``, a text file or a MATLAB file."""
    path = os.path.join(folder, "exp", name)
    if os.path.isfile(f"{path}.txt"):
        return read_ids(f"{path}.txt")
    if os.path.isfile(f"{path}.mat"):
        return _read_mat(f"{path}.mat", "id").ravel().astype(int).tolist()
    raise UserError(f"{path}.txt and {name}.mat do not exist: copy the dataset's folder exp/")


def _read_mat(path: str, variable: str) -> np.ndarray:
    try:
        found = loadmat(path)
    except Exception as error:  # SciPy raises many types on a damaged file
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if variable not in found:
        raise UserError(f"{path} has no variable {variable!r}: copy the dataset's own file")
    return found[variable]


def _official(path: str, groups: dict[tuple[int, int], list[int]], shots: int) -> list[np.ndarray]:
    """The galleries of the dataset's own evaluation, which has fixed permutations.

    Args:
        path: a MATLAB file. For each camera and identity it has a matrix with a row for each trial,
            a permutation of the numbers of the images, counted from 1. A trial takes the first
            ones.
        groups: see :func:`~.images.of_one_camera`.
        shots: how many; of fewer images all.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"{path} does not exist: copy rand_perm_cam.mat from evaluation/data_split of "
            "github.com/wuancong/SYSU-MM01, or set DATASETS.IMAGE_PROTOCOL.GALLERY seeded"
        )
    cameras = [np.ravel(cells) for cells in _read_mat(path, "rand_perm_cam").ravel()]
    trials: list[list[int]] = [[] for _ in range(TRIALS)]
    for (pid, camid), positions in groups.items():
        known = camid <= len(cameras) and pid <= len(cameras[camid - 1])
        order = np.atleast_2d(cameras[camid - 1][pid - 1]) if known else np.empty((0, 0))
        if len(order) < TRIALS or not order.size or order.max() > len(positions):
            raise UserError(
                f"{path} has no permutations of the {len(positions)} images of cam{camid}/"
                f"{pid:04d}: both must be from the same copy of the dataset, with all images"
            )
        for trial, row in zip(trials, order, strict=False):
            trial += [positions[int(number) - 1] for number in row[:shots]]
    return [np.array(trial, dtype=np.int64) for trial in trials]
