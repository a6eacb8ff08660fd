"""Graph attention (10) over the joints of a clip, with torch-geometric's dense layer.

Shapes: B clips, T frames, V joints, N = T V nodes, H heads, C channels of a node.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import DenseGATConv

from fastreid_star.modeling.layers.masked_batch_norm import MaskedBatchNorm
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.layers.skeleton_graph import spatial_temporal_adjacency


class SkeletonGAT(nn.Module):
    """Two layers of graph attention with ELU over the joints of a clip, then BatchNorm.

    Velickovic et al., "Graph attention networks", ICLR 2018. An invalid joint sends nothing to its
    neighbors, and its own features are zeros.

    Args:
        in_channels: 3: x, y, score.
        hidden_channels, heads: of the first layer, whose heads are concatenated.
        out_channels: C of the second layer, which has one head.
        attention_dropout: dropout of the attention of both layers.
        dropout: dropout between the layers.
        graph: which edges, see
            :func:`~fastreid_star.modeling.layers.skeleton_graph.spatial_temporal_edges`.
        norm: BatchNorm after the second layer.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        hidden_channels: int = 16,
        heads: int = 2,
        out_channels: int = 12,
        attention_dropout: float = 0.6,
        dropout: float = 0.3,
        graph: str = "standardized",
        norm: bool = True,
    ):
        super().__init__()
        self.graph, self.dropout, self.out_channels = graph, dropout, out_channels
        self.conv1 = DenseGATConv(in_channels, hidden_channels, heads, dropout=attention_dropout)
        self.conv2 = DenseGATConv(hidden_channels * heads, out_channels, dropout=attention_dropout)
        self.norm = MaskedBatchNorm(out_channels) if norm else None

    def forward(
        self, joints: torch.Tensor, valid: torch.Tensor, explain: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Node features of the joints of each clip, in float32 or wider.

        Args:
            joints: ``[B, T, V, in_channels]``.
            valid: bool ``[B, T, V]``.
            explain: return the attention that each joint receives, see :func:`received_attention`.

        Returns:
            node features ``[B, T, V, C]``, and the attention ``[B, T, V]`` or None.
        """
        # int: sizes are tensors while a graph is traced for export, and no keys of a cache
        length = int(joints.shape[1])
        with torch.autocast(joints.device.type, enabled=False):
            sends = valid.flatten(1, 2)
            adjacency = spatial_temporal_adjacency(length, self.graph, joints.device)
            loops = torch.eye(adjacency.shape[0], dtype=torch.bool, device=joints.device)
            adjacency = adjacency & (sends[:, None] | loops)
            h = at_least_float32(joints.flatten(1, 2))
            h = self.conv1(h, adjacency, add_loop=False)
            h = F.dropout(F.elu(h), self.dropout, self.training)
            received = None
            if explain:
                alpha = attention_weights(self.conv2, h, adjacency).mean(-1)
                received = received_attention(alpha, valid)
            h = F.elu(self.conv2(h, adjacency, add_loop=False))
        if self.norm is not None:
            h = self.norm(h.flatten(0, 1), sends.flatten()[:, None]).view_as(h)
        return h.unflatten(1, valid.shape[1:]).masked_fill(~valid[..., None], 0), received


def attention_weights(conv: DenseGATConv, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
    """The attention that a layer computes and does not return, without dropout.

    ``alpha_ij = softmax_j LeakyReLU(a_dst . W x_i + a_src . W x_j)`` over i's neighbors j.

    Args:
        conv: the layer.
        x: node features ``[B, N, in_channels]``.
        adjacency: bool ``[B, N, N]``, with self-loops.

    Returns:
        ``[B, N, N, H]``.
    """
    h = conv.lin(x).unflatten(-1, (conv.heads, conv.out_channels))
    source, target = ((h * vector).sum(-1) for vector in (conv.att_src, conv.att_dst))
    alpha = F.leaky_relu(source[:, None] + target[:, :, None], conv.negative_slope)
    return alpha.masked_fill(~adjacency[..., None], float("-inf")).softmax(2)


def received_attention(alpha: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The attention that each joint receives from itself and its neighbors.

    Args:
        alpha: ``[B, N, N]``: row i listens to column j.
        valid: bool ``[B, T, V]``; invalid joints do not count as listeners.

    Returns:
        ``[B, T, V]``; 1 on average where all joints are valid.
    """
    listeners = valid.flatten(1, 2)[..., None].to(alpha.dtype)
    return (alpha * listeners).sum(1).view(valid.shape)
