import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.backbones import build_backbone

from fastreid_star.modeling.backbones import split_backbone


def config(depth="tiny", last_stride=1):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_small_resnet_backbone"
    cfg.MODEL.BACKBONE.DEPTH = depth
    cfg.MODEL.BACKBONE.LAST_STRIDE = last_stride
    cfg.MODEL.BACKBONE.PRETRAIN = False
    return cfg


@pytest.mark.parametrize(
    ("depth", "last_stride", "shapes"),
    [
        ("tiny", 1, [(16, 32, 16), (32, 16, 8), (64, 8, 4), (128, 8, 4)]),
        ("small", 2, [(32, 32, 16), (64, 16, 8), (128, 8, 4), (256, 4, 2)]),
    ],
)
def test_the_maps_of_a_frame(depth, last_stride, shapes):
    split = split_backbone(build_backbone(config(depth, last_stride)))
    maps = split.stem(torch.randn(2, 3, 64, 32))
    for stage, shape in zip(split.stages, shapes, strict=True):
        maps = stage(maps)
        assert maps.shape == (2, *shape)
    assert (maps >= 0).all()
