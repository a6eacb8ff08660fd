"""Tracklets of a dataset, of folders and of videos, and the file that their features go into."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from fastreid.config import CfgNode

from fastreid_star.data.build import build_dataset, open_store
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.data.folders import tracklets_at
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.tracklets import TrackletInput, as_modality
from fastreid_star.engine.fingerprint import Fingerprint
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole
from fastreid_star.structures import Modality, Tracklet

SPLITS = ("train", "query", "gallery", "test")
PICTURE = "picture"


@dataclass(frozen=True)
class FeatureSet:
    """What features are made of, and what is known of it.

    Args:
        tracklets: N.
        metadata: N dicts, for a gallery: `picture`, an image or video whose first frame shows it; of a dataset's
            tracklets also `pid` and `camid`.
        arrays: int64 [N] each, for a file of features: of a dataset's tracklets `pids` and `camids`.
    """

    tracklets: list[TrackletInput]
    metadata: list[dict[str, Any]]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the tracklets."""
        return [tracklet.name for tracklet in self.tracklets]

    @property
    def modalities(self) -> list[Modality]:
        """Of the tracklets."""
        return [as_modality(tracklet.modality) for tracklet in self.tracklets]


def set_of_dataset(cfg: CfgNode, name: str, split: str) -> FeatureSet:
    """The tracklets of a registered dataset, with the skeletons that the evaluator would show.

    A tracklet's name is the key of its first frame, ``0001/ir/D4/1``.

    Args:
        cfg: DATASETS is read.
        name: as in DATASETS.TESTS.
        split: train, query, gallery, or test: the last two.

    Raises:
        UserError: no such split or dataset, the dataset's own complaints, or DATASETS.SKELETONS_TEST other.
    """
    if split not in SPLITS:
        raise UserError(f"{split!r} is no split: choose one of {', '.join(SPLITS)}")
    shown = cfg.DATASETS.SKELETONS_TEST
    if shown not in ("own", "none"):
        raise UserError(
            f"DATASETS.SKELETONS_TEST is {shown!r}: features are made with own skeletons, or with none"
        )
    data = build_dataset(cfg, name)
    store = open_store(cfg, data) if shown == "own" else None
    tracklets = _split(data, split)
    if not tracklets:
        raise UserError(f"the {split} split of {name} has no tracklets")
    return FeatureSet(
        tracklets=[_input(tracklet, store) for tracklet in tracklets],
        metadata=[
            {"pid": t.pid, "camid": t.camid, PICTURE: os.path.abspath(t.path(0))} for t in tracklets
        ],
        arrays={
            "pids": np.array([tracklet.pid for tracklet in tracklets], np.int64),
            "camids": np.array([tracklet.camid for tracklet in tracklets], np.int64),
        },
    )


def set_of_paths(
    paths: list[str], modality: Modality | str | None = None, skeletons: SkeletonStore | None = None
) -> FeatureSet:
    """The tracklets of folders and videos; see :func:`fastreid_star.data.folders.tracklets_at`."""
    tracklets = tracklets_at(paths, modality, skeletons=skeletons)
    return FeatureSet(tracklets, [{PICTURE: _picture(tracklet)} for tracklet in tracklets])


def names_file(path: str) -> str:
    """The file of names beside a file of features."""
    return os.path.splitext(path)[0] + ".json"


def write_features(
    path: str, features: torch.Tensor, of: FeatureSet, fingerprint: Fingerprint
) -> None:
    """Write features for other programs: an .npz that numpy reads without pickle, and a .json beside it.

    The .npz holds `features`, float32 [N, D]; `names`, text [N]; `modality`, int64 [N], 1 infrared and 2 visible; and
    of a dataset's tracklets `pids` and `camids`, int64 [N]. The .json holds `names`, `metadata` and `fingerprint`.
    Each file appears whole or not at all.

    Args:
        path: ends in .npz; what is there is replaced.
        features: [N, D].
        of: what they are features of.
        fingerprint: of the model that made them.

    Raises:
        UserError: `path` has another ending, or cannot be written.
    """
    check_features_path(path)
    arrays: dict[str, Any] = {
        "features": features.numpy(),
        "names": np.array(of.names, np.str_),
        "modality": np.array(of.modalities, np.int64),
        **of.arrays,
    }
    described = {"names": of.names, "metadata": of.metadata, "fingerprint": fingerprint.to_dict()}
    try:
        write_whole(
            names_file(path), lambda file: file.write(json.dumps(described, indent=1).encode())
        )
        write_whole(path, lambda file: np.savez(file, **arrays))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def check_features_path(path: str) -> None:
    """Refuse a file of features that could not be written, before the work is done.

    Raises:
        UserError: another ending than .npz, or as :func:`check_folder_of`.
    """
    if not path.endswith(".npz"):
        raise UserError(f"{path}: a file of features ends in .npz")
    check_folder_of(path)


def check_folder_of(path: str) -> None:
    """Refuse a file without a folder to be in, or in the place of one.

    Raises:
        UserError: the folder does not exist, or the file is one.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f"the folder {folder} does not exist: make it, or write elsewhere")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name the file to write")


def _split(data: VideoDataset, split: str) -> list[Tracklet]:
    return [*data.query, *data.gallery] if split == "test" else list(getattr(data, split))


def _picture(tracklet: TrackletInput) -> str:
    return os.path.abspath(cast(str, tracklet.frames) if tracklet.is_video else tracklet.images[0])


def _input(tracklet: Tracklet, store: SkeletonStore | None) -> TrackletInput:
    keys = None if store is None else [tracklet.key(index) for index in range(len(tracklet))]
    frames = [tracklet.path(index) for index in range(len(tracklet))]
    return TrackletInput(
        frames, tracklet.modality, skeletons=store, keys=keys, name=tracklet.key(0)
    )
