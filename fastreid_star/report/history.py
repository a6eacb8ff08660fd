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
        lines: ``{"iteration": 24, "lr": 0.01, ...}``; iterations count from 0.
        epoch_length: iterations of an epoch; None: no evaluation tells.
    """

    lines: tuple[dict, ...]
    epoch_length: int | None

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """One number over training: where it was written, as :meth:`place` says it, and its values."""
        lines = [line for line in self.lines if name in line]
        return [self.place(line["iteration"]) for line in lines], [float(line[name]) for line in lines]

    def place(self, iteration: int) -> float:
        """How far training was after an iteration, in epochs where their length is known, else in iterations."""
        done = iteration + 1
        return done / self.epoch_length if self.epoch_length else done

    @property
    def unit(self) -> str:
        """What :meth:`place` counts."""
        return "epoch" if self.epoch_length else "iteration"

    def names(self, start: str) -> list[str]:
        """The numbers whose names begin with `start`, in the order in which they first appear."""
        return list(dict.fromkeys(name for line in self.lines for name in line if name.startswith(start)))


def read_history(path: str | Path, *, eval_period: int, max_epoch: int, key: str = "I2V/mAP") -> History | None:
    """Read metrics.json; of a run that was interrupted or started anew, what was overtaken is left out.

    Args:
        path: the file; where there is none, nothing was trained in this folder.
        eval_period: TEST.EVAL_PERIOD of the run; the first evaluation tells how long an epoch is, unless a later one
            contradicts it, as where the run was resumed with another period.
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
            raise UserError(f"{path}: line {number} is damaged; restore the file, or move it away to do without")
        while lines and lines[-1]["iteration"] >= line["iteration"]:
            lines.pop()
        lines.append(line)
    return History(tuple(lines), _epoch_length(lines, eval_period, max_epoch, key))


def _parse(text: str) -> dict | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("iteration"), int) else None


def _epoch_length(lines: Sequence[dict], eval_period: int, max_epoch: int, key: str) -> int | None:
    evaluated = [line["iteration"] + 1 for line in lines if key in line]
    if not evaluated or eval_period < 1:
        return None
    length, rest = divmod(evaluated[0], min(eval_period, max_epoch))
    if rest or any(end % length or end > length * max_epoch for end in evaluated):
        return None
    return length
