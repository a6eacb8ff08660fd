"""Where a number that is not finite comes from: every operator of a step, forward and backward, is looked at.

Slow by two orders of magnitude, and of no effect on what is computed.
"""

from __future__ import annotations

import linecache
import math
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TORCH = os.path.dirname(torch.__file__) + os.sep
_UNFILLED = ("empty", "new_empty")  # whatever lay in memory before


@dataclass(frozen=True)
class Range:
    """What numbers a tensor holds.

    Args:
        low, high: of the finite ones; NaN where there is none.
        bad: how many are not finite.
        count: how many there are.
    """

    low: float
    high: float
    bad: int
    count: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Range:
        """A floating point tensor's."""
        values = tensor.detach().flatten()
        finite = values[values.isfinite()]
        low, high = (
            (finite.min().item(), finite.max().item()) if len(finite) else (math.nan, math.nan)
        )
        return cls(float(low), float(high), len(values) - len(finite), len(values))

    def __str__(self) -> str:
        if self.bad == self.count:
            return "nothing finite" if self.count else "empty"
        share = f", {100 * self.bad / self.count:.3g} % not finite" if self.bad else ""
        return f"{self.low:.3g} .. {self.high:.3g}{share}"

    @property
    def magnitude(self) -> float:
        """The largest absolute value among the finite ones; 0 where there is none."""
        return max(abs(self.low), abs(self.high)) if self.bad < self.count else 0.0


@dataclass(frozen=True)
class Birth:
    """An operator that made something not finite of finite numbers, a NaN of infinities, or a tensor that came in so.

    Args:
        number: in the order of the step.
        operator: such as ``aten::log``; empty for what came in.
        module: path of the module, or name of the tensor that came in; empty where it is not known.
        line: ``file:line in function: source`` of the code that asked for it.
        backward: in the backward pass; module and line are then the forward pass's.
        inputs: ranges of the operator's inputs.
        output: range of the result.
    """

    number: int
    operator: str
    module: str
    line: str
    backward: bool
    inputs: tuple[Range, ...]
    output: Range


@dataclass(frozen=True)
class Passage:
    """A module without children, passed once.

    Args:
        module: its path, with ``#2`` from the second pass on.
        kind: its class.
        input: of the first tensor it took; None where it took none.
        output: of the first tensor it gave; in the list of gradients: the gradient of that tensor.
    """

    module: str
    kind: str
    input: Range | None
    output: Range


class Trace(TorchDispatchMode):
    """A context for one forward and backward pass of a model.

    Args:
        model: what is to run.
        inputs: tensors by name, beside the model's parameters, that may not be finite from the start.

    Attributes:
        births: in the order of the step.
        forward: passages in the order of the forward pass.
        backward: the same modules' gradients, in the order of the backward pass.
    """

    def __init__(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]):
        super().__init__()
        self.births: list[Birth] = []
        self.forward: list[Passage] = []
        self.backward: list[Passage] = []
        self._bad_gradients: dict[str, frozenset[int]] = {}
        self._sources: dict[
            int, frozenset[int]
        ] = {}  # storage -> the births that its content comes from
        self._stack: list[str] = []
        self._taken: list[Range | None] = []
        self._passes: Counter[str] = Counter()
        self._quiet = False
        self._hooks = []
        for name, tensor in inputs.items():
            self._came_in(name, tensor)
        for name, parameter in model.named_parameters():
            self._came_in(name, parameter)
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(self._arriving(name)))
        for name, module in model.named_modules():
            leaf = not any(True for _ in module.children())
            self._hooks.append(module.register_forward_pre_hook(self._entering(name, leaf)))
            self._hooks.append(module.register_forward_hook(self._leaving(name, leaf)))

    def __enter__(self):
        # keeps with each node of the graph the line that made it
        self._anomaly = torch.autograd.set_detect_anomaly(True, check_nan=False)
        return super().__enter__()

    def __exit__(self, *raised):
        self._anomaly.__exit__()
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*raised)

    def origin(self, tensor: torch.Tensor) -> Birth | None:
        """The first birth that this tensor's content comes from; None where it comes from none."""
        return self._first(self._sources_of(tensor))

    @property
    def bad_gradients(self) -> list[str]:
        """Parameters whose gradient is not finite, in the order of the backward pass."""
        return list(self._bad_gradients)

    def origin_of_gradients(self) -> Birth | None:
        """The first birth that the first of :attr:`bad_gradients` comes from."""
        return self._first(next(iter(self._bad_gradients.values()), frozenset()))

    def _first(self, sources: frozenset[int]) -> Birth | None:
        return self.births[min(sources)] if sources else None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._quiet:
            return func(*args, **kwargs)
        self._quiet = True
        try:
            leaves = tree_leaves((args, kwargs))
            taken = [leaf for leaf in leaves if is_float(leaf)]
            had_nan, had_inf = (
                any(t.isnan().any() for t in taken),
                any(t.isinf().any() for t in taken),
            )
            sources = frozenset().union(
                *(self._sources_of(t) for t in taken if not t.isfinite().all())
            )
            ranges = tuple(Range.of(t) for t in taken) if not (had_nan or had_inf) else None
            asked_for = any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in leaves)
            result = func(*args, **kwargs)
            name = func._schema.name
            if name.partition("::")[2].startswith(_UNFILLED):
                return result
            for given in tree_leaves(result):
                if not is_float(given) or given.isfinite().all():
                    continue
                own = sources
                new_nan = not had_nan and bool(given.isnan().any())
                new_inf = not (had_nan or had_inf or asked_for) and bool(given.isinf().any())
                if new_nan or new_inf:
                    own = sources | {len(self.births)}
                    self.births.append(self._birth(name, ranges or (), given))
                self._sources[_key(given)] = own | (
                    self._sources_of(given) if func._schema.is_mutable else frozenset()
                )
            return result
        finally:
            self._quiet = False

    def _birth(self, operator: str, inputs: tuple[Range, ...], given: torch.Tensor) -> Birth:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            module, line = self._stack[-1] if self._stack else "", _line_of_caller()
        else:
            module, line = (
                node.metadata.get("module", ""),
                _line_of(node.metadata.get("traceback_", [])),
            )
        return Birth(
            len(self.births), operator, module, line, node is not None, inputs, Range.of(given)
        )

    def _sources_of(self, tensor: torch.Tensor) -> frozenset[int]:
        return self._sources.get(_key(tensor), frozenset())

    def _came_in(self, name: str, tensor: torch.Tensor) -> None:
        if is_float(tensor) and not tensor.isfinite().all():
            self._sources[_key(tensor)] = frozenset({len(self.births)})
            self.births.append(Birth(len(self.births), "", name, "", False, (), Range.of(tensor)))

    def _arriving(self, name: str):
        def hook(gradient):
            with _hushed(self):
                if not gradient.isfinite().all():
                    self._bad_gradients[name] = self._bad_gradients.get(
                        name, frozenset()
                    ) | self._sources_of(gradient)

        return hook

    def _entering(self, name: str, leaf: bool):
        def hook(module, args):
            self._stack.append(name)
            if leaf:
                with _hushed(self):
                    first = next((leaf for leaf in tree_leaves(args) if is_float(leaf)), None)
                    self._taken.append(None if first is None else Range.of(first))

        return hook

    def _leaving(self, name: str, leaf: bool):
        def hook(module, args, output):
            self._stack.pop()
            if not leaf:
                return
            taken = self._taken.pop()
            first = next((leaf for leaf in tree_leaves(output) if is_float(leaf)), None)
            if first is None:
                return
            self._passes[name] += 1
            label = name + (f"#{self._passes[name]}" if self._passes[name] > 1 else "")
            with _hushed(self):
                self.forward.append(Passage(label, type(module).__name__, taken, Range.of(first)))
            if first.requires_grad:
                if first.grad_fn is not None:
                    first.grad_fn.metadata["module"] = label
                first.register_hook(self._passing_back(label, type(module).__name__, taken))

        return hook

    def _passing_back(self, label: str, kind: str, taken: Range | None):
        def hook(gradient):
            with _hushed(self):
                self.backward.append(Passage(label, kind, taken, Range.of(gradient)))

        return hook


class _hushed:
    """A context in which a trace does not look at its own looking."""

    def __init__(self, trace: Trace):
        self._trace = trace

    def __enter__(self):
        self._before, self._trace._quiet = self._trace._quiet, True

    def __exit__(self, *raised):
        self._trace._quiet = self._before


def is_float(value: Any) -> bool:
    """Whether it is a tensor of floating point numbers."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _line_of_caller() -> str:
    """The innermost line outside of torch and of this file."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and not path.startswith((_TORCH, "<")):
            source = linecache.getline(path, frame.f_lineno).strip()
            return _told(path, frame.f_lineno, frame.f_code.co_name, source)
        frame = frame.f_back
    return ""


def _line_of(traceback: list[str]) -> str:
    """The same, of a formatted traceback."""
    for entry in reversed(traceback):
        found = re.match(r'\s*File "(.*?)", line (\d+), in (\S+)\n\s*(.*)', entry)
        if found and found[1] != __file__ and not found[1].startswith((_TORCH, "<")):
            return _told(
                found[1], int(found[2]), found[3], found[4].splitlines()[0] if found[4] else ""
            )
    return ""


def _told(path: str, line: int, function: str, source: str) -> str:
    return f"{os.path.basename(path)}:{line} in {function}: {source}"
