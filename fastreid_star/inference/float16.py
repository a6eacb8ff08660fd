"""An ONNX graph with the network's products in float16 and the rest in float32.

Convolutions and products with weights take most of the time and hold nearly all numbers of a
network. What they are applied to has a range that float16 can hold. The rest stays float32: powers
and norms leave the range of float16, and joints in pixels lose a quarter of a pixel in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

PRODUCTS = {"Conv", "Gemm", "MatMul"}
# they may stay in float16 between two products: no result is larger than what they are applied to
BETWEEN = {"Relu", "MaxPool", "Clip", "Identity", "Add"}


def to_float16(graph: bytes, images: str = "images") -> bytes:
    """Convert a graph; its inputs and outputs stay float32.

    A product is converted if one factor is a weight and the other depends on the images: what is
    computed from skeletons alone stays float32.

    Args:
        graph: a serialized ONNX model, whose products are in float32.
        images: the name of the input.
    """
    import onnx

    proto = onnx.load_from_string(graph)
    found = _Converter(onnx, proto.graph, images)
    for node in list(proto.graph.node):
        found.add(node)
    found.restore(value.name for value in proto.graph.output)
    del proto.graph.node[:]
    proto.graph.node.extend(found.nodes)
    used = {name for node in found.nodes for name in node.input}
    weights = [w for w in [*proto.graph.initializer, *found.weights.values()] if w.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(weights)
    del proto.graph.value_info[:]  # the types of values between the nodes
    return proto.SerializeToString()


class _Converter:
    """Goes through the nodes in order, and notes which values are in float16."""

    def __init__(self, onnx: Any, graph: Any, images: str):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.floats = {
            w.name: w for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT
        }
        self.weights: dict[str, Any] = {}  # in float16, by their names in float32
        self.of_images = {images}
        self.half: dict[str, str] = {}  # values that exist in float16 -> their names there
        self.born: set[str] = set()  # values that are computed in float16
        self.full: set[str] = set()  # values that exist in float32

    def add(self, node: Any) -> None:
        """Take over the next node, in float16 if it is worth it."""
        of_images = any(name in self.of_images for name in node.input)
        if of_images:
            self.of_images.update(node.output)
        others = [name for name in node.input if name and name not in self.floats]
        product = node.op_type in PRODUCTS and len(others) == 1
        between = node.op_type in BETWEEN and others and self.born.issuperset(others)
        copy = type(node)()
        copy.CopyFrom(node)
        if of_images and (product or between):
            copy.input[:] = [self._as_half(name) for name in node.input]
            copy.output[:] = [f"{name}.float16" for name in node.output]
            self.half.update(zip(node.output, copy.output, strict=True))
            self.born.update(node.output)
        else:
            self.restore(node.input)
            self.full.update(node.output)
        self.nodes.append(copy)

    def restore(self, names: Iterable[str]) -> None:
        """Add a cast for each of these values that exists in float16 only."""
        for name in names:
            if name in self.half and name not in self.full:
                self._cast(self.half[name], name, self.onnx.TensorProto.FLOAT)
                self.full.add(name)

    def _as_half(self, name: str) -> str:
        if not name:  # an input that is left out
            return name
        if name in self.floats:
            return self._weight(name)
        if name not in self.half:
            self.half[name] = f"{name}.float16"
            self._cast(name, self.half[name], self.onnx.TensorProto.FLOAT16)
        return self.half[name]

    def _weight(self, name: str) -> str:
        if name not in self.weights:
            numbers = self.onnx.numpy_helper.to_array(self.floats[name])
            limits = np.finfo(np.float16)
            half = numbers.clip(limits.min, limits.max).astype(np.float16)
            self.weights[name] = self.onnx.numpy_helper.from_array(half, f"{name}.float16")
        return self.weights[name].name

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(self.onnx.helper.make_node("Cast", [source], [target], to=to))
