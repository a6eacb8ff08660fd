"""The parts of the benchmark, a file each: a function of the options that gives one figure after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.parts import (
    drift,
    evaluation,
    loader,
    machine,
    memory,
    opening,
    pose,
    scaling,
    start,
    step,
    store,
)

Part = Callable[[Options], Iterator[Figure]]

# in the order in which they run; the first line of a function's docstring says what it measures
PARTS: dict[str, Part] = {
    "machine": machine.figures,
    "open": opening.figures,
    "store": store.figures,
    "loader": loader.figures,
    "step": step.figures,
    "scaling": scaling.figures,
    "memory": memory.figures,
    "evaluation": evaluation.figures,
    "start": start.figures,
    "drift": drift.figures,
    "pose": pose.figures,
}
ON_REQUEST = {
    "drift",
    "pose",
}  # only where named: one takes long, the other needs an environment of its own
