"""Tracklets that lie about as folders of images and as videos."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.tracklet_input import TrackletInput, as_modality
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
MODALITY_FOLDERS = {
    "rgb": Modality.VISIBLE,
    "visible": Modality.VISIBLE,
    "ir": Modality.INFRARED,
    "infrared": Modality.INFRARED,
}


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sorting key under which numbers count as numbers: 1.jpg, 2.jpg, 10.jpg."""
    parts = re.split(r"([0-9]+)", name)  # digits at every second place
    return [(1, int(part), part) if place % 2 else (0, 0, part) for place, part in enumerate(parts)]


def tracklets_in(
    folder: str | os.PathLike,
    modality: Modality | str | None = None,
    *,
    skeletons: SkeletonStore | None = None,
) -> list[TrackletInput]:
    """Every folder of images below a folder, or the folder itself, as a tracklet.

    A tracklet's name is its path below `folder`, or the folder's own name where the images lie right in it; bytes that
    are no UTF-8 are written out. Frames and tracklets are in natural order; hidden files and folders, and what is no
    image, are passed over. Links to folders are followed, but not back to one that they are in.

    Args:
        folder: such as ``crops`` with ``crops/rgb/anna/1.jpg``.
        modality: of all of them; None: each says so by the nearest folder named rgb, visible, ir or infrared, from
            its own up to `folder`.
        skeletons: whose keys are the images' paths below some folder without their suffix, ``rgb/anna/1``, as
            tools/extract_skeletons.py --images writes them: below `folder`, or below one that holds it.

    Raises:
        UserError: no such folder, no image in it, a tracklet whose modality nothing tells, or skeletons of other
            images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"folder {folder} does not exist")
    found = []
    for place, below, names in os.walk(root, onerror=_refuse, followlinks=True):
        below[:] = [
            name
            for name in below
            if not name.startswith(".") and not _leads_back(root, Path(place, name))
        ]
        images = [
            name
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        if images:
            found.append((Path(place).relative_to(root), sorted(images, key=natural_key)))
    if not found:
        raise UserError(
            f"folder {folder} holds no images, nor does any folder in it ({', '.join(IMAGE_SUFFIXES)})"
        )
    found.sort(key=lambda item: natural_key(item[0].as_posix()))
    above = PurePosixPath()
    if skeletons is not None:
        above = _keys_start(skeletons, root, [inside / images[0] for inside, images in found])
    return [
        TrackletInput(
            frames=[str(root / inside / image) for image in images],
            modality=_modality(modality, root, inside),
            skeletons=skeletons,
            keys=None if skeletons is None else [_key(above, inside / image) for image in images],
            name=_readable(inside.as_posix() if inside.parts else root.resolve().name),
        )
        for inside, images in found
    ]


def tracklets_at(
    paths: Iterable[str | os.PathLike],
    modality: Modality | str | None = None,
    *,
    skeletons: SkeletonStore | None = None,
) -> list[TrackletInput]:
    """The tracklets of several folders, as :func:`tracklets_in`, and videos, each of which is one.

    A video's name is its file's; its modality is given or told by a folder right above it.

    Args:
        paths: folders and video files.
        modality, skeletons: as in :func:`tracklets_in`; videos have no skeletons here.

    Raises:
        UserError: a path is neither, two tracklets have one name, or as :func:`tracklets_in`.
    """
    tracklets = list(_each(paths, modality, skeletons))
    if skeletons is not None and tracklets and not any(tracklet.keys for tracklet in tracklets):
        raise UserError(
            "skeletons were given, but only videos to go with them: a store knows images of folders"
        )
    check_names([tracklet.name for tracklet in tracklets])
    return tracklets


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file's name is that of a video."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def check_names(names: Sequence[str]) -> None:
    """Refuse tracklets that share a name.

    Raises:
        UserError: two do.
    """
    seen: set[str] = set()
    twice: list[str] = []
    for name in names:
        if name in seen:
            twice.append(name)
        seen.add(name)
    if twice:
        raise UserError(
            f"{len(twice)} tracklets have a name that another has, first {twice[0]!r}: "
            "rename them, or give one folder that holds all, whose paths are their names"
        )


def _each(paths, modality, skeletons) -> Iterator[TrackletInput]:
    for path in paths:
        path = Path(path)
        if path.is_dir():
            yield from tracklets_in(path, modality, skeletons=skeletons)
        elif not path.exists():
            raise UserError(f"{path} does not exist: give folders of images, or videos")
        elif is_video(path):
            yield TrackletInput(
                str(path),
                _modality(modality, path.resolve().parent, Path()),
                name=_readable(path.name),
            )
        else:
            raise UserError(
                f"{path} is neither a folder nor a video ({', '.join(VIDEO_SUFFIXES)}): a tracklet of images is a "
                "folder of its own"
            )


def _modality(given: Modality | str | None, root: Path, inside: Path) -> Modality:
    if given is not None:
        return as_modality(given)
    for part in reversed((root.resolve().name, *inside.parts)):
        if part.lower() in MODALITY_FOLDERS:
            return MODALITY_FOLDERS[part.lower()]
    raise UserError(
        f"nothing tells whether {root / inside} is visible or infrared: say so, or put it into a folder named "
        f"{', '.join(MODALITY_FOLDERS)}"
    )


def _key(above: PurePosixPath, image: Path) -> str:
    return (above / image.as_posix()).with_suffix("").as_posix()


def _keys_start(store: SkeletonStore, root: Path, images: Sequence[Path]) -> PurePosixPath:
    """What a store's keys begin with before the path below `root`: nothing, or the folders that `root` is in.

    The longest beginning that the store knows, as the one that is least likely to mean other images.
    """
    parts = root.resolve().parts[1:]
    sample = images[:: max(1, len(images) // 100)]
    for start in range(len(parts) + 1):
        above = PurePosixPath(*parts[start:])
        if any(_key(above, image) in store for image in sample):
            store.close()  # each process opens its own: a handle must not cross a fork
            return above
    raise UserError(
        f"skeleton store {store.path} knows none of {len(sample)} images that were looked up in {root}, such as "
        f"{_key(PurePosixPath(), sample[0])}: it was made for other images"
    )


def _leads_back(root: Path, folder: Path) -> bool:
    """Whether a folder below `root` is a link to one of those that it is in."""
    if not folder.is_symlink():
        return False
    parts = folder.relative_to(root).parts
    return folder.resolve() in [Path(root, *parts[:depth]).resolve() for depth in range(len(parts))]


def _readable(name: str) -> str:
    """A file's name as text that can be printed and saved, whatever bytes it has."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}")
