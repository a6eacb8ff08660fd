"""Fill the templates of the report and write the result as one self-contained HTML file."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole


def render(template: str, **values: object) -> str:
    """Fill a template of this package. Values are escaped unless they are marked as safe.

    Args:
        template: file name without its ending.
        values: all values that the template uses, except the time, which is added here.
    """
    values = {"made": datetime.datetime.now(), **values}
    return environment().get_template(f"{template}.html").render(**values)


def environment() -> Environment:
    """The template environment: autoescape is on and a missing value raises an error."""
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
    """Create the folder of an output file. Call it before the work, which a bad path would waste.

    Raises:
        UserError: the folder cannot be created, or `path` is an existing folder.
    """
    try:
        Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name a file to write")


def write_file(path: str | os.PathLike, text: str, *, errors: str = "replace") -> Path:
    """Write a text file completely or not at all, and return its path.

    Args:
        path: the file; its folder is created.
        text: may contain names of files that are not UTF-8.
        errors: what becomes of their bytes: ``replace`` by question marks, or ``surrogateescape``
            to keep them.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder_of(path)
    content = text.encode(errors=errors)
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return Path(path)


def file_name(path: str | os.PathLike) -> str:
    """The last part of a path as text. Bytes that are not UTF-8 become question marks."""
    return os.path.basename(os.path.abspath(path)).encode(errors="replace").decode()


def number(value: float | None, digits: int = 2) -> str:
    """``12.30``, or a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """``+1.20`` or ``−1.20`` with a real minus sign; ``0.00`` without a sign."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def percent(share: float | None) -> str:
    """A share as a whole number of percent without the sign, or a dash."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.0f}"


def config_value(value: object) -> str:
    """A config value as a user would write it, without the brackets of a list."""
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "(empty)"
    return "(empty)" if value == "" else str(value)
