"""DINOv2's vision transformer, with the names of its original weights.

Oquab et al., "DINOv2: learning robust visual features without supervision", TMLR 2024. The network
is written here, and not taken from transformers, for three reasons: its position embedding must be
resized as in the original, which transformers does not do; the same code reads both layouts of the
weights; and no further package is needed.

Shapes: N images, D width, L = h w patches on a grid of h rows and w columns, p pixels of a patch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones.dinov2_weights import read_dinov2
from fastreid_star.modeling.backbones.splits import BackboneSplit, register_split

# width, depth, pixels of a patch, rows and columns of the position embedding
SIZES = {
    "vits14": (384, 12, 14, 37),
    "vitb14": (768, 12, 14, 37),
    "vitl14": (1024, 24, 14, 37),
    "tiny": (64, 4, 4, 16),
}
HEAD_WIDTH = 64  # of every published size
OFFSET = 0.1  # the original adds it to the number of patches before it divides, see below


def resize_positions(positions: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The position embedding of the patches on another grid, as the original DINOv2 resizes it.

    Bicubic, with the scale factors (h + 0.1) / M and (w + 0.1) / M. The 0.1 was meant against
    rounding errors, but the factors also place the samples: resizing to the size (h, w), as
    transformers does, gives other numbers. A grid of M x M is returned as it is.

    Args:
        positions: ``[M * M, D]``.
        grid: h and w.

    Returns:
        ``[h * w, D]``.
    """
    side = round(len(positions) ** 0.5)
    if tuple(grid) == (side, side):
        return positions
    maps = positions.T.reshape(1, -1, side, side)
    scale = [(count + OFFSET) / side for count in grid]
    resized = F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].T


def embed(net: Any, images: torch.Tensor) -> torch.Tensor:
    """Images ``[N, 3, H, W]``, normalized, to the input of the first block ``[N, 1 + L, D]``.

    Args:
        net: has the `cls_token`, `pos_embed`, `patch_embed`, `grid` and `patch` of
            :class:`Dinov2`.
        images: of any size.
    """
    size = [count * net.patch for count in net.grid]
    if list(images.shape[2:]) != size:
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    patches = net.patch_embed(images) + resize_positions(net.pos_embed[0, 1:], net.grid)
    first = (net.cls_token + net.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
    return torch.cat([first.to(patches.dtype), patches], dim=1)


def patch_maps(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens ``[N, 1 + L, D]`` to the maps of their patches ``[N, D, h, w]``."""
    maps = tokens[:, 1:].transpose(1, 2)
    return maps.reshape(maps.shape[0], int(maps.shape[1]), *grid)


class LayerScale(nn.Module):
    """A factor for each channel of a residual branch."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention of tokens ``[N, 1 + L, D]``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(images, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One block of the transformer, on tokens ``[N, 1 + L, D]``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Images ``[N, 3, h p, w p]`` to patches ``[N, L, D]``. Grad-CAM reads the grid here."""

    def __init__(self, width: int, patch: int, grid: Sequence[int]):
        super().__init__()
        self.num_y, self.num_x = grid
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Dinov2(nn.Module):
    """The transformer without registers. The names of its parameters are the original ones.

    Images of any size are resized to a fixed grid of patches (bilinear), so that no parameter
    depends on the size of the images.

    Args:
        width: D, a multiple of 64 or less than that: a head has 64 channels.
        depth: number of blocks.
        patch: p.
        side: M, rows and columns of the position embedding.
        grid: h and w of the patches.
    """

    def __init__(self, *, width: int, depth: int, patch: int, side: int, grid: Sequence[int]):
        super().__init__()
        self.width, self.grid, self.patch = width, (int(grid[0]), int(grid[1])), patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.patch_embed = PatchEmbed(width, patch, self.grid)
        heads = max(width // HEAD_WIDTH, 1)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for weight in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=width**-0.5)
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images ``[N, 3, H, W]`` to maps of the patches after the last norm, ``[N, D, h, w]``."""
        x = embed(self, images)
        for block in self.blocks:
            x = block(x)
        return patch_maps(self.norm(x), self.grid)

    @classmethod
    def of_size(cls, name: str, grid: Sequence[int]) -> Dinov2:
        """A network of a published size, or ``tiny``, with random weights.

        Raises:
            UserError: an unknown name.
        """
        if name not in SIZES:
            raise UserError(f"DINOv2 has no size {name!r}: choose one of {', '.join(SIZES)}")
        width, depth, patch, side = SIZES[name]
        return cls(width=width, depth=depth, patch=patch, side=side, grid=grid)

    @classmethod
    def of_weights(cls, state: Mapping[str, torch.Tensor], grid: Sequence[int]) -> Dinov2:
        """A network with these weights, of the size that they have.

        Args:
            state: of :func:`~fastreid_star.modeling.backbones.dinov2_weights.read_dinov2`.
            grid: h and w of the patches.

        Raises:
            UserError: the weights are not those of a whole network without registers.
        """
        try:
            width, _, patch, _ = state["patch_embed.proj.weight"].shape
            side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(
                "these are no weights of DINOv2: patch_embed.proj.weight or pos_embed is missing, "
                "or has another shape"
            ) from error
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        network = cls(width=width, depth=depth, patch=patch, side=side, grid=grid)
        own = network.state_dict()
        wrong = [n for n in own if n not in state or state[n].shape != own[n].shape]
        wrong += [name for name in state if name not in own]
        if wrong:
            raise UserError(
                f"the weights do not fit a DINOv2 of width {width} and depth {depth} "
                f"({', '.join(wrong[:3])}): networks with registers and ViT-g are not supported"
            )
        network.load_state_dict(state)
        return network


class Stem(nn.Module):
    """A transformer up to its first block: images ``[N, 3, H, W]`` to tokens ``[N, 1 + L, D]``."""

    def __init__(self, net: Dinov2):
        super().__init__()
        self.grid, self.patch = net.grid, net.patch
        self.cls_token, self.pos_embed = net.cls_token, net.pos_embed
        self.patch_embed = net.patch_embed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return embed(self, images)


class ToMaps(nn.Module):
    """Tokens ``[N, 1 + L, D]`` to the maps of their patches ``[N, D, h, w]``."""

    def __init__(self, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return patch_maps(tokens, self.grid)


@register_split(Dinov2)
def _split(net: Dinov2) -> BackboneSplit:
    depth = len(net.blocks)
    bounds = [depth * quarter // 4 for quarter in range(5)]
    stages = [nn.Sequential(*net.blocks[a:b]) for a, b in itertools.pairwise(bounds)]
    stages[-1] = nn.Sequential(*stages[-1], net.norm, ToMaps(net.grid))
    return BackboneSplit(Stem(net), [*stages], spatial_dims=(1,))


@BACKBONE_REGISTRY.register()
def build_dinov2_backbone(cfg: CfgNode) -> Dinov2:
    """``MODEL.BACKBONE.NAME: build_dinov2_backbone``: patch tokens as maps, all weights trained.

    ``DEPTH`` is a name of :data:`SIZES`, ``PRETRAIN_PATH`` the original file. The grid has one
    patch for each p pixels of ``INPUT.SIZE_TRAIN``, rounded.

    Raises:
        UserError: an unknown size, or pretrained weights that are missing or of another size.
    """
    node = cfg.MODEL.BACKBONE
    if node.DEPTH not in SIZES:
        raise UserError(f"MODEL.BACKBONE.DEPTH is {node.DEPTH}: DINOv2 has {', '.join(SIZES)}")
    patch = SIZES[node.DEPTH][2]
    grid = [max(round(side / patch), 1) for side in cfg.INPUT.SIZE_TRAIN]
    network = Dinov2.of_size(node.DEPTH, grid)
    if not node.PRETRAIN:
        return network
    if not node.PRETRAIN_PATH:
        raise UserError(
            "MODEL.BACKBONE.PRETRAIN needs a file of DINOv2's weights: set "
            "MODEL.BACKBONE.PRETRAIN_PATH to it, or MODEL.BACKBONE.PRETRAIN to False"
        )
    found = Dinov2.of_weights(read_dinov2(node.PRETRAIN_PATH), grid)
    if (found.width, len(found.blocks)) != (network.width, len(network.blocks)):
        raise UserError(
            f"MODEL.BACKBONE.PRETRAIN_PATH holds a DINOv2 of width {found.width} and depth "
            f"{len(found.blocks)}, not MODEL.BACKBONE.DEPTH {node.DEPTH}"
        )
    return found
