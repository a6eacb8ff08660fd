"""Skeletons of tracklets whose features are about to be computed, kept in a cache folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import (
    BrokenImage,
    decode_video,
    progress_bar,
    swap_colors,
    to_rgb,
)
from fastreid_star.data.tracklets import TrackletInput
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole
from fastreid_star.pose.estimator import PoseEstimator, build_estimator
from fastreid_star.pose.frames import read_patiently
from fastreid_star.pose.movenet_weights import checkpoint_files
from fastreid_star.pose.sides import RULE, settle_sides

logger = logging.getLogger(__name__)

BATCH = 16  # crops


def add_skeletons(
    tracklets: Sequence[TrackletInput], folder: str | os.PathLike, device: torch.device
) -> list[TrackletInput]:
    """Give the tracklets that have no skeletons those that MoveNet finds in all of their frames.

    They are what ``fastreid-star skeletons`` would store for these frames. If MoveNet's weights are
    not there, nothing is added, and a warning says how to get them. If the folder cannot be
    written, a warning says so, and the skeletons are not kept.

    Args:
        tracklets: of image files and videos.
        folder: of the cache. A file belongs to the files of a tracklet, their sizes and times, and
            to the network.
        device: where the network runs.

    Raises:
        UserError: the disk fails when a frame is read.
    """
    missing = [tracklet for tracklet in tracklets if tracklet.skeletons is None]
    if not missing:
        return list(tracklets)
    try:
        checkpoint_files("thunder", "")
    except UserError as error:
        logger.warning("No skeletons are extracted: %s", error)
        return list(tracklets)
    estimator = build_estimator(device=device)
    about = {**estimator.describe(), "sides": RULE}
    found, keeps = [], True
    with progress_bar("skeletons", len(missing), unit=" tracklets") as bar:
        for tracklet in tracklets:
            if tracklet.skeletons is None:
                file = Path(folder, f"{_digest(tracklet, about)}.npy")
                joints = _kept(file)
                if joints is None:
                    joints = estimate(tracklet, estimator)
                    keeps = keeps and _keep(file, joints)
                tracklet = dataclasses.replace(tracklet, skeletons=joints)
                bar.update(1)
            found.append(tracklet)
    return found


def estimate(tracklet: TrackletInput, estimator: PoseEstimator) -> np.ndarray:
    """The joints of all frames, float32 ``[n, V, 3]``; NaN where a frame cannot be read."""
    parts: list[np.ndarray] = []
    batch: list[np.ndarray | None] = []

    def run() -> None:
        joints = np.full((len(batch), NUM_JOINTS, 3), np.nan, np.float32)
        good = [place for place, frame in enumerate(batch) if frame is not None]
        if good:
            prepared = [estimator.prepare(cast(np.ndarray, batch[place])) for place in good]
            joints[good] = estimator.estimate(prepared)
        parts.append(joints)
        batch.clear()

    for frame in _frames(tracklet):
        batch.append(frame)
        if len(batch) == BATCH:
            run()
    if batch:
        run()
    joints = np.concatenate([np.empty((0, NUM_JOINTS, 3), np.float32), *parts])
    joints[~np.isfinite(joints).all(axis=(1, 2))] = np.nan
    return settle_sides(joints)[0]


def _frames(tracklet: TrackletInput) -> Iterator[np.ndarray | None]:
    """The frames, RGB; None: it cannot be read."""
    if tracklet.is_video:
        for frame in decode_video(os.fspath(cast(str, tracklet.frames))):
            yield to_rgb([swap_colors(frame)])[0]
        return
    for path in tracklet.images:
        try:
            yield read_patiently(path)
        except BrokenImage:  # the features replace it by a neighbor, and count it
            yield None


def _digest(tracklet: TrackletInput, about: dict[str, Any]) -> str:
    """A name for the skeletons: it changes with the files, their order, and the network."""
    files = [tracklet.frames] if tracklet.is_video else tracklet.images
    known = []
    for file in map(str, files):
        try:
            status = os.stat(file)
            known.append([os.path.abspath(file), status.st_size, status.st_mtime_ns])
        except OSError:  # a frame that is missing
            known.append([os.path.abspath(file)])
    content = json.dumps([known, about], sort_keys=True)
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:32]


def _kept(file: Path) -> np.ndarray | None:
    """The skeletons in a file of the cache; None: there are none, or the file is damaged."""
    try:
        joints = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    is_whole = isinstance(joints, np.ndarray) and joints.dtype == np.float32
    return joints if is_whole and joints.shape[1:] == (NUM_JOINTS, 3) else None


def _keep(file: Path, joints: np.ndarray) -> bool:
    """Write the skeletons of a tracklet; False, with a warning: the folder cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda stream: np.save(stream, joints))
    except OSError as error:
        reason = error.strerror or error
        logger.warning("%s cannot be written (%s): the skeletons are not kept", file.parent, reason)
        return False
    return True
