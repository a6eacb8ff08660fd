"""A model as a module that can be traced into an ONNX graph, and the operators that need other words there.

torch's tracing exporter is used, not the one on torch.export. That one writes opset 18 and later only, for which
Ascend's compiler does not document ReduceMean, and which onnx cannot convert down; and its optimizer takes the 1e-12 in
a generalized mean for 0, which moves features by 6e-4. What tracing gets wrong in turn is put in other words here, or
found by the comparison in :mod:`fastreid_star.engine.export`.

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

from fastreid_star.methods.sad import SAD
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.structures import Modality

PARTS = ("backbone", "frame level", "features")


class ExportedModel(nn.Module):
    """What the graph computes: the model in evaluation, with inputs that are all float32, see docs/export.md.

    Args:
        model: SAD or STAR, in evaluation mode.
        modality: of all clips, whose stem alone is then in the graph; None: `is_visible` says it clip by clip.
        until: where to stop, of `PARTS`: the frames' X or Y, ``[B, T, D]``, or the features ``[B, D]``.
    """

    def __init__(self, model: SAD, *, modality: Modality | None = None, until: str = "features"):
        super().__init__()
        self.model, self.modality, self.until = model, modality, until
        self.reads_skeletons = until != "backbone" and bool(
            getattr(model, "reads_skeletons", False)
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of :meth:`forward`, in order."""
        names = ["images"]
        if self.modality is None:
            names.append("is_visible")
        if self.reads_skeletons:
            names += ["skeletons", "has_skeleton"]
        return tuple(names)

    def inputs(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The inputs of :meth:`forward` for a batch of the model's."""
        known = {**batch, "is_visible": torch.as_tensor(batch["modality"]) == Modality.VISIBLE}
        return tuple(known[name].to(self.model.device, torch.float32) for name in self.input_names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.input_names, inputs, strict=True))
        model, (clips, length) = self.model, given["images"].shape[:2]
        # in evaluation every modality is normalized alike
        pixels = model.preprocess(given["images"], None)  # type: ignore[arg-type]
        low = model.backbone.low(self._stem(pixels, given.get("is_visible"), length))
        frames = model.frame_features(low).view(clips, length, -1)
        if self.until == "backbone":
            return frames
        batch: dict[str, Any] = {"modality": None}
        if self.reads_skeletons:
            batch.update(skeletons=given["skeletons"], has_skeleton=given["has_skeleton"] > 0.5)
        if self.until == "frame level":
            return model.get_submodule("corrector")(
                frames, batch["skeletons"], batch["has_skeleton"]
            ).frames
        clip, _ = model.clip_feature(frames, batch)
        return F.normalize(at_least_float32(model.heads(clip)))

    def _stem(
        self, pixels: torch.Tensor, is_visible: torch.Tensor | None, length: int
    ) -> torch.Tensor:
        backbone = self.model.backbone
        if self.modality is not None:
            stem = (
                backbone.visible_stem
                if self.modality == Modality.VISIBLE
                else backbone.infrared_stem
            )
            return stem(pixels)
        assert is_visible is not None
        # A graph has no branches that depend on data: each frame passes both stems, and keeps one result.
        visible, infrared = backbone.visible_stem(pixels), backbone.infrared_stem(pixels)
        of_frames = (
            (is_visible > 0.5)[:, None].expand(-1, length).reshape(-1, *[1] * (visible.dim() - 1))
        )
        return torch.where(of_frames, visible, infrared)


def trace(module: ExportedModel, inputs: Sequence[torch.Tensor], opset: int) -> bytes:
    """The module as a serialized ONNX model: B is free, all other sizes are those of `inputs`.

    Args:
        module: has computed these inputs before: what it keeps in caches must not be built while it is traced.
        inputs: B clips, more than one; a size of 1 may be taken for a constant.
        opset: of ONNX's operators.
    """
    names, file = (*module.input_names, "features"), io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings(), _OtherWords():
        warnings.simplefilter(
            "ignore"
        )  # about what tracing may get wrong: the comparison tells whether it did
        torch.onnx.export(
            module,
            tuple(inputs),
            file,  # type: ignore[arg-type] # with dynamo=False a file object is as good as a path
            dynamo=False,
            opset_version=opset,
            input_names=names[:-1],
            output_names=names[-1:],
            dynamic_axes={name: {0: "batch"} for name in names},
        )
    return file.getvalue()


def _explicit_attention(*args, **kwargs):
    # Without weights torch takes its fused attention, which has no ONNX form before opset 14.
    return F.multi_head_attention_forward(*args, **{**kwargs, "need_weights": True})[0], None


def _atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # The exporter's own is NaN at (0, 0), a bone whose joints coincide, and -pi in place of pi at (0, x < 0).
    upright = x == 0
    slope = (y / x.masked_fill(upright, 1)).atan()
    turned = slope + torch.where(y < 0, -math.pi, math.pi)
    return torch.where(upright, y.sign() * (math.pi / 2), torch.where(x < 0, turned, slope))


def _adaptive_avg_pool1d(x: torch.Tensor, output_size: int | Sequence[int]) -> torch.Tensor:
    # The exporter knows output sizes that divide the input's only. Here both are fixed: a weighted sum of a few each.
    size = output_size if isinstance(output_size, int) else output_size[0]
    length, out = int(x.shape[-1]), torch.arange(size)
    start, end = out * length // size, -((out + 1) * -length // size)
    offsets = torch.arange(int((end - start).max()))
    index = (start[:, None] + offsets).clamp(max=length - 1)
    count = (end - start)[:, None]
    weights = (offsets < count) / count
    picked = x.index_select(-1, index.flatten().to(x.device)).unflatten(-1, index.shape)
    return (picked * weights.to(x)).sum(-1)


def _einsum(equation: str, *operands: torch.Tensor) -> torch.Tensor:
    # The compiler for Ascend knows twenty equations, and this is none of them. A product for each part instead.
    if equation != "bpc,kpdc->bkpd":
        return torch.einsum(equation, *operands)
    tokens, weight = operands
    weight = weight.permute(1, 3, 0, 2)  # [P, C, K, D]
    products = tokens.transpose(0, 1) @ weight.flatten(2)
    return products.unflatten(2, weight.shape[2:]).permute(1, 2, 0, 3)


_REPLACEMENTS = {
    F.multi_head_attention_forward: _explicit_attention,
    torch.adaptive_avg_pool1d: _adaptive_avg_pool1d,
    torch.atan2: _atan2,
    torch.einsum: _einsum,
}


class _OtherWords(TorchFunctionMode):
    """Puts functions that the exporter or a later compiler lacks in terms of others."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _REPLACEMENTS.get(function, function)(*args, **(kwargs or {}))
