"""A stem per modality, or one for both, on shared stages, out of any fast-reid backbone.

Shapes: N = B T frames, D the backbone's feature width; maps ``[N, C, h, w]``, tokens ``[N, L, D]``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import build_backbone
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones.splits import split_backbone
from fastreid_star.modeling.layers.non_local import NonLocal


class TwoStreamBackbone(nn.Module):
    """Visible and infrared frames pass a stem of their own, then the same four stages.

    The infrared stem starts as a copy of the visible one, so a backbone that comes with ImageNet
    weights fills both. Children: `visible_stem`, `infrared_stem`, `stages`, `non_local` (by the
    number of the stage). With one stream all frames pass `visible_stem`, and `infrared_stem` is
    None: the weights of both kinds have the same names.

    Args:
        backbone: any backbone that has a split (see
            :mod:`fastreid_star.modeling.backbones.splits`), weights loaded. Its modules are taken
            over, not copied.
        image_size: (height, width) of the images that training uses; the backbone is probed once
            with one such image, to learn its width and to see that the split computes what the
            backbone does.
        streams: number of stems, 1 or 2.
        non_local: for each stage the number of its last blocks that are followed by a non-local
            block over all frames of a clip. Empty: there are none.
        norm: fast-reid's name of the normalization in these blocks.

    Attributes:
        feature_width: D, the channels of the last stage's output.
        after: layers of a method that change the output of a stage, by the number of the stage.

    Raises:
        UserError: no split is known for this backbone, its split computes something else, or
            `streams` or `non_local` does not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: Sequence[int],
        *,
        streams: int = 2,
        non_local: Sequence[int] = (),
        norm: str = "BN",
    ):
        super().__init__()
        if streams not in (1, 2):
            raise UserError(f"MODEL.BACKBONE.STREAMS is {streams}: choose 1 or 2")
        expected = probe(backbone, image_size)
        split = split_backbone(backbone)
        self.visible_stem = split.stem
        self.infrared_stem = copy.deepcopy(split.stem) if streams == 2 else None
        self.stages = nn.ModuleList(split.stages)
        self.spatial_dims = split.spatial_dims
        for stem in filter(None, (self.visible_stem, self.infrared_stem)):
            found = probe(nn.Sequential(stem, *self.stages), image_size)
            limit = 1e-3 * expected.abs().max()
            if found.shape != expected.shape or (found - expected).abs().max() > limit:
                raise UserError(
                    f"the split of {type(backbone).__name__} does not compute what the backbone "
                    "does"
                )
        self.feature_width: int = expected.shape[1]
        self.non_local, self.after = nn.ModuleDict(), nn.ModuleDict()
        if any(non_local):
            self._check_non_local(non_local)
            for number, count in enumerate(non_local, start=1):
                if count:
                    below = nn.Sequential(self.visible_stem, *self.stages[:number])
                    width = probe(below, image_size).shape[1]
                    blocks = (NonLocal(width, norm=norm) for _ in range(count))
                    self.non_local[str(number)] = nn.ModuleList(blocks)

    def _check_non_local(self, counts: Sequence[int]) -> None:
        """Raise a UserError where the stages do not have so many blocks."""
        sizes = [len(_blocks(stage)) for stage in self.stages]
        if self.spatial_dims != (2, 3):
            raise UserError("MODEL.BACKBONE.NON_LOCAL needs a backbone whose stages read maps")
        if len(counts) != 4 or not all(0 <= n <= m for n, m in zip(counts, sizes, strict=True)):
            raise UserError(
                f"MODEL.BACKBONE.NON_LOCAL is {list(counts)}: give a number of blocks for each of "
                f"the four stages, at most {sizes}"
            )

    def stem(self, images: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """Each frame through the stem of its modality.

        Batches sorted by modality, either first, are cut in two without a gather; any other order
        is gathered, and put back. Which rows are whose is decided on the host, so no shape depends
        on data on the device.

        Args:
            images: ``[N, 3, H, W]``, normalized.
            is_visible: ``[N]``, bool, on the host. Or float, 0 or 1, on the images' device: then
                each frame passes both stems, and no branch depends on data (for export).

        Returns:
            the input of stage 1, rows in the order of `images`.
        """
        if self.infrared_stem is None:
            return self.visible_stem(images)
        if is_visible.is_floating_point():
            visible, infrared = self.visible_stem(images), self.infrared_stem(images)
            flags = (is_visible > 0.5).view(-1, *[1] * (visible.dim() - 1))
            return torch.where(flags, visible, infrared)
        if is_visible.all():
            return self.visible_stem(images)
        if not is_visible.any():
            return self.infrared_stem(images)
        stems = [self.visible_stem, self.infrared_stem]
        first = is_visible if is_visible[0] else ~is_visible
        cut = int(first.sum())
        if first[:cut].all():  # sorted
            first_stem, second_stem = stems if is_visible[0] else stems[::-1]
            return torch.cat([first_stem(images[:cut]), second_stem(images[cut:])])
        order = torch.cat([is_visible.nonzero(), (~is_visible).nonzero()]).flatten()
        there, back = order.to(images.device), order.argsort().to(images.device)
        return self.stem(images.index_select(0, there), is_visible[order]).index_select(0, back)

    def low(self, x: torch.Tensor, length: int = 1) -> torch.Tensor:
        """Stages 1 and 2: from the stem's output to where the attack begins.

        Args:
            x: the output of the stem; the frames of a clip follow each other.
            length: T, frames of a clip, for the non-local blocks.
        """
        return self._stage(2, self._stage(1, x, length), length)

    def stage3(self, x: torch.Tensor, length: int = 1) -> torch.Tensor:
        """Stage 3: the attack strikes before it and after it."""
        return self._stage(3, x, length)

    def stage4(self, x: torch.Tensor, length: int = 1) -> torch.Tensor:
        """Stage 4, to the last maps ``[N, D, h, w]``."""
        return self._stage(4, x, length)

    def forward(
        self, images: torch.Tensor, is_visible: torch.Tensor, length: int = 1
    ) -> torch.Tensor:
        """Images ``[N, 3, H, W]`` to the last maps ``[N, D, h, w]``; see :meth:`stem`."""
        low = self.low(self.stem(images, is_visible), length)
        return self.stage4(self.stage3(low, length), length)

    def _stage(self, number: int, x: torch.Tensor, length: int) -> torch.Tensor:
        x = self._pass(number, x, length)
        return self.after[str(number)](x) if str(number) in self.after else x

    def _pass(self, number: int, x: torch.Tensor, length: int) -> torch.Tensor:
        stage = self.stages[number - 1]
        if str(number) not in self.non_local:
            return stage(x)
        blocks, follow = _blocks(stage), cast(nn.ModuleList, self.non_local[str(number)])
        first = len(blocks) - len(follow)
        for place, block in enumerate(blocks):
            x = block(x)
            if place >= first:
                x = follow[place - first](x, length)
        return x


def _blocks(stage: nn.Module) -> list[nn.Module]:
    """The blocks of a stage; one of a single block is that block."""
    return list(stage) if isinstance(stage, nn.Sequential) else [stage]


def check_maps(cfg: CfgNode, backbone: TwoStreamBackbone, method: str) -> None:
    """Raise a UserError if the stages of the backbone do not give maps, which the method needs."""
    if backbone.spatial_dims != (2, 3):
        raise UserError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}: {method} needs a convolutional "
            "backbone, which gives maps"
        )


def build_two_stream(cfg: CfgNode) -> TwoStreamBackbone:
    """Build ``MODEL.BACKBONE`` with fast-reid, pretrained weights included, and double its stem.

    Raises:
        UserError: ``MODEL.BACKBONE.FEAT_DIM`` is neither 0 ("take it from the backbone") nor the
            true width, the pretrained weights can be neither found nor downloaded, or
            ``MODEL.BACKBONE.PADDED_POOL`` is set for a backbone without fast-reid's max-pool of a
            ResNet.
    """
    node = cfg.MODEL.BACKBONE
    try:
        network = build_backbone(cfg)
    except OSError as error:  # no network, no such file
        if not node.PRETRAIN:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the pretrained weights of {node.NAME} {node.DEPTH} cannot be had ({reason}): set "
            "MODEL.BACKBONE.PRETRAIN_PATH to a file, or MODEL.BACKBONE.PRETRAIN False"
        ) from error
    if node.PADDED_POOL:
        pool = getattr(network, "maxpool", None)
        if not (isinstance(pool, nn.MaxPool2d) and pool.ceil_mode):
            raise UserError(
                f"MODEL.BACKBONE.PADDED_POOL: {type(network).__name__} has no max-pool with "
                "ceil_mode to replace; set it to False"
            )
        network.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    backbone = TwoStreamBackbone(
        network,
        cfg.INPUT.SIZE_TRAIN,
        streams=node.STREAMS,
        non_local=node.NON_LOCAL,
        norm=node.NORM,
    )
    width = backbone.feature_width
    if node.FEAT_DIM not in (0, width):
        raise UserError(
            f"MODEL.BACKBONE.FEAT_DIM is {node.FEAT_DIM}, but {node.NAME} of depth {node.DEPTH} "
            f"gives {width} features: set it to {width}, or to 0 to take it from the backbone"
        )
    return backbone


@torch.no_grad()
def probe(network: nn.Module, image_size: Sequence[int]) -> torch.Tensor:
    """The output of `network` for an image of a fixed wave, in evaluation mode.

    Modes, buffers and the random state stay as they were.
    """
    modes = [(module, module.training) for module in network.modules()]
    parameter = next(network.parameters())
    pixels = torch.arange(3 * image_size[0] * image_size[1], device=parameter.device)
    network.eval()
    with torch.random.fork_rng(devices=[]):
        output = network(pixels.to(parameter.dtype).sin().view(1, 3, *image_size))
    for module, training in modes:
        module.training = training
    return output
