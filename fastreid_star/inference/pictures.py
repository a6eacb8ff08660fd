"""A picture of each ranked list: one frame of the query and of the entries most similar to it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fastreid_star.data.folders import is_video
from fastreid_star.data.io import BrokenImage, read_frame, read_video, to_rgb
from fastreid_star.errors import UserError
from fastreid_star.files import prepare_output, write_output

logger = logging.getLogger(__name__)

# In pixels: width and height of a frame, height of the two lines of text below, space around them.
BOX = (96, 192)
CAPTION, MARGIN = 30, 6
COLUMNS = 11  # the query and ten entries
_GRAY, _QUERY = (200, 200, 200), (40, 40, 40)  # red would say that the query is wrong
_SIZE = 11  # of the text


def write_pictures(
    folder: str | os.PathLike,
    lists: Sequence[tuple[str, Sequence[str | None], Sequence[tuple[str, str]]]],
) -> list[str]:
    """Write a picture for each ranked list, ``001-anna.jpg``.

    Args:
        folder: it is created if it does not exist.
        lists: for each query its name, the images or videos of the query and of the entries (None:
            not known), and two lines of text for each.

    Returns:
        the files.

    Raises:
        UserError: the folder cannot be written.
    """
    read = functools.lru_cache(maxsize=256)(first_frame)  # an entry is in many lists
    files = []
    for number, (query, paths, captions) in enumerate(lists, start=1):
        picture = draw_list([read(path) if path else None for path in paths], captions)
        name = re.sub(r"[^\w.-]+", "_", query)[-60:]
        files.append(os.path.join(folder, f"{number:03d}-{name}.jpg"))
        write_output(files[-1], functools.partial(picture.save, format="JPEG", quality=90))
    texts = {text for _, _, captions in lists for lines in captions for text in lines}
    unknown = {letter for text in texts for letter in font_for(letters_of(text))[1]}
    if unknown := {letter for letter in unknown if letter.isprintable()}:  # no bytes of a bad name
        logger.warning(
            "No font of this machine has the letters %s: the pictures show question marks; install "
            "a font, such as Debian's fonts-noto-cjk",
            "".join(sorted(unknown)[:20]),
        )
    return files


def prepare_pictures(folder: str | os.PathLike) -> None:
    """Create the folder for pictures.

    Raises:
        UserError: it cannot be created.
    """
    prepare_output(os.path.join(folder, "001.jpg"))


def first_frame(path: str) -> np.ndarray | None:
    """An image, or the first frame of a video, as uint8 RGB ``[H, W, 3]``; None, with a warning, if
    it cannot be read."""
    try:
        if not is_video(path):
            return read_frame(path)
        return to_rgb(read_video(path, lambda n: [0])[0])[0]
    except (BrokenImage, UserError) as error:
        logger.warning("No picture: %s", error)
        return None


def draw_list(
    pictures: Sequence[np.ndarray | None], captions: Sequence[tuple[str, str]]
) -> Image.Image:
    """Draw frames in rows, each scaled into a box of one size, with two lines of text below.

    Args:
        pictures: of the query, then of the entries; None: a gray box.
        captions: two lines of text for each, shortened to the width of the box.
    """
    width, height = BOX[0] + MARGIN, BOX[1] + CAPTION + MARGIN
    columns = min(len(pictures), COLUMNS)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        box = Image.new("RGB", BOX, _GRAY)
        if picture is not None:
            box = ImageOps.pad(Image.fromarray(picture), BOX, color="white")
        sheet.paste(box, (left, top))
        if place == 0:
            corners = (left - 2, top - 2, left + BOX[0] + 1, top + BOX[1] + 1)
            draw.rectangle(corners, outline=_QUERY, width=2)
        for line, text in enumerate(lines):
            font, unknown = font_for(letters_of(text))
            text = "".join("?" if letter in unknown else letter for letter in text)
            while draw.textlength(text, font) > BOX[0]:  # names of tracklets differ at their ends
                text = f"..{text.removeprefix('..')[1:]}"
            draw.text((left, top + BOX[1] + 2 + line * CAPTION // 2), text, fill="black", font=font)
    return sheet


def letters_of(text: str) -> str:
    """Each letter of a text once."""
    return "".join(sorted(set(text)))


@functools.cache
def font_for(letters: str) -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, str]:
    """A font of this machine that has all of these letters, or else as many as possible.

    Returns:
        the font, and the letters that it does not have.
    """
    if letters.isascii():
        return ImageFont.load_default(), ""
    from matplotlib.ft2font import FT2Font

    best, unknown = "", letters
    for path in _font_files():
        with contextlib.suppress(Exception):  # a damaged font, or one of a kind that is not read
            known = FT2Font(path).get_charmap()
            missing = "".join(letter for letter in letters if ord(letter) not in known)
            if not best or len(missing) < len(unknown):
                best, unknown = path, missing
        if not unknown:
            break
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont
    try:
        font = ImageFont.truetype(best, _SIZE)
    except (OSError, ImportError):  # a Pillow without FreeType
        font = ImageFont.load_default()
        unknown = "".join(letter for letter in letters if not letter.isascii())
    return font, unknown


@functools.cache
def _font_files() -> list[str]:
    """matplotlib's own font, and those of the system; sans-serif ones for Chinese first."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    own = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    system = sorted(findSystemFonts(), key=lambda path: ("CJK-Regular" not in path, path))
    return [own, *system]
