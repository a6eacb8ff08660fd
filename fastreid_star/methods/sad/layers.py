"""The graphs of SAADG: frames of an identity exchange their features.

Shapes: N frames, D feature width, C identities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import DenseGCNConv

from fastreid_star.modeling.heads.clip_head import FrameHead


def frame_pairs(
    targets: torch.Tensor, is_visible: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which frames are joined by an edge in the two graphs, bool ``[N, N]`` each.

    The intra graph joins frames of different clips of one identity in one modality: two clips make
    a complete bipartite graph, three a complete tripartite one, and one clip has no edge. The inter
    graph joins all visible frames of an identity with all its infrared ones.

    Args:
        targets: ``[N]``, identities.
        is_visible: bool ``[N]``, on the device of `targets`.
        length: T, frames of a clip; the frames of a clip follow one another.
    """
    clip = torch.arange(len(targets), device=targets.device) // length
    same_identity = targets[:, None] == targets
    same_modality = is_visible[:, None] == is_visible
    same_clip = clip[:, None] == clip
    return same_identity & same_modality & ~same_clip, same_identity & ~same_modality


class GraphBranch(nn.Module):
    """A graph convolution over frames, then a neck and a classifier.

    Kipf and Welling, "Semi-supervised classification with graph convolutional networks", ICLR 2017:
    ``Z = d^-1/2 A d^-1/2 X W + b`` with ``A = E + I``. The weight in E of an edge is the cosine of
    its two frames, through which gradients flow; d are the sums of the rows of A. X is not
    negative, so that these are 1 at least. All graphs of a batch are blocks of one matrix A.

    Args:
        width: D.
        head: neck and classifier.
    """

    def __init__(self, width: int, head: FrameHead):
        super().__init__()
        self.conv = DenseGCNConv(width, width)
        self.head = head

    def forward(
        self, frames: torch.Tensor, pairs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Frames ``[N, D]`` and pairs, bool ``[N, N]``, to logits ``[N, C]``."""
        unit = F.normalize(frames, dim=1)
        edges = (unit @ unit.T) * pairs
        loops = torch.eye(len(frames), dtype=edges.dtype, device=edges.device)
        mixed = self.conv(frames, edges + loops, add_loop=False)[0]
        return self.head(mixed, targets)["cls_outputs"]
