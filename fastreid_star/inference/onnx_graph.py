"""A model as a module to be traced into an ONNX graph, with operators that the export supports.

torch's tracing exporter is used, not the exporter based on torch.export. That one writes opset 18
and later only, for which Ascend's compiler does not document ReduceMean, and which onnx cannot
convert down; and its optimizer replaces the 1e-12 in a generalized mean by 0, which changes
features by 6e-4. Operators that tracing gets wrong are replaced here; the comparison in
:mod:`fastreid_star.inference.export` finds any others.

Shapes: B clips, T frames, D feature width, V joints, C channels of a token.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fastreid_star.modeling.video_reid import VideoReID
from fastreid_star.structures import Modality


class ExportedModel(nn.Module):
    """The graph: the model in evaluation, with inputs that are all float32; see docs/export.md.

    Args:
        model: a model of clips, in evaluation mode.
        modality: of all clips, so that the graph has one stem only; None: the input `is_visible`
            tells it clip by clip.
    """

    def __init__(self, model: VideoReID, *, modality: Modality | None = None):
        super().__init__()
        self.model, self.modality = model, modality
        names = ["images"] if modality is not None else ["images", "is_visible"]
        if model.reads_skeletons:
            names += ["skeletons", "has_skeleton", "crop_sizes"]
        self.input_names = tuple(names)  # of forward, in order

    def inputs(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The inputs of :meth:`forward` for a batch of the model."""
        known = {**batch, "is_visible": torch.as_tensor(batch["modality"]) == Modality.VISIBLE}
        return tuple(known[name].to(self.model.device, torch.float32) for name in self.input_names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        batch: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        if "has_skeleton" in batch:
            batch["has_skeleton"] = batch["has_skeleton"] > 0.5
        if self.modality is not None:
            batch["modality"] = torch.full((len(inputs[0]),), self.modality)
        return self.model.encode(batch)["features"]


def trace(module: ExportedModel, inputs: Sequence[torch.Tensor], opset: int) -> bytes:
    """The module as a serialized ONNX model. The number of clips is free, all other sizes are
    fixed.

    Args:
        module: the module.
        inputs: of B > 1 clips; a size of 1 may be taken for a constant.
        opset: the version of ONNX's operators.
    """
    names, file = (*module.input_names, "features"), io.BytesIO()
    with torch.no_grad():
        module(
            *inputs
        )  # buffers that are built in the first call must not become part of the graph
    with torch.no_grad(), warnings.catch_warnings(), _Replaced():
        warnings.simplefilter("ignore")  # about what tracing may get wrong: the comparison finds it
        torch.onnx.export(
            module,
            tuple(inputs),
            file,  # type: ignore[arg-type] # with dynamo=False a file object is accepted
            dynamo=False,
            opset_version=opset,
            input_names=names[:-1],
            output_names=names[-1:],
            dynamic_axes={name: {0: "batch"} for name in names},
        )
    return file.getvalue()


def _explicit_attention(*args, **kwargs):
    # Without weights torch uses its fused attention, which has no ONNX form before opset 14.
    return F.multi_head_attention_forward(*args, **{**kwargs, "need_weights": True})[0], None


def _atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # The exporter's atan2 is NaN at (0, 0), a bone without length, and -pi instead of pi at (0, x <
    # 0).
    upright = x == 0
    slope = (y / x.masked_fill(upright, 1)).atan()
    turned = slope + torch.where(y < 0, -math.pi, math.pi)
    return torch.where(upright, y.sign() * (math.pi / 2), torch.where(x < 0, turned, slope))


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    # torch's fused attention has no ONNX form before opset 14.
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v


def _adaptive_avg_pool1d(x: torch.Tensor, output_size: int | Sequence[int]) -> torch.Tensor:
    # The exporter supports only output sizes that divide the input's size. Here both sizes are
    # fixed, so that each output is a weighted sum of a few inputs.
    size = output_size if isinstance(output_size, int) else output_size[0]
    length, out = int(x.shape[-1]), torch.arange(size)
    start, end = out * length // size, -((out + 1) * -length // size)
    offsets = torch.arange(int((end - start).max()))
    index = (start[:, None] + offsets).clamp(max=length - 1)
    count = (end - start)[:, None]
    weights = (offsets < count) / count
    picked = _unflatten(x.index_select(-1, index.flatten().to(x.device)), -1, index.shape)
    return (picked * weights.to(x)).sum(-1)


def _einsum(equation: str, *operands: torch.Tensor) -> torch.Tensor:
    # Ascend's compiler supports twenty equations, and this is not one of them: one product for each
    # part instead.
    if equation != "bpc,kpdc->bkpd":
        return torch.einsum(equation, *operands)
    tokens, weight = operands
    weight = weight.permute(1, 3, 0, 2)  # [P, C, K, D]
    products = tokens.transpose(0, 1) @ weight.flatten(2)
    return _unflatten(products, 2, weight.shape[2:]).permute(1, 2, 0, 3)


def _unflatten(x: torch.Tensor, dim: int, sizes: Sequence[int]) -> torch.Tensor:
    # The exporter takes the number of clips in the result for a constant.
    dim %= x.dim()
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


_REPLACEMENTS = {
    torch.Tensor.unflatten: _unflatten,
    F.multi_head_attention_forward: _explicit_attention,
    F.scaled_dot_product_attention: _attention,
    torch.adaptive_avg_pool1d: _adaptive_avg_pool1d,
    torch.atan2: _atan2,
    torch.einsum: _einsum,
}


class _Replaced(TorchFunctionMode):
    """Calls the replacements of functions that the exporter or Ascend's compiler lacks."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _REPLACEMENTS.get(function, function)(*args, **(kwargs or {}))
