"""Torch's multi-head attention between two sequences, with cheaper products on a CPU.

Shapes: B clips, T frames, D feature width, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.modeling.linear import linear, trains_on_cpu


class CrossAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention`, batch first, without dropout, whose keys are its values: parameters and numbers are its.

    In training on a CPU its products are :mod:`~fastreid_star.modeling.linear`'s. Elsewhere, in half precision, or
    where nothing is learned or the weights are wanted, torch's own code runs.

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
            return super().forward(
                query, key, key, key_padding_mask=key_bias, need_weights=need_weights
            )
        parts = [
            query.shape[-1],
            2 * query.shape[-1],
        ]  # of the packed weights: queries', then keys' and values'
        (weight_q, weight_kv), (bias_q, bias_kv) = (
            self.in_proj_weight.split(parts),
            self.in_proj_bias.split(parts),
        )
        projected = (
            linear(query, weight_q, bias_q),
            *linear(key, weight_kv, bias_kv).chunk(2, dim=-1),
        )
        # [B, h, T, D / h]
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        mask = None if key_bias is None else key_bias[:, None, None]
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return linear(
            heard.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias
        ), None
