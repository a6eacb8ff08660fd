"""Cut the people of a video out: one folder of crops for each track, and a manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastreid_star.errors import UserError
from fastreid_star.files import write_output
from fastreid_star.tracking.tracks import Track

SMALLEST = (8, 16)  # width and height of a crop in pixels
QUALITY = 95  # of the JPEG files


@dataclass
class Cut:
    """What was cut out of a video.

    Args:
        folder: of the tracklets.
        tracklets: number of crops by name.
        frames: of the video.
        outside: boxes of which more than half, or almost all, is outside of the frame.
        beyond: boxes in frames after the last one of the video.
        short: tracks with too few crops.
    """

    folder: Path
    tracklets: dict[str, int]
    frames: int = 0
    outside: int = 0
    beyond: int = 0
    short: int = 0

    def __str__(self) -> str:
        crops = sum(self.tracklets.values())
        left_out = [
            f"{self.short} tracks with too few crops" if self.short else "",
            f"{self.outside} boxes that are mostly outside of the frame" if self.outside else "",
            f"{self.beyond} boxes after the video's last frame, {self.frames}"
            if self.beyond
            else "",
        ]
        text = f"{len(self.tracklets)} tracklets with {crops:,} crops: {self.folder}"
        return "; left out: ".join(filter(None, [text, ", ".join(filter(None, left_out))]))


def cut_tracklets(
    frames: Iterable[np.ndarray],
    tracks: Sequence[Track],
    folder: str | os.PathLike,
    stem: str,
    *,
    min_frames: int,
    about: Mapping[str, Any],
) -> Cut:
    """Write the crops of each track to ``FOLDER/STEM_NUMBER/FRAME.jpg``, and ``FOLDER/STEM.json``.

    The manifest has the frame numbers, boxes (left, top, width, height, inside the frame) and
    scores of the crops. Nothing appears in the folder before all crops are written.

    Args:
        frames: of the video, BGR.
        tracks: their frame numbers are counted from 1.
        folder: of the modality, such as ``crops/ir``.
        stem: the name of the video.
        min_frames: shorter tracklets are left out.
        about: goes into the manifest: the video, and where the tracks come from.

    Raises:
        UserError: the folder has tracklets of a video of this name, the video has no frame, there
            is no tracklet, or a file cannot be written.
    """
    folder = Path(folder)
    manifest, own = folder / f"{stem}.json", re.compile(re.escape(stem) + r"_\d{4,}")
    if manifest.exists() or any(own.fullmatch(path.name) for path in folder.glob("*")):
        raise UserError(f"{folder} has tracklets of {stem}: delete them, or choose another -o")
    unfinished = folder / f".{stem}.unfinished"  # hidden folders are no tracklets
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        cut, entries, size = _write_crops(frames, tracks, unfinished, stem)
        cut.folder = folder
        for name in [name for name, entry in entries.items() if len(entry["frames"]) < min_frames]:
            del entries[name], cut.tracklets[name]
            cut.short += 1
        if not entries:
            raise UserError(
                f"{about.get('video', stem)}: no person has {min_frames} crops "
                f"({cut.short} tracks are shorter, {cut.beyond} boxes are after frame "
                f"{cut.frames}, the last): see --min-frames and --detector"
            )
        for name in entries:
            os.replace(unfinished / name, folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    content = {**about, "frames": cut.frames, "size": size, "tracklets": entries}
    write_output(manifest, lambda file: file.write(json.dumps(content).encode()))
    return cut


def _write_crops(
    frames: Iterable[np.ndarray], tracks: Sequence[Track], folder: Path, stem: str
) -> tuple[Cut, dict[str, dict[str, Any]], list[int]]:
    """Write all crops; the manifest's entries by name, and the size of the frames."""
    cut, size = Cut(folder, {}), [0, 0]
    due: dict[int, list[tuple[Track, int]]] = defaultdict(list)
    for track in tracks:
        for place, number in enumerate(track.frames):
            due[number].append((track, place))
    entries: dict[str, dict[str, Any]] = {}
    for number, frame in enumerate(frames, start=1):
        cut.frames = number
        size = [frame.shape[1], frame.shape[0]]
        for track, place in due.pop(number, ()):
            box = inside(track.boxes[place], *size)
            if box is None:
                cut.outside += 1
                continue
            name = f"{stem}_{track.number:04d}"
            if name not in entries:
                entries[name] = {"track": track.number, "frames": [], "boxes": [], "scores": []}
                (folder / name).mkdir()
            left, top, right, bottom = box
            _write_jpeg(folder / name / f"{number:06d}.jpg", frame[top:bottom, left:right])
            entries[name]["frames"].append(number)
            entries[name]["boxes"].append([left, top, right - left, bottom - top])
            entries[name]["scores"].append(round(float(track.scores[place]), 4))
    if not cut.frames:
        raise UserError(f"{stem} has no decodable frame: it is damaged or not a video")
    cut.beyond = sum(map(len, due.values()))
    entries = dict(sorted(entries.items()))
    cut.tracklets = {name: len(entry["frames"]) for name, entry in entries.items()}
    return cut, entries, size


def inside(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of a box within the frame in whole pixels; None: less than half, or too small.

    Args:
        box: left, top, right, bottom.
        width, height: of the frame.
    """
    left, top, right, bottom = np.clip(box, 0, [width, height, width, height])
    part = max(right - left, 0) * max(bottom - top, 0)
    if part < 0.5 * (box[2] - box[0]) * (box[3] - box[1]):
        return None
    left, top, right, bottom = (round(float(side)) for side in (left, top, right, bottom))
    if right - left < SMALLEST[0] or bottom - top < SMALLEST[1]:
        return None
    return left, top, right, bottom


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    good, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not good:
        raise OSError(f"{path.name} cannot be encoded")
    path.write_bytes(content.tobytes())
