"""LLCM: lists of the training images, folders of cameras and identities for testing."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

import numpy as np
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.datasets.base import (
    VideoDataset,
    check_images,
    find_folder,
    require_files,
)
from fastreid_star.data.datasets.images import (
    draw,
    list_images,
    of_one_camera,
    read_ids,
    read_labels,
    require_choice,
    require_images,
)
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet, Trials

LISTS = {Modality.VISIBLE: "idx/train_vis.txt", Modality.INFRARED: "idx/train_nir.txt"}
TEST_IDS = "idx/test_id.txt"
# Folders and numbers of the cameras in testing. Camera 3 has no infrared images there.
VISIBLE = [(f"test_vis/cam{number}", number) for number in range(1, 10)]
INFRARED = [(f"test_nir/cam{number}", number) for number in (1, 2, 4, 5, 6, 7, 8, 9)]
V2I = ("paper", "update")

_NAME = re.compile(r"(\d+)_c(\d+)_")  # 0003_c01_s185734_f3195_nir.jpg


@DATASET_REGISTRY.register()
class LLCM(VideoDataset):
    """LLCM, visible-infrared person re-identification of single images in low light.

    Reference:
        Zhang and Wang. Diverse Embedding Expansion Network and Low-Light Cross-Modality Benchmark
        for Visible-Infrared Person Re-identification. CVPR 2023.

    URL: `<https://github.com/ZYK100/LLCM>`_

    License:
        Given by its authors on request, for research.

    Dataset statistics: 46,767 images of 1,064 identities, 713 of them for training. A camera films
    in both modalities.

    Protocol: all test images of one modality are queries. The gallery has one image of each
    identity and camera of the other modality, drawn in ten trials; results are means over them.
    Entries with the query's identity and camera are removed (TEST.CAMERA_FILTER True). In the CMC
    an identity counts once. For V2I two protocols have published numbers:

    - ``paper``: as said above, visible queries in a drawn infrared gallery.
    - ``update``: the later program exchanges both sides after drawing. The drawn infrared images
      are the queries, and all visible images the gallery. It calls this "VIS to IR".

    Layout::

        idx/train_vis.txt, train_nir.txt   lines "vis/0001/0001_c01_s185535_f7010_vis.jpg 0"
        idx/test_id.txt                    identities with commas between them
        vis/, nir/                         the training images
        test_vis/cam1/0003/, test_nir/cam1/0003/0003_c01_s185734_f3195_nir.jpg

    Identity and camera of a training image are those of its name.

    Args:
        root: the folder that holds ``LLCM``, or that folder itself.
        min_frames: must be 1.
        check_frames: check that some training images exist.
        v2i: DATASETS.IMAGE_PROTOCOL.V2I, ``paper`` or ``update``.

    Raises:
        UserError: something is missing or malformed; the message names file and line.
    """

    dataset_dir = "LLCM"
    dataset_name = "llcm"
    published: ClassVar = {"train": {"identities": 713}, "test": {"identities": 351}}

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 1,
        check_frames: bool = True,
        v2i: str = "paper",
        **kwargs,
    ):
        require_choice("V2I", v2i, V2I)
        folder = find_folder(root, self.dataset_dir, ("idx", "test_vis"))
        require_files(folder, [*LISTS.values(), TEST_IDS])
        self.v2i = v2i
        train = [
            _training_image(folder, name, image, modality)
            for modality, name in LISTS.items()
            for image, _ in read_labels(os.path.join(folder, name))
        ]
        ids = read_ids(os.path.join(folder, TEST_IDS))
        query = list_images(folder, INFRARED, ids, Modality.INFRARED)
        gallery = list_images(folder, VISIBLE, ids, Modality.VISIBLE)
        require_images(
            folder,
            {
                "infrared test image in test_nir/": query,
                "visible test image in test_vis/": gallery,
            },
        )
        self.compare_with_published({"train": train, "test": [*query, *gallery]})
        if check_frames:
            check_images("training", train)
        super().__init__(train, query, gallery, folder=folder, min_frames=min_frames, **kwargs)

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        return {"v2i": cfg.DATASETS.IMAGE_PROTOCOL.V2I}

    @staticmethod
    def protocol_name(cfg: CfgNode) -> str:
        name = f"V2I of the {cfg.DATASETS.IMAGE_PROTOCOL.V2I}"
        return name if cfg.TEST.CAMERA_FILTER else f"{name}, without camera filter (not in use)"

    def trials(self) -> Trials:
        count = len(self.query)
        infrared, visible = np.arange(count), np.arange(count, count + len(self.gallery))
        drawn_visible = draw(of_one_camera(self.gallery, count).values())
        drawn_infrared = draw(of_one_camera(self.query, 0).values())
        v2i = [(visible, drawn) for drawn in drawn_infrared]
        if self.v2i == "update":
            v2i = [(drawn, visible) for drawn in drawn_infrared]
        i2v = [(infrared, drawn) for drawn in drawn_visible]
        return Trials({"I2V": i2v, "V2I": v2i}, by_identity=True)


def _training_image(folder: str, name: str, image: str, modality: Modality) -> Tracklet:
    found = _NAME.match(os.path.basename(image))
    if found is None:
        raise UserError(
            f"{os.path.join(folder, name)}: {image!r} is not named like "
            "0001_c01_s185535_f7010_vis.jpg, with identity and camera"
        )
    return Tracklet(int(found[1]), int(found[2]), modality, folder, (image,))
