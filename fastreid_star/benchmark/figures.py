"""What the benchmark gives: figures, as a table to read, as JSON and as a table in a document."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from tabulate import tabulate

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
_NOTE_WIDTH = 70  # in a terminal
_HEADERS = (
    "figure",
    "value",
    "unit",
    "limit",
    "ratio",
    "the limit, and what else there is to know",
)


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        name: lower-case words joined by underscores; the same from version to version.
        value: in `unit`.
        unit: as a reader would write it, e.g. ``frames/s``.
        limit: what the same work takes without what is measured, in `unit`, from the same run; None: there is none.
        ratio: value / limit.
        note: what the limit is, and what else a reader must know.

    Raises:
        ValueError: the name is no such name, or a number is not finite.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    ratio: float | None = None
    note: str = ""

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                f"{self.name!r} is no name of a figure: lower-case words joined by underscores"
            )
        for number in (self.value, self.limit, self.ratio):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"figure {self.name} has a number that is not finite: {self}")

    @classmethod
    def against(cls, name: str, value: float, unit: str, limit: float, note: str) -> Figure:
        """A figure beside its limit; `note` says what the limit is."""
        return cls(name, value, unit, limit, value / limit, note)


def format_table(figures: Iterable[Figure]) -> str:
    """The figures as a table for a terminal, a line each."""
    return tabulate(
        _rows(figures),
        headers=_HEADERS,
        tablefmt="plain",
        disable_numparse=True,
        colalign=_ALIGN,
        maxcolwidths=[None] * 5 + [_NOTE_WIDTH],
    )


def format_markdown(figures: Iterable[Figure]) -> str:
    """The figures as a table of a Markdown document."""
    rows = [[f"`{row[0]}`", *row[1:]] for row in _rows(figures)]
    return tabulate(rows, headers=_HEADERS, tablefmt="pipe", disable_numparse=True, colalign=_ALIGN)


_ALIGN = ("left", "right", "left", "right", "right", "left")


def _rows(figures: Iterable[Figure]) -> list[list[str]]:
    return [
        [f.name, number(f.value), f.unit, number(f.limit), number(f.ratio), f.note] for f in figures
    ]


def number(value: float | None) -> str:
    """Three significant digits, and whatever more stands before the point; None is nothing."""
    if value is None:
        return ""
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def write_json(path: str | os.PathLike, figures: Sequence[Figure]) -> None:
    """Write a list of objects with `name`, `value`, `unit`, `limit`, `ratio` and, where there is one, `note`."""
    rows = [
        {key: value for key, value in asdict(f).items() if key != "note" or value} for f in figures
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike) -> list[Figure]:
    """What :func:`write_json` wrote.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return [Figure(**row) for row in json.load(file)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        known = ", ".join(field.name for field in fields(Figure))
        raise UserError(
            f"{path} is no list of figures ({known}): give a file that --json has written"
        ) from error


def write_markdown(path: str | os.PathLike, figures: Sequence[Figure]) -> None:
    """Write the table into a document between its two marks, or, where there is no such file, into a new one.

    Raises:
        UserError: as :func:`around_table`.
    """
    before, after = around_table(path)
    text = f"{before}{BEGIN}\n\n{format_markdown(figures)}\n\n{END}{after}"
    write_whole(path, lambda file: file.write(text.encode()))


def around_table(path: str | os.PathLike) -> tuple[str, str]:
    """What stands before and after the marked place of the table in a document, or will in one that is not there yet.

    Raises:
        UserError: the file is there and does not have each mark once, in their order.
    """
    if not os.path.exists(path):
        return "", "\n"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise UserError(
            f"{path} has no place for the table: put the lines {BEGIN} and {END} into it, once each"
        )
    return text[:begin], text[end + len(END) :]
