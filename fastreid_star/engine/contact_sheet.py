"""A picture of a ranked list: the query, and beside it the entries most like it, each by its first frame."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from fastreid_star.data.folders import is_video
from fastreid_star.data.io import BrokenImage, read_frame, read_video
from fastreid_star.engine.feature_sets import PICTURE
from fastreid_star.engine.gallery import Gallery
from fastreid_star.engine.ranked_lists import Answer
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

logger = logging.getLogger(__name__)

# Width and height of a picture, height of the two lines below it, and the space around, in pixels.
BOX = (96, 192)
CAPTION, MARGIN = 30, 6
COLUMNS = 11  # the query and ten entries
_BACKGROUND, _EMPTY, _TEXT = (255, 255, 255), (200, 200, 200), (0, 0, 0)
_QUERY = (200, 30, 30)  # of the frame around the query


def write_contact_sheets(
    folder: str | os.PathLike, answers: Sequence[Answer], pictures: Sequence[str], gallery: Gallery
) -> list[str]:
    """Draw each answer into a file of its own, ``001-anna.jpg``.

    Args:
        folder: made where it is not there.
        answers: what a gallery says to the queries.
        pictures: of each query, an image or video.
        gallery: the one that was asked; its metadata tell where the entries' pictures are.

    Returns:
        the files.

    Raises:
        UserError: the folder cannot be written.
    """
    read = functools.lru_cache(maxsize=256)(first_frame)  # an entry is in many lists
    files = []
    try:
        os.makedirs(folder, exist_ok=True)
        for number, (answer, picture) in enumerate(zip(answers, pictures, strict=True), start=1):
            ranked = answer.ranked
            known = [gallery.metadata[index].get(PICTURE) for index in ranked.indices.tolist()]
            captions = [("query", answer.query)]
            captions += [
                (f"{rank}: {similarity:.3f}", name)
                for rank, (similarity, name) in enumerate(
                    zip(ranked.similarities, ranked.names, strict=True), start=1
                )
            ]
            sheet = contact_sheet(
                [read(picture), *(path and read(path) for path in known)], captions
            )
            name = re.sub(r"[^A-Za-z0-9.-]+", "_", answer.query)[-100:]
            files.append(os.path.join(folder, f"{number:03d}-{name}.jpg"))
            write_whole(files[-1], functools.partial(sheet.save, format="JPEG", quality=90))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return files


def first_frame(path: str | os.PathLike) -> np.ndarray | None:
    """The first frame of an image or video as uint8 RGB [H,W,3]; None, with a warning, where it cannot be read."""
    try:
        return read_video(path, lambda n: [0])[0][0] if is_video(path) else read_frame(path)
    except (BrokenImage, UserError) as error:
        logger.warning("No picture: %s", error)
        return None


def contact_sheet(
    pictures: Sequence[np.ndarray | None], captions: Sequence[tuple[str, str]]
) -> Image.Image:
    """Pictures in rows, each scaled into a box of one size, with two lines of text below.

    Args:
        pictures: the query's, then the entries'; None: a gray box.
        captions: two lines for each, cut to the box's width.
    """
    width, height = BOX[0] + MARGIN, BOX[1] + CAPTION + MARGIN
    columns = min(len(pictures), COLUMNS)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for place, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        if picture is None:
            box = Image.new("RGB", BOX, _EMPTY)
        else:
            box = ImageOps.pad(Image.fromarray(picture), BOX, color=_BACKGROUND)
        sheet.paste(box, (left, top))
        if place == 0:
            draw.rectangle(
                (left - 2, top - 2, left + BOX[0] + 1, top + BOX[1] + 1), outline=_QUERY, width=2
            )
        for line, text in enumerate(lines):
            place_of_text = (left, top + BOX[1] + 2 + line * CAPTION // 2)
            draw.text(place_of_text, _fitting(draw, text), fill=_TEXT)
    return sheet


def _fitting(draw: ImageDraw.ImageDraw, text: str) -> str:
    """The text, or its end where it is too long for a box: names of tracklets differ there."""
    text = text.encode("ascii", "replace").decode()  # all that Pillow's own font knows everywhere
    if draw.textlength(text) <= BOX[0]:
        return text
    while text and draw.textlength(f"..{text}") > BOX[0]:
        text = text[1:]
    return f"..{text}"
