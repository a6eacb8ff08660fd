"""Times of several ways to do the same work, measured in turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm


@dataclass(frozen=True)
class Timing:
    """What one side took.

    Args:
        seconds: of each repeat, in order.
        processes: that share the repeats, one after the other, each as many.
    """

    seconds: tuple[float, ...]
    processes: int = 1

    @classmethod
    def joined(cls, timings: Sequence[Timing]) -> Timing:
        """The same side in several processes, each with as many repeats as the others."""
        return cls(tuple(itertools.chain(*(timing.seconds for timing in timings))), len(timings))

    @property
    def best(self) -> float:
        """The fastest repeat: whatever else the machine does makes a run slower, never faster.

        Of several processes each one's, on average: the same work is faster in some than in others.
        """
        return float(np.reshape(self.seconds, (self.processes, -1)).min(axis=1).mean())

    @property
    def median(self) -> float:
        """The middle repeat."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """How far the median lies above the best, as a share: how noisy the machine was."""
        return self.median / self.best - 1

    def __str__(self) -> str:
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        return f"best of {len(self.seconds) // self.processes}{each}, median +{self.spread:.0%}"


def in_turns(
    sides: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warm_up: int = 1,
    synchronize: Callable[[], object] = lambda: None,
    title: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run all sides once, then all of them again, and so on: what disturbs the machine disturbs all alike.

    Every other round runs backwards, so that no side always follows the same one.

    Args:
        sides: name -> the work.
        repeats: rounds that count.
        warm_up: rounds before them that do not.
        synchronize: waits until the device is done; called before each reading of the clock.
        title: of the progress bar; empty: none.
        clock: seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with tqdm(
        total=(warm_up + repeats) * len(sides), desc=title, disable=not title, leave=False
    ) as bar:
        for round_ in range(warm_up + repeats):
            for name in list(sides)[:: -1 if round_ % 2 else 1]:
                bar.set_postfix_str(name)
                synchronize()
                start = clock()
                sides[name]()
                synchronize()
                if round_ >= warm_up:
                    seconds[name].append(clock() - start)
                bar.update()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass(frozen=True)
class Line:
    """A straight line through measured costs.

    Args:
        slope: cost of one more.
        intercept: cost that is there whatever the size.
        residual: the largest distance of a cost from the line, as a share of that cost.
    """

    slope: float
    intercept: float
    residual: float


def fit_line(sizes, costs) -> Line:
    """Least squares of costs over sizes."""
    sizes, costs = np.asarray(sizes, float), np.asarray(costs, float)
    slope, intercept = np.polyfit(sizes, costs, 1)
    residual = np.abs(intercept + slope * sizes - costs) / costs
    return Line(float(slope), float(intercept), float(residual.max()))
