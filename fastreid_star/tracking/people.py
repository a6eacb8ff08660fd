"""From videos to tracklets: find or read the tracks, and cut them out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fastreid_star.data.folders import IMAGE_SUFFIXES, natural_key, videos_at
from fastreid_star.data.io import (
    BrokenImage,
    decode_video,
    progress_bar,
    read_image,
    swap_colors,
    to_rgb,
)
from fastreid_star.data.tracklets import as_modality
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality
from fastreid_star.tracking.cut import Cut, cut_tracklets
from fastreid_star.tracking.detectors import Detector, MotionDetector
from fastreid_star.tracking.follow import follow
from fastreid_star.tracking.tracks import read_tracks

MIN_FRAMES = 12  # of a tracklet, as in the published evaluation


def extract_tracklets(
    videos: Sequence[str],
    output: str | os.PathLike,
    modality: Modality | str,
    *,
    tracks: str = "",
    kind: int | None = None,
    build_detector: Callable[[Iterator[np.ndarray]], Detector] = MotionDetector,
    min_frames: int = MIN_FRAMES,
    progress: bool = False,
) -> list[Cut]:
    """Cut the people of videos of scenes out, into the layout that `features` and `search` read.

    Args:
        videos: video files, and folders of videos or of the frames of one video.
        output: gets a folder ``ir`` or ``rgb`` with a folder of crops for each tracklet, and a
            manifest for each video, see :func:`fastreid_star.tracking.cut.cut_tracklets`.
        modality: of the videos.
        tracks: a file of tracks of the one video, see
            :func:`fastreid_star.tracking.tracks.read_tracks`; empty: people are detected and
            tracked.
        kind: the class of people in `tracks`.
        build_detector: builds the detector of a video from its frames.
        min_frames: shorter tracklets are left out.
        progress: show a bar.

    Raises:
        UserError: a video, the tracks or the output cannot be used, or nobody is found.
    """
    paths = scenes(videos)
    if tracks and len(paths) > 1:
        raise UserError("--tracks belongs to one video: give one at a time")
    stems = [path.stem for path in paths]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise UserError(f"several videos have the name {min(twice)}: rename one")
    folder = Path(output) / as_modality(modality).folder
    cuts = []
    for path, stem in zip(paths, stems, strict=True):
        frames = functools.partial(frames_of, path, levels=gray_levels(path))
        if tracks:
            about, found = {"tracks": os.path.basename(tracks)}, read_tracks(tracks, kind)
        else:
            detect = build_detector(frames())
            about = detect.describe()
            found = follow(frames("people" if progress else ""), detect)
        about = {"video": path.name, "modality": as_modality(modality).name.lower(), **about}
        crops = frames("crops" if progress else "")
        cuts.append(cut_tracklets(crops, found, folder, stem, min_frames=min_frames, about=about))
    return cuts


def scenes(paths: Sequence[str]) -> list[Path]:
    """Video files, the videos of folders, and folders of frames.

    Raises:
        UserError: a path is none of these.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        videos = videos_at(path)
        if videos:
            found += videos
        elif path.is_dir() and _images(path):
            found.append(path)
        else:
            raise UserError(f"{path} is no video, and no folder of videos or of the frames of one")
    return found


def frames_of(path: Path, title: str = "", *, levels: Sequence[float] = ()) -> Iterator[np.ndarray]:
    """The frames of a video file or of a folder of images, BGR.

    Args:
        path: the file or the folder.
        title: of a progress bar; empty: no bar.
        levels: see :func:`gray_levels`.

    Raises:
        UserError: an image of the folder cannot be read.
    """
    with progress_bar(f"{path.name}: {title}", None, shown=bool(title)) as bar:
        for frame in _decoded(path):
            yield to_rgb([frame], levels)[0]
            bar.update(1)


def gray_levels(path: Path) -> tuple[float, ...]:
    """The counts that become black and white in all frames of a video, if they have 16 bits.

    They are the 1st and the 99th percentile of all frames. Scaled one by one, the frames of a still
    scene would flicker as soon as something warm enters it.

    Returns:
        two counts; empty if the first frame has 8 bits.

    Raises:
        UserError: an image of a folder cannot be read.
    """
    histogram = np.zeros(1 << 16, np.int64)
    for frame in _decoded(path):
        if frame.ndim == 3:
            break
        histogram += np.bincount(frame.ravel(), minlength=len(histogram))
    if not histogram.any():
        return ()
    below = histogram.cumsum()
    low, high = np.searchsorted(below, (0.01 * below[-1], 0.99 * below[-1]))
    return float(low), float(high)


def _decoded(path: Path) -> Iterator[np.ndarray]:
    """The frames: BGR, or counts of 16 bits ``[H, W]``."""
    if not path.is_dir():
        return decode_video(str(path))
    return (swap_colors(_image(path / name)) for name in _images(path))


def _image(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except BrokenImage as error:
        raise UserError(
            f"{error}: restore the frame; if you remove it, the frames after it move up by one"
        ) from error


def _images(folder: Path) -> list[str]:
    names = (name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    return sorted(names, key=natural_key)
