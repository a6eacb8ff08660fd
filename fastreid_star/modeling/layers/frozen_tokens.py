"""DINOv2 as a frozen extractor of patch tokens."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones.dinov2 import SIZES, Dinov2, embed, patch_maps
from fastreid_star.modeling.backbones.dinov2_weights import read_dinov2

CHUNK = 32  # images that are encoded at once: limits the memory, not the result


class TokenMaps(NamedTuple):
    """Patch tokens of N images as maps.

    Args:
        last: after the last norm, ``[N, D, h, w]``.
        blocks: the outputs of four blocks, evenly spaced and before the last norm, concatenated and
            layer-normalized together without weights, ``[N, 4D, h, w]``.
    """

    last: torch.Tensor
    blocks: torch.Tensor


class FrozenTokens(nn.Module):
    """A vision transformer that turns images into tokens and never learns.

    Its weights move with the module between devices, and are neither parameters nor part of the
    state dict: a checkpoint keeps only their SHA-256. Loading it beside other weights is an error.

    On devices other than the CPU it computes in float16, and gives float16 tokens. The CPU computes
    in the type of the images.

    Args:
        network: the transformer; it is switched to evaluation mode and frozen.
    """

    checksum: torch.Tensor

    def __init__(self, network: Dinov2):
        super().__init__()
        network = network.eval().requires_grad_(False)
        # not as a submodule: those are in the state dict, in parameters(), and in train()
        object.__setattr__(self, "network", network)
        self.width, self.grid = network.width, network.grid
        depth = len(network.blocks)
        self.layers = [depth * quarter // 4 for quarter in range(1, 5)]  # counted from 1
        self.register_buffer("checksum", checksum(network.state_dict()))

    @classmethod
    def build(cls, source: str, grid: Sequence[int]) -> FrozenTokens:
        """From the name of a size, for random weights that are always the same, or from a path.

        Raises:
            UserError: neither; or see :func:`read_dinov2`.
        """
        if source in SIZES:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return cls(Dinov2.of_size(source, grid))
        if not os.path.exists(source):
            raise UserError(
                f"DINOv2's weights {source!r} do not exist: give the path of the file, a folder "
                f"of transformers, or for random weights one of {', '.join(SIZES)}"
            )
        return cls(Dinov2.of_weights(read_dinov2(source), grid))

    def _apply(self, fn: Callable, recurse: bool = True) -> FrozenTokens:
        network: Any = self.network
        network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> TokenMaps:
        """Images ``[N, 3, H, W]``, normalized, to tokens; no gradient reaches the images."""
        # a traced graph must not depend on the number of images
        whole = torch.jit.is_tracing() or torch.compiler.is_compiling()  # that of torch.export too
        chunks = [images] if whole else images.split(CHUNK)
        found = [self._encode(chunk) for chunk in chunks]
        last, blocks = (torch.cat(maps) for maps in zip(*found, strict=True))
        return TokenMaps(last, blocks)

    def _encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = computes_in_half(images.device)
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=half):
            network: Any = self.network
            x = embed(network, images if half else images.to(network.cls_token.dtype))
            kept = []
            for number, block in enumerate(network.blocks, start=1):
                x = block(x)
                if number in self.layers:
                    kept += [x] * self.layers.count(number)
            joined = torch.cat(kept, dim=-1)
            tokens = (network.norm(x), F.layer_norm(joined, (4 * self.width,), eps=1e-6))
        last, blocks = (patch_maps(t.half() if half else t, self.grid) for t in tokens)
        return last, blocks

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        found = state_dict.get(f"{prefix}checksum")
        if found is not None and not torch.equal(found.cpu(), self.checksum.cpu()):
            raise UserError(
                "the checkpoint was trained with other weights of DINOv2: name the file that its "
                "training used in the config"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def computes_in_half(device: torch.device) -> bool:
    """Whether tokens are computed and kept in float16, which halves their memory."""
    return device.type != "cpu"


def checksum(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The SHA-256 of DINOv2's weights under their original names, uint8 ``[32]``."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
