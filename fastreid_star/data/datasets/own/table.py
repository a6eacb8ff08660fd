"""Tracklets in a CSV file: a file, a folder or a glob in each row, and its labels."""

from __future__ import annotations

import csv
import difflib
import functools
import glob
import io
import os
from collections.abc import Iterator
from typing import NamedTuple

from fastreid_star.data.datasets.own.labels import Labeled
from fastreid_star.data.folders import IMAGE_SUFFIXES, natural_key
from fastreid_star.data.io import explain_missing, read_text
from fastreid_star.errors import UserError

NEEDED = ("path", "identity", "modality")
COLUMNS = (*NEEDED, "camera", "tracklet", "split")


class Row(NamedTuple):
    """A row: its line in the file, and its cells; empty: not given."""

    line: int
    path: str
    identity: str
    modality: str
    camera: str
    tracklet: str
    split: str

    @property
    def labels(self) -> tuple[str, ...]:
        """What all rows of one image must agree in."""
        return (self.identity, self.modality, self.camera, self.split)


def read_table(path: str) -> tuple[list[Labeled], list[str]]:
    """The tracklets of a CSV file, see :func:`read_rows` and :func:`images_at`.

    Rows with the same name of a tracklet, and the same labels, are one tracklet, its frames in the
    order of the rows. Without such a name, each image file and each folder is a tracklet, and so
    are the image files of a glob. A tracklet with the labels and images of an earlier one is left
    out.

    Args:
        path: the file. Relative paths in it start at its folder.

    Returns:
        the tracklets in the order of the rows, their frames relative to the folder of the file if
        they are in it; a line for each kind of what was not read.

    Raises:
        UserError: the file cannot be read, an image has two labels, or no image exists.
    """
    folder = os.path.dirname(os.path.abspath(path))
    listed = functools.cache(_images_in)
    tracklets: dict[tuple, dict[str, None]] = {}
    first: dict[tuple, Row] = {}
    owners: dict[str, Row] = {}
    seen: set[tuple] = set()
    twice, missing = [], []
    for row in read_rows(path):
        if row[1:] in seen:
            twice.append(row)
            continue
        seen.add(row[1:])
        groups = images_at(os.path.normpath(os.path.join(folder, row.path)), listed)
        if not groups:
            missing.append(row)
        for number, group in enumerate(groups):
            key = (*row.labels, row.tracklet) if row.tracklet else (row.line, number)
            first.setdefault(key, row)
            for image in group:
                name = image.removeprefix(os.path.join(folder, "")).replace(os.sep, "/")
                owner = owners.setdefault(name, row)
                if owner.labels != row.labels:
                    raise UserError(
                        f"{path}: lines {owner.line} and {row.line} give {name} different labels"
                    )
                tracklets.setdefault(key, {})[name] = None
    if not tracklets:
        why = explain_missing(os.path.join(folder, missing[0].path)) if missing else "it has no row"
        raise UserError(f"{path} names no image that exists: {why}")
    found: dict[tuple, Labeled] = {}
    for key, frames in tracklets.items():
        row = first[key]
        one = Labeled(f"{path} line {row.line}", tuple(frames), *row.labels)
        if found.setdefault((row.labels, frozenset(frames)), one) is not one:
            twice.append(row)
    return list(found.values()), [
        *_line(path, missing, "name no image that exists"),
        *_line(path, twice, "repeat another row"),
    ]


def read_rows(path: str) -> Iterator[Row]:
    """The rows of a CSV file in UTF-8, with or without BOM.

    The first line names the columns, in any order and case. Cells are separated by commas,
    semicolons or tabs. Other columns than COLUMNS are ignored, and so are empty rows.

    Raises:
        UserError: the file cannot be read, a column is missing or misspelled, a row has more cells
            than there are columns, or lacks a cell that is needed.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        _check_columns(path, names)
        for cells in reader:
            values = [cell.strip() for cell in cells]
            if not any(values):
                continue
            if len(values) > len(names):
                raise UserError(
                    f"{path} line {reader.line_num}: {len(values)} cells for {len(names)} columns: "
                    'put cells with separators into quotes "..."'
                )
            row = dict(zip(names, values, strict=False))
            for name in NEEDED:
                if not row.get(name):
                    raise UserError(f"{path} line {reader.line_num}: the {name} is empty")
            fields = {name: row.get(name, "") for name in COLUMNS}
            fields["path"] = fields["path"].replace("\\", "/")
            yield Row(reader.line_num, **fields)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from None


def images_at(path: str, listed=None) -> list[list[str]]:
    """The images of a path: a list for each tracklet, if the row does not name one.

    Args:
        path: an image file, a folder, whose images are one tracklet, or a glob of these; image
            files of a glob are one tracklet, in natural order.
        listed: returns the images in a folder in natural order, and may remember them.
    """
    listed = listed or _images_in
    folder, name = os.path.split(path)
    if name.lower().endswith(IMAGE_SUFFIXES) and name in listed(folder):
        return [[path]]
    if os.path.isdir(path):
        groups = [[os.path.join(path, image) for image in listed(path)]]
    else:
        matches = sorted(glob.glob(path, recursive=True), key=natural_key)
        images = [match for match in matches if match.lower().endswith(IMAGE_SUFFIXES)]
        folders = [match for match in matches if os.path.isdir(match)]
        groups = [images, *([os.path.join(one, i) for i in listed(one)] for one in folders)]
    return [group for group in groups if group]


def _images_in(folder: str) -> dict[str, None]:
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
    return dict.fromkeys(sorted(images, key=natural_key))


def _check_columns(path: str, names: list[str]) -> None:
    for name in NEEDED:
        if name not in names:
            raise UserError(
                f"{path}: the first line must name the columns {', '.join(NEEDED)}, and may name "
                f"{', '.join(COLUMNS[len(NEEDED) :])}; it is {', '.join(names) or 'empty'}"
            )
    for name in COLUMNS:
        if names.count(name) > 1:
            raise UserError(f"{path}: two columns are named {name}")
    for name in set(names) - set(COLUMNS):
        near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.8)
        if near and near[0] not in names:
            raise UserError(f"{path}: no column is named {name}; did you mean {near[0]}?")


def _line(path: str, rows: list[Row], what: str) -> list[str]:
    if not rows:
        return []
    return [f"{path}: {len(rows):,} rows {what}, such as line {rows[0].line}, {rows[0].path}"]
