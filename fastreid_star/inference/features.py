"""Features of tracklets of a dataset, of folders and of videos, for a file or a gallery."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fastreid.config import CfgNode
from tqdm import tqdm

from fastreid_star.data.build import build_dataset, open_store
from fastreid_star.data.datasets import HITSZVCM, BUPTCampus, SyntheticVCM
from fastreid_star.data.datasets.synthetic import OPTIONS_FILE
from fastreid_star.data.folders import check_names, tracklets_at
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.tracklets import TrackletInput, as_modality
from fastreid_star.errors import UserError
from fastreid_star.files import prepare_output, write_output
from fastreid_star.inference.gallery import FILE, Gallery, prepare_gallery
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.structures import Modality, Tracklet, Trials

logger = logging.getLogger(__name__)

SPLITS = ("train", "query", "gallery", "test")
PICTURE = "picture"
# Files by which the folder of a dataset is recognized. SyntheticVCM, which has HITSZ-VCM's files as
# well, is the first.
_LISTS: dict[type, tuple[str, ...]] = {
    SyntheticVCM: (OPTIONS_FILE,),
    HITSZVCM: ("info/track_test_info.txt", "track_test_info.txt"),
    BUPTCampus: ("data_paths.json",),
}


@dataclass(frozen=True)
class TrackletSet:
    """Tracklets whose features are computed.

    Args:
        tracklets: N tracklets with names.
        listed: the same tracklets as a dataset lists them, with identity and camera; empty if no
            dataset does.
        trials: of a dataset's test set, if its protocol has some.
    """

    tracklets: list[TrackletInput]
    listed: list[Tracklet]
    trials: Trials | None = None

    @property
    def names(self) -> list[str]:
        """The names of the tracklets."""
        return [tracklet.name for tracklet in self.tracklets]

    @property
    def modalities(self) -> list[Modality]:
        """The modalities of the tracklets."""
        return [as_modality(tracklet.modality) for tracklet in self.tracklets]

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """`picture`, an image or video of each; `pid` and `camid` of a dataset's tracklets."""
        found: list[dict[str, Any]] = []
        for tracklet in self.tracklets:
            file = cast(str, tracklet.frames) if tracklet.is_video else tracklet.images[0]
            found.append({PICTURE: os.path.abspath(file)})
        for entry, listed in zip(found, self.listed, strict=False):
            entry.update(pid=listed.pid, camid=listed.camid)
        return found


def extract_features(
    predictor: StarPredictor,
    paths: Sequence[str] = (),
    *,
    dataset: str = "",
    split: str = "test",
    modality: str | None = None,
    skeletons: str = "",
    output: str = "",
    gallery: str = "",
    replace: bool = False,
    add_skeletons: Callable[[list[TrackletInput]], list[TrackletInput]] | None = None,
    batch_size: int | None = None,
    num_workers: int = 2,
) -> str:
    """Compute the features of tracklets, and write them to a file or add them to a gallery.

    Args:
        predictor: the model.
        paths: folders of tracklets and videos, see :func:`find_tracklets`.
        dataset: the name of a registered dataset, instead of `paths`.
        split: of the dataset: train, query, gallery or test (query and gallery).
        modality: of all tracklets in `paths`; None: folders named rgb, visible, ir or infrared tell
            it.
        skeletons: the skeleton store of the images in `paths`.
        output: an ``.npz`` file, see :func:`write_features`; or
        gallery: the folder of a gallery, which is created if it does not exist.
        replace: replace the entries of the gallery that have the same names.
        add_skeletons: gives the tracklets of `paths` that have no skeletons some.
        batch_size: tracklets in a batch; None: TEST.IMS_PER_BATCH.
        num_workers: processes that decode images.

    Returns:
        a sentence for the user: how many features were written, and where.

    Raises:
        UserError: the arguments contradict each other, a tracklet cannot be used, or a file cannot
            be written.
    """
    if bool(paths) == bool(dataset):
        raise UserError("features of what? Give either paths or --dataset NAME")
    if dataset and (modality or skeletons):
        raise UserError(
            "a dataset has its own modalities and skeletons: leave out --modality and --skeletons"
        )
    if bool(output) == bool(gallery):
        raise UserError("give either --output FILE or --gallery FOLDER")
    if replace and not gallery:
        raise UserError("--replace is for the entries of a gallery: leave it out with --output")
    if dataset:
        found = dataset_tracklets(predictor.cfg, dataset, split)
    else:
        found = find_tracklets(paths, modality, skeletons, predictor.cfg.DATASETS.MIN_FRAMES)
    if add_skeletons is None or dataset:
        add_skeletons = list
    if output:
        prepare_output(output, ".npz")
        features = compute(predictor, add_skeletons(found.tracklets), batch_size, num_workers)
        write_features(output, features, found, predictor.fingerprint)
        width = " x ".join(map(str, features.shape[1:]))
        return f"{len(features)} features of {width} numbers: {output}; names: {names_file(output)}"
    prepare_gallery(gallery)
    check_names(found.names)
    if os.path.isfile(os.path.join(gallery, FILE)):  # checked now, and when they are added
        existing = Gallery.load(gallery, predictor)
        if not replace:
            existing.check_names(found.names)
    features = compute(predictor, add_skeletons(found.tracklets), batch_size, num_workers)
    with Gallery.update(gallery, predictor) as entries:
        if replace:
            entries.remove(list(set(found.names) & set(entries.names)))
        entries.add(features, found.names, found.modalities, found.metadata)
    return f"{len(features)} tracklets added, {len(entries)} in all: {gallery}"


def compute(
    predictor: StarPredictor,
    tracklets: Sequence[TrackletInput],
    batch_size: int | None,
    num_workers: int,
) -> torch.Tensor:
    """Features ``[N, D]`` or ``[N, P, D]``, with a progress bar."""
    if num_workers < 0:
        raise UserError(f"--workers {num_workers}: give a number of processes, 0 or more")
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds
    with tqdm(total=len(tracklets), unit=" tracklets", mininterval=interval) as bar:
        return predictor.features(
            tracklets, batch_size=batch_size, num_workers=num_workers, progress=bar.update
        )


def dataset_tracklets(cfg: CfgNode, name: str, split: str) -> TrackletSet:
    """The tracklets of a registered dataset, with the skeletons that the evaluation uses.

    The name of a tracklet is the key of its first frame, ``0001/ir/D4/1``.

    Args:
        cfg: DATASETS is read.
        name: as in DATASETS.TESTS.
        split: train, query, gallery, or test (query and gallery).

    Raises:
        UserError: no such split or dataset, an error of the dataset, or DATASETS.SKELETONS_TEST is
            ``other``.
    """
    if split not in SPLITS:
        raise UserError(f"{split!r} is not a split: choose one of {', '.join(SPLITS)}")
    shown = cfg.DATASETS.SKELETONS_TEST
    if shown not in ("own", "none"):
        raise UserError(f"DATASETS.SKELETONS_TEST is {shown!r}: features need 'own' or 'none'")
    data = build_dataset(cfg, name)
    store = open_store(cfg, data) if shown == "own" else None
    listed = [*data.query, *data.gallery] if split == "test" else list(getattr(data, split))
    if not listed:
        raise UserError(f"the {split} split of {name} has no tracklets")
    trials = data.trials() if split == "test" else None
    return TrackletSet([_input(tracklet, store) for tracklet in listed], listed, trials)


def find_tracklets(
    paths: Sequence[str],
    modality: Modality | str | None = None,
    skeletons: str | None = None,
    min_frames: int = 1,
) -> TrackletSet:
    """The tracklets in folders and videos.

    A folder that belongs to HITSZ-VCM, SyntheticVCM or BUPTCampus holds several tracklets of a
    person and camera in one folder; the dataset's lists tell them apart. Elsewhere each folder of
    images is a tracklet, and each video; see :func:`fastreid_star.data.folders.tracklets_at`.

    Args:
        paths: folders and videos.
        modality: of all tracklets; None: folders named rgb, visible, ir or infrared tell it.
        skeletons: the path of a skeleton store of the images.
        min_frames: leave out shorter tracklets of a dataset's lists, as the evaluation does.

    Raises:
        UserError: a path does not exist, a modality is not known, two tracklets have the same name,
            or the skeletons are of other images.
    """
    store = SkeletonStore.open(skeletons) if skeletons else None
    below = {path: _listed_below(path, min_frames) for path in paths}
    listed = [tracklet for tracklets in below.values() for tracklet in tracklets]
    others = [path for path, tracklets in below.items() if not tracklets]
    if listed:
        logger.info("%d tracklets are taken from the dataset's lists", len(listed))
    if listed and store is not None:
        sample = [tracklet.key(0) for tracklet in listed[:: max(1, len(listed) // 100)]]
        if not any(key in store for key in sample):
            raise UserError(
                f"skeleton store {store.path} has no skeletons of these images, such as {sample[0]}"
            )
        store.close()  # each process opens its own
    found = [_input(tracklet, store) for tracklet in listed]
    if others:
        found += tracklets_at(others, modality, skeletons=store)
    check_names([tracklet.name for tracklet in found])
    return TrackletSet(found, [] if others else listed)


def names_file(path: str) -> str:
    """The file of names beside a file of features."""
    return os.path.splitext(path)[0] + ".json"


def write_features(
    path: str, features: torch.Tensor, of: TrackletSet, fingerprint: dict[str, Any]
) -> None:
    """Write features for other programs: an ``.npz`` file and a ``.json`` file.

    The ``.npz`` holds `features`, float32 ``[N, D]``; `names`, text ``[N]``; `modality`, int64
    ``[N]``, 1 infrared and 2 visible; and `pids` and `camids` of a dataset's tracklets. The
    ``.json`` holds `names`, `metadata` and `fingerprint`.

    Raises:
        UserError: a file cannot be written.
    """
    arrays: dict[str, Any] = {
        "features": features.numpy(),
        "names": np.array(of.names, np.str_),
        "modality": np.array(of.modalities, np.int64),
    }
    if of.listed:
        arrays["pids"] = np.array([tracklet.pid for tracklet in of.listed], np.int64)
        arrays["camids"] = np.array([tracklet.camid for tracklet in of.listed], np.int64)
    about = {"names": of.names, "metadata": of.metadata, "fingerprint": fingerprint}
    write_output(names_file(path), lambda file: file.write(json.dumps(about, indent=1).encode()))
    write_output(path, lambda file: np.savez(file, **arrays))


def _listed_below(folder: str, min_frames: int) -> list[Tracklet]:
    """The tracklets below a folder by its dataset's lists; empty if it is of no dataset."""
    path = Path(os.path.abspath(folder))
    for root in (path, *path.parents):
        for dataset, lists in _LISTS.items():
            if any((root / name).is_file() for name in lists):
                data = dataset(str(root), min_frames=min_frames)
                listed = [*data.train, *data.query, *data.gallery]
                return [tracklet for tracklet in listed if path in Path(tracklet.path(0)).parents]
    return []


def _input(tracklet: Tracklet, store: SkeletonStore | None) -> TrackletInput:
    frames = [tracklet.path(index) for index in range(len(tracklet))]
    keys = None if store is None else [tracklet.key(index) for index in range(len(tracklet))]
    return TrackletInput(frames, tracklet.modality, store, keys, name=tracklet.key(0))
