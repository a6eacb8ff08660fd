"""From values to one HTML file: the templates, and what they are filled with."""

from __future__ import annotations

import math
import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole


def render(template: str, **values: object) -> str:
    """Fill a template of this package; whatever is not marked as safe is escaped.

    Args:
        template: its name, without folder and ending.
        values: what it asks for, all of it.
    """
    return environment().get_template(f"{template}.html").render(**values)


def environment() -> Environment:
    """Where this package's templates live, with their filters; everything is escaped, a missing value is an error."""
    made = Environment(
        loader=PackageLoader("fastreid_star.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, signed=signed, percent=percent, config_value=config_value)
    return made


def make_folder_of(path: str | os.PathLike) -> None:
    """Make the folder of a page, and refuse what cannot be one, before the work is done.

    Raises:
        UserError: the folder cannot be made, or the page is a folder itself.
    """
    try:
        Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name the file to write")


def write_page(path: str | os.PathLike, page: str) -> int:
    """Write the page whole, making its folder, and return its size in bytes.

    Raises:
        UserError: it cannot be written.
    """
    content = page.encode(errors="replace")  # names of files need not be UTF-8
    make_folder_of(path)
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return len(content)


def file_name(path: str | os.PathLike) -> str:
    """The name of a file or folder as text: what of it is no UTF-8 becomes a question mark, which every font has."""
    return os.path.basename(os.path.abspath(path)).encode(errors="replace").decode()


def number(value: float | None, digits: int = 2) -> str:
    """``12.30``, or a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """``+1.20`` or ``−1.20``, with a minus sign as long as the plus; a plain 0.00 where that is all there is to say."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def percent(share: float | None) -> str:
    """A share as whole per cent without the sign, or a dash."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.0f}"


def config_value(value: object) -> str:
    """A config's value as one would write it, without the brackets of a list."""
    if value is None:
        return "–"
    if value == "":
        return "(empty)"
    return (
        ", ".join(map(str, value)) or "(empty)" if isinstance(value, (list, tuple)) else str(value)
    )
