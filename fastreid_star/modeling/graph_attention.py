"""Graph attention (10) on graphs that are the same for every clip of a batch.

:class:`GraphAttention` is torch-geometric's ``GATConv`` with a table of neighbors in place of an edge list: the
same parameters by name and shape, the same numbers, fixed shapes, no scatter in the forward pass, and the attention
in a form that can be read. Nodes come first inside, ``[N, B, ...]``: a gather then copies whole rows.

Shapes: B clips, T frames, V joints, N = T V nodes, M neighbors with the node itself, H heads, C channels a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.modeling.pooling import at_least_float32
from fastreid_star.modeling.skeleton_graph import Neighbors, spatial_temporal_neighbors


def neighborhood_softmax(scores: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
    """Softmax over each node's open neighbors: ``[N, M, B, H]``, 0 where closed, sum 1 over M."""
    return scores.masked_fill(~is_open, float("-inf")).softmax(1)


class GraphAttention(nn.Module):
    """``h'_i = concat_heads sum_j alpha_ij W h_j + b``, j over i's neighbors and i itself.

    ``alpha_ij = softmax_j LeakyReLU(a_dst . W h_i + a_src . W h_j)``. Velickovic et al., "Graph attention networks",
    ICLR 2018. The ELU of equation (10) is the caller's.

    Args:
        in_channels: width of the node features.
        out_channels: C.
        heads: H.
        dropout: share of attention weights that is dropped in training.
        negative_slope: of the LeakyReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        heads: int = 1,
        dropout: float = 0.0,
        negative_slope: float = 0.2,
    ):
        super().__init__()
        self.heads, self.out_channels = heads, out_channels
        self.dropout, self.negative_slope = dropout, negative_slope
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        self.bias = nn.Parameter(torch.zeros(heads * out_channels))
        for weight in (self.lin.weight, self.att_src, self.att_dst):
            nn.init.xavier_uniform_(weight)  # GATConv's "glorot": of the last two axes

    def forward(
        self, x: torch.Tensor, neighbors: Neighbors, sends: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One round of attention, at least in float32.

        Args:
            x: ``[B, N, in_channels]``.
            neighbors: the graph.
            sends: bool ``[B, N]``: nodes whose features others may see; the rest are seen by themselves alone.
                None: all.

        Returns:
            features ``[B, N, H C]``, and the attention ``[B, N, M, H]`` before dropout.
        """
        (nodes, width), rows = neighbors.index.shape, neighbors.index.flatten()
        h = at_least_float32(self.lin(x.transpose(0, 1))).unflatten(
            -1, (self.heads, self.out_channels)
        )
        source = (h * self.att_src).sum(-1).index_select(0, rows).unflatten(0, (nodes, width))
        target = (h * self.att_dst).sum(-1)[:, None]
        is_open = neighbors.mask[:, :, None, None]
        if sends is not None:
            others = sends.t().index_select(0, rows).unflatten(0, (nodes, width))[..., None]
            itself = torch.arange(width, device=x.device).eq(0)[:, None, None]
            is_open = is_open & (others | itself)
        alpha = neighborhood_softmax(F.leaky_relu(source + target, self.negative_slope), is_open)
        weights = F.dropout(alpha, self.dropout, self.training)
        messages = h.index_select(0, rows).unflatten(0, (nodes, width))  # [N, M, B, H, C]
        out = (weights[..., None] * messages).sum(1).flatten(2) + self.bias
        return out.transpose(0, 1), alpha.permute(2, 0, 1, 3)


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm whose statistics leave out what is not there; its output is 0 there.

    Zeros in place of missing skeletons would pull the statistics of the others towards 0. With nothing missing it is
    `BatchNorm1d`, of which it has the parameters. A channel that fewer than two rows of a batch have keeps its running
    statistics: one value has no variance.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Normalize the columns of x ``[R, C]``; mask: bool ``[R, C]`` or ``[R, 1]``. At least in float32."""
        x = at_least_float32(x)
        mean, var = self.running_mean, self.running_var
        if self.training:
            weight = mask.to(x.dtype).expand_as(x)
            total = weight.sum(0)
            count = total.clamp(min=1)
            mean = (x * weight).sum(0) / count
            var = ((x - mean).square() * weight).sum(0) / count
            self._update(mean.detach(), var.detach() * count / (count - 1).clamp(min=1), total > 1)
        y = (x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias
        return y.masked_fill(~mask, 0)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor, unbiased_var: torch.Tensor, seen: torch.Tensor) -> None:
        step = seen.to(mean.dtype) * self.momentum
        self.running_mean += step * (mean - self.running_mean)
        self.running_var += step * (unbiased_var - self.running_var)
        self.num_batches_tracked += 1


class SkeletonGAT(nn.Module):
    """Two layers of graph attention with ELU over the joints of a clip, then BatchNorm over the nodes.

    Args:
        in_channels: 3: x, y, score.
        hidden_channels, heads: of the first layer, whose heads are concatenated.
        out_channels: of the second layer, which has one head.
        attention_dropout: on the attention of both layers.
        dropout: between the layers.
        graph: which edges, see :func:`~fastreid_star.modeling.skeleton_graph.spatial_temporal_edges`.
        norm: BatchNorm after the second layer; the release has none.
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
        graph: str = "paper",
        norm: bool = True,
    ):
        super().__init__()
        self.graph, self.dropout, self.out_channels = graph, dropout, out_channels
        self.conv1 = GraphAttention(
            in_channels, hidden_channels, heads=heads, dropout=attention_dropout
        )
        self.conv2 = GraphAttention(
            hidden_channels * heads, out_channels, dropout=attention_dropout
        )
        self.norm = MaskedBatchNorm(out_channels) if norm else None

    def forward(
        self, joints: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Joints ``[B, T, V, in]`` and which of them count, bool ``[B, T, V]``.

        A joint that does not count sends nothing to its neighbors, and its own features are zeros.

        Returns:
            node features ``[B, T, V, out]``, and the attention of the second layer ``[B, N, M]``.
        """
        length, absent = joints.shape[1], ~valid[..., None]
        # int: while a graph is traced for export, sizes are tensors, and no keys of a cache
        neighbors = spatial_temporal_neighbors(int(length), self.graph, joints.device)
        sends = valid.flatten(1, 2)
        h, _ = self.conv1(joints.flatten(1, 2), neighbors, sends)
        h = F.dropout(F.elu(h), self.dropout, self.training)
        h, alpha = self.conv2(h, neighbors, sends)
        h = F.elu(h)
        if self.norm is not None:
            h = self.norm(h.flatten(0, 1), sends.flatten()[:, None]).view_as(h)
        return h.unflatten(1, valid.shape[1:]).masked_fill(absent, 0), alpha.squeeze(-1)


def received_attention(
    alpha: torch.Tensor, valid: torch.Tensor, graph: str = "paper"
) -> torch.Tensor:
    """How much attention each joint gets from itself and its neighbors, ``[B, T, V]``; 1 on average where all count.

    Args:
        alpha: ``[B, N, M]``, from :class:`SkeletonGAT`.
        valid: bool ``[B, T, V]``: who counts as a listener.
        graph: as of the layer.
    """
    neighbors = spatial_temporal_neighbors(valid.shape[1], graph, alpha.device)
    given = alpha * valid.flatten(1, 2)[..., None].to(alpha.dtype)
    received = torch.zeros_like(alpha[..., 0])
    return received.index_add(1, neighbors.index.flatten(), given.flatten(1, 2)).view(valid.shape)
