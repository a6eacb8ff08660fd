"""Fill the templates of the report, and write the result as one self-contained HTML file."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastreid_star.files import write_output


def write_page(path: str | os.PathLike, template: str, **values: object) -> Path:
    """Fill a template of this package and write the page; see :func:`render`.

    Raises:
        UserError: the file cannot be written.
    """
    page = render(template, **values).encode(errors="replace")  # names of files need not be UTF-8
    write_output(path, lambda file: file.write(page))
    return Path(path)


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
    made.filters.update(number=number, signed=signed, config_value=config_value)
    return made


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


def config_value(value: object) -> str:
    """A config value as a user would write it, without the brackets of a list."""
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return str(value) or "(empty)"
