"""Torch's multi-head attention between two sequences, with cheaper products and gradients on a CPU.

Shapes: B clips, T frames, D feature width, h heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from fastreid_star.modeling.linear import linear, product, trains_on_cpu


class CrossAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention`, batch first, without dropout, whose keys are its values: parameters and numbers are its.

    It keeps the weights of queries, keys and values in one matrix. Left to autograd, the gradients of its parts are
    computed apart and then copied into one, which for D = 2048 on a CPU is an eighth of the attention's time; the
    products there are :mod:`~fastreid_star.modeling.linear`'s. Elsewhere, in half precision, or where nothing is
    learned or the weights are wanted, torch's own code runs.

    Args:
        width: D.
        heads: h.
    """

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, batch_first=True)

    def forward(  # type: ignore[override]
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        *,
        key_bias: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Queries ``[B, T, D]`` look at keys ``[B, S, D]``.

        Args:
            query, key: as above.
            key_bias: ``[B, S]``, added to every logit of a key; None: 0.
            need_weights: return the weights too.

        Returns:
            ``[B, T, D]``, and the weights, mean over the heads, ``[B, T, S]``, or None.
        """
        if need_weights or not trains_on_cpu(query):
            return super().forward(query, key, key, key_padding_mask=key_bias, need_weights=need_weights)
        projected: tuple[torch.Tensor, torch.Tensor] = _Projection.apply(
            query, key, self.in_proj_weight, self.in_proj_bias
        )
        # [B, h, T, D / h]
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (projected[0], *projected[1].chunk(2, dim=-1))
        )
        mask = None if key_bias is None else key_bias[:, None, None]
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return linear(heard.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias), None


class _Projection(torch.autograd.Function):
    """Queries by the first third of the packed weights, keys and values by the rest."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(query, key, weight)
        width = weight.shape[1]
        return product(query, weight[:width], bias[:width]), product(key, weight[width:], bias[width:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_q: torch.Tensor, by_kv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, weight = ctx.saved_tensors
        width = weight.shape[1]
        rows_q, rows_kv = by_q.flatten(0, -2), by_kv.flatten(0, -2)
        by_weight = torch.empty_like(weight)
        torch.mm(rows_q.T, query.flatten(0, -2), out=by_weight[:width])
        torch.mm(rows_kv.T, key.flatten(0, -2), out=by_weight[width:])
        by_bias = torch.cat([rows_q.sum(0), rows_kv.sum(0)])
        return product(by_q, weight[:width].T), product(by_kv, weight[width:].T), by_weight, by_bias
