"""Folders of images and videos as tracklets."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fastreid_star.data.io import decode_video
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.tracklets import MODALITIES, TrackletInput, as_modality
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".flv"),
    *(".h264", ".264", ".h265", ".hevc", ".dav"),  # of surveillance cameras
)
# Identity and camera in the file names of Market-1501, DukeMTMC and MARS: 0002_c1s1_000451_03.jpg
_MARKET_NAME = re.compile(r"(-?\d+)_?[cC](\d+)")


def tracklets_at(
    paths: Iterable[str | os.PathLike],
    modality: Modality | str | None = None,
    *,
    skeletons: SkeletonStore | None = None,
) -> list[TrackletInput]:
    """The tracklets of folders, see :func:`tracklets_in`, of videos, and of single images.

    The name of a file is its name, or its path below a given folder; its modality is given or that
    of the folder right above.

    Args:
        paths: folders, which may contain videos too, video files and image files.
        modality, skeletons: see :func:`tracklets_in`; videos and files that are named one by one
            get no skeletons here.

    Raises:
        UserError: a path is none of these, a video shows whole scenes, two tracklets have the same
            name, or as :func:`tracklets_in`.
    """
    tracklets: list[TrackletInput] = []
    for path in map(Path, paths):
        videos = videos_at(path)
        for video in videos:
            _require_crops(video)
            own = _modality(modality, video.resolve().parent)
            name = video.relative_to(path).as_posix() if path.is_dir() else path.name
            tracklets.append(TrackletInput(str(video), own, name=name))
        if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
            own = _modality(modality, path.resolve().parent)
            tracklets.append(TrackletInput([str(path)], own, name=path.name))
        elif path.is_dir():
            if not videos or any(images for _, images in image_folders(path)):
                tracklets += tracklets_in(path, modality, skeletons=skeletons)
        elif not videos:
            raise UserError(
                f"{path} is neither a folder of images, nor an image, nor a video "
                f"({', '.join(VIDEO_SUFFIXES)})"
            )
    check_names([tracklet.name for tracklet in tracklets])
    return tracklets


def tracklets_in(
    folder: str | os.PathLike,
    modality: Modality | str | None = None,
    *,
    skeletons: SkeletonStore | None = None,
) -> list[TrackletInput]:
    """Every folder of images below a folder, or the folder itself, as a tracklet.

    The name of a tracklet is its path below `folder`, or the name of `folder` if the images are
    directly in it. Frames and tracklets are in natural order; hidden files and folders and other
    files are ignored. Links to folders are followed, except links to a folder that contains them.

    Args:
        folder: such as ``crops`` with ``crops/rgb/anna/1.jpg``.
        modality: of all tracklets; None: that of the nearest folder named rgb, visible, ir or
            infrared, from the tracklet's own up to `folder`.
        skeletons: a store whose keys are paths without suffix, ``rgb/anna/1``, below `folder` or
            below a folder that contains it.

    Raises:
        UserError: no such folder, no image in it, a folder of several people, an unknown modality,
            or skeletons of other images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"folder {folder} does not exist")
    found = [(inside, images) for inside, images in image_folders(root) if images]
    if not found:
        raise UserError(
            f"no images in {folder} or the folders below it ({', '.join(IMAGE_SUFFIXES)})"
        )
    for inside, images in found:
        people = {match.groups() for match in map(_MARKET_NAME.match, images) if match}
        if len(people) > 1:
            raise UserError(
                f"{root / inside} holds images of {len(people)} identities and cameras, named as "
                f"in Market-1501 ({images[0]}): give each tracklet, one person at one camera, its "
                "own folder"
            )
    found.sort(key=lambda item: natural_key(item[0].as_posix()))
    above = PurePosixPath()
    if skeletons is not None:
        above = _keys_start(skeletons, root, [inside / images[0] for inside, images in found])
    return [
        TrackletInput(
            frames=[str(root / inside / image) for image in images],
            modality=_modality(modality, root / inside),
            skeletons=skeletons,
            keys=None if skeletons is None else [_key(above, inside / image) for image in images],
            name=inside.as_posix() if inside.parts else root.resolve().name,
        )
        for inside, images in found
    ]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sorting key that orders numbers by value: 1.jpg, 2.jpg, 10.jpg."""
    parts = re.split(r"([0-9]+)", name)  # every second part is a number
    return [(1, int(part), part) if place % 2 else (0, 0, part) for place, part in enumerate(parts)]


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file has the suffix of a video."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def videos_at(path: Path) -> list[Path]:
    """A video file, or the videos in a folder and the folders below it, in natural order."""
    if path.is_file():
        return [path] if is_video(path) else []
    if not path.is_dir():
        return []
    found = [
        path / inside / name
        for inside, names in image_folders(path, VIDEO_SUFFIXES)
        for name in names
    ]
    return sorted(found, key=lambda video: natural_key(video.as_posix()))


def _require_crops(video: Path) -> None:
    """Raise a :class:`UserError` if the frames of a video are wider than high."""
    for frame in decode_video(str(video)):
        height, width = frame.shape[:2]
        if width > height:
            raise UserError(
                f"{video} shows whole scenes ({width} x {height} pixels), not crops of one person: "
                f"run `fastreid-star tracklets {video} --modality MODALITY -o FOLDER` first, and "
                "give that folder"
            )
        return


def check_names(names: Sequence[str]) -> None:
    """Raise :class:`UserError` if two tracklets have the same name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"{len(twice)} names belong to several tracklets, first {twice[0]!r}: rename the "
            "folders, or give one folder that contains all, so that the paths are the names"
        )


def image_folders(
    root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder relative to `root`, and its images, or other files, in natural order."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}")

    for place, below, names in os.walk(root, onerror=refuse, followlinks=True):
        here = os.path.join(os.path.realpath(place), "")
        below[:] = [
            name
            for name in below
            if not name.startswith(".")
            # not a link to a folder that contains it
            and not here.startswith(os.path.join(os.path.realpath(os.path.join(place, name)), ""))
        ]
        shown = [name for name in names if not name.startswith(".")]
        images = [name for name in shown if name.lower().endswith(suffixes)]
        yield Path(place).relative_to(root), sorted(images, key=natural_key)


def _modality(given: Modality | str | None, folder: Path) -> Modality:
    if given is not None:
        return as_modality(given)
    for part in reversed(folder.absolute().parts):
        if part.lower() in MODALITIES:
            return MODALITIES[part.lower()]
    raise UserError(
        f"the modality of {folder} is unknown: give it with --modality, or use a folder named "
        f"{', '.join(MODALITIES)}"
    )


def _key(above: PurePosixPath, image: Path) -> str:
    return (above / image.as_posix()).with_suffix("").as_posix()


def _keys_start(store: SkeletonStore, root: Path, images: Sequence[Path]) -> PurePosixPath:
    """The folders above `root` that a store's keys begin with, as many as possible."""
    parts = root.resolve().parts[1:]
    sample = images[:: max(1, len(images) // 100)]
    for start in range(len(parts) + 1):
        above = PurePosixPath(*parts[start:])
        if any(_key(above, image) in store for image in sample):
            store.close()  # each process opens its own: a handle must not cross a fork
            return above
    raise UserError(
        f"skeleton store {store.path} has none of {len(sample)} images of {root} that were looked "
        f"up, such as {_key(PurePosixPath(), sample[0])}: it was made for other images"
    )
