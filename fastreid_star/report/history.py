"""What metrics.json remembers of a training run: losses, rates and evaluations over the iterations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastreid_star.errors import UserError


@dataclass(frozen=True)
class History:
    """The lines of metrics.json, in ascending order of their iteration, each iteration once.

    Args:
        lines: ``{"iteration": 24, "epoch": 2.5, "lr": 0.01, ...}``; iterations count from 0, and `epoch` is how many
            were done. All lines have it or none.
    """

    lines: tuple[dict, ...]

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """One number over training: how far it was at each value, in :attr:`unit`, and the values."""
        lines = [line for line in self.lines if name in line]
        places = [
            float(line["epoch"]) if "epoch" in line else line["iteration"] + 1 for line in lines
        ]
        return places, [float(line[name]) for line in lines]

    @property
    def unit(self) -> str:
        """What the places of :meth:`series` count."""
        return "epoch" if self.lines and "epoch" in self.lines[0] else "iteration"

    def names(self, start: str) -> list[str]:
        """The numbers whose names begin with `start`, in the order in which they first appear."""
        return list(
            dict.fromkeys(name for line in self.lines for name in line if name.startswith(start))
        )


def read_history(
    path: str | Path, *, eval_period: int, max_epoch: int, key: str = "I2V/mAP"
) -> History | None:
    """Read metrics.json; of a run that was interrupted or started anew, what was overtaken is left out.

    Args:
        path: the file; where there is none, nothing was trained in this folder.
        eval_period: TEST.EVAL_PERIOD of the run. Where the lines do not say their epoch, as fast-reid's do not, the
            first evaluation tells how long one is, unless a later one contradicts it.
        max_epoch: SOLVER.MAX_EPOCH of the run.
        key: a number that evaluations alone have.

    Raises:
        UserError: a line other than the last, which an interruption may have cut off, is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return None
    texts = path.read_text(encoding="utf-8").splitlines()
    lines: list[dict] = []
    for number, text in enumerate(texts, start=1):
        line = _parse(text)
        if line is None:
            if number == len(texts):
                break
            raise UserError(
                f"{path}: line {number} is damaged; restore the file, or move it away to do without"
            )
        while lines and lines[-1]["iteration"] >= line["iteration"]:
            lines.pop()
        lines.append(line)
    if not all("epoch" in line for line in lines):
        length = _told_length(lines) or _epoch_length(lines, eval_period, max_epoch, key)
        for line in lines:
            if length is None:
                line.pop("epoch", None)
            else:
                line.setdefault("epoch", (line["iteration"] + 1) / length)
    return History(tuple(lines))


def _parse(text: str) -> dict | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("iteration"), int) else None


def _told_length(lines: Sequence[dict]) -> int | None:
    lengths = {
        round((line["iteration"] + 1) / line["epoch"]) for line in lines if line.get("epoch")
    }
    return lengths.pop() if len(lengths) == 1 else None


def _epoch_length(lines: Sequence[dict], eval_period: int, max_epoch: int, key: str) -> int | None:
    evaluated = [line["iteration"] + 1 for line in lines if key in line]
    if not evaluated or eval_period < 1:
        return None
    length, rest = divmod(evaluated[0], min(eval_period, max_epoch))
    if rest or any(end % length or end > length * max_epoch for end in evaluated):
        return None
    return length
