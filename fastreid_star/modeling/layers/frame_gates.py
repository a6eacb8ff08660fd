"""A gate for each frame of a clip, with weights of its own for each position in the clip.

Shapes: B clips, T frames, D feature width.
"""

from __future__ import annotations

import torch
from torch import nn

from fastreid_star.errors import UserError


class FrameGate(nn.Module):
    """``sigmoid(V relu(U (W c + b + x) / 2))``: what the clip says of one frame's channels.

    U and V are a squeeze-and-excitation pair without bias (Hu et al., CVPR 2018).

    Args:
        width: D.
        reduction: U has D / `reduction` outputs.
    """

    def __init__(self, width: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, width // reduction)
        self.context = nn.Linear(width, width)
        self.squeeze = nn.Linear(width, hidden, bias=False)
        self.excite = nn.Linear(hidden, width, bias=False)

    def forward(self, context: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """Context and frame, ``[B, D]`` both, to factors from 0 to 1, ``[B, D]``."""
        mixed = (self.context(context) + frame) / 2
        return self.excite(self.squeeze(mixed).relu()).sigmoid()


class FrameGates(nn.Module):
    """A :class:`FrameGate` for each position: so the network is tied to clips of one length.

    Args:
        width: D.
        length: T.
    """

    def __init__(self, width: int, length: int):
        super().__init__()
        self.gates = nn.ModuleList(FrameGate(width) for _ in range(length))

    def forward(self, context: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """A clip's context ``[B, D]`` and its frames ``[B, T, D]`` to factors ``[B, T, D]``.

        Raises:
            UserError: the clips have another number of frames than the network.
        """
        length = int(frames.shape[1])
        if length != len(self.gates):
            raise UserError(
                f"this network has gates for clips of {len(self.gates)} frames, one for each "
                f"position, but the clips have {length}: set INPUT.CLIP.LENGTH {len(self.gates)} "
                "(shorter tracklets are padded to it), or train another network"
            )
        factors = [gate(context, frames[:, i]) for i, gate in enumerate(self.gates)]
        return torch.stack(factors, dim=1)
