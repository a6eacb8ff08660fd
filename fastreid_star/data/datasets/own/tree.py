"""Tracklets in a tree of folders whose levels a pattern names."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

from fastreid_star.data.datasets.own.labels import Labeled
from fastreid_star.data.folders import IMAGE_SUFFIXES, VIDEO_SUFFIXES, image_folders, natural_key
from fastreid_star.errors import UserError

PATTERN = "{identity}/{modality}/{camera}/{tracklet}"
FIELDS = ("identity", "modality", "camera", "tracklet", "split")
KEY = "DATASETS.FOLDERS.PATTERN"


def compile_pattern(pattern: str) -> re.Pattern:
    """A pattern such as ``{modality}/{identity}/{camera}/{tracklet}`` as an expression for paths.

    A level may have several fields, ``{identity}_{camera}``, and text, which the names must have;
    ``*`` stands for any text within a level.

    Raises:
        UserError: braces that do not close, an unknown field, one that appears twice, or no
            identity or modality.
    """
    try:
        parts = list(string.Formatter().parse(pattern.strip("/")))
    except ValueError as error:
        raise UserError(f"{KEY} {pattern!r}: {error}") from None
    named = [name for _, name, *_ in parts if name is not None]
    for name in named:
        if name not in FIELDS or named.count(name) > 1:
            fault = "appears twice" if name in FIELDS else f"is none of {', '.join(FIELDS)}"
            raise UserError(f"{KEY} {pattern!r}: {{{name}}} {fault}")
    for name in ("identity", "modality"):
        if name not in named:
            raise UserError(f"{KEY} {pattern!r}: {{{name}}} is missing")
    texts = [re.escape(text).replace(r"\*", "[^/]*") for text, *_ in parts]
    fields = [f"(?P<{name}>[^/]+?)" if name else "" for _, name, *_ in parts]
    return re.compile("".join(map(str.__add__, texts, fields)))


def read_tree(root: str, pattern: str) -> tuple[list[Labeled], list[str]]:
    """The tracklets below a folder.

    The images in a folder whose path matches the pattern are a tracklet. An image that stands in
    the place of a tracklet's folder is a tracklet of one frame. Hidden files and folders are
    ignored; links to folders are followed.

    Args:
        root: the folder.
        pattern: see :func:`compile_pattern`.

    Returns:
        the tracklets in natural order of their paths; a line for each kind of what was not read.

    Raises:
        UserError: nothing matches the pattern, or a folder cannot be listed.
    """
    match = compile_pattern(pattern).fullmatch
    single = "{tracklet}" in pattern
    found: list[Labeled] = []
    elsewhere: list[str] = []
    empty: list[str] = []
    videos: list[str] = []
    for folder, files in image_folders(Path(root), IMAGE_SUFFIXES + VIDEO_SUFFIXES):
        inside = folder.as_posix()
        images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
        videos += [f"{inside}/{name}" for name in files if name not in images]
        paths = tuple((folder / name).as_posix() for name in images)
        labels = match(inside)
        if labels and paths:
            found.append(_labeled(inside, paths, labels))
        elif labels:
            empty.append(inside)
        for path in () if labels else paths:
            labels = match(path) if single else None
            if labels:
                found.append(_labeled(path, (path,), labels))
            else:
                elsewhere.append(path)
    if not found:
        raise UserError(_why_nothing(root, pattern, elsewhere, videos))
    found.sort(key=lambda one: natural_key(one.where))
    return found, [
        *_line(root, elsewhere, f"images are not where {KEY} {pattern} expects them"),
        *_line(root, empty, "folders of tracklets hold no image"),
        *_line(root, videos, "videos are not read: save their frames as images"),
    ]


def _labeled(where: str, frames: tuple[str, ...], labels: re.Match) -> Labeled:
    fields = {name: text for name, text in labels.groupdict().items() if name != "tracklet"}
    return Labeled(where, frames, **fields)


def _line(root: str, paths: Sequence[str], what: str) -> list[str]:
    if not paths:
        return []
    return [f"{root}: {len(paths):,} {what}, such as {min(paths, key=natural_key)}"]


def _why_nothing(root: str, pattern: str, elsewhere: Sequence[str], videos: Sequence[str]) -> str:
    if elsewhere:
        return (
            f"{root} has {len(elsewhere):,} images, but none is where {KEY} {pattern} expects it; "
            f"one is {min(elsewhere, key=natural_key)}: set the key to the levels of your folders"
        )
    if videos:
        return f"{root} has videos, but no images: save their frames as images, such as {videos[0]}"
    lists = sorted(path.name for path in Path(root).glob("*.csv"))
    cure = f"; to read a list, set DATASETS.ROOT to {Path(root, lists[0])}" if lists else ""
    return f"no images in {root} or the folders below it ({', '.join(IMAGE_SUFFIXES)}){cure}"
