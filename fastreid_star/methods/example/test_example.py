"""Tests of the example; they travel with a copy of the folder."""

import torch
from fastreid.config import get_cfg
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

import fastreid_star  # noqa: F401  (before anything of fast-reid)

from .layers import FrameAttention
from .losses import CenterLoss


def test_attention_starts_as_the_mean():
    frames = torch.rand(2, 5, 8)
    torch.testing.assert_close(FrameAttention(8)(frames), frames.mean(1))


def test_center_loss_by_hand():
    clip = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0], [9.0, 9.0]])
    targets, visible = torch.tensor([0, 0, 0, 1]), torch.tensor([True, True, False, True])
    # identity 0: centers (1, 0) and (1, 3); identity 1 has no infrared clip
    assert CenterLoss()(clip, targets, visible.repeat_interleave(2)) == 9.0


def test_a_training_step():
    cfg = get_cfg()
    cfg.INPUT.SIZE_TRAIN = [32, 16]
    cfg.MODEL.META_ARCHITECTURE = "AttentionReID"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = "build_small_resnet_backbone", "tiny"
    cfg.MODEL.BACKBONE.FEAT_DIM = 0
    cfg.MODEL.HEADS.NAME, cfg.MODEL.HEADS.NUM_CLASSES = "ClipHead", 2
    cfg.MODEL.LOSSES.NAME = ("CrossEntropyLoss", "FrameCrossEntropyLoss", "CenterLoss")
    model = META_ARCH_REGISTRY.get("AttentionReID")(cfg)
    losses = model(
        {
            "images": torch.randint(256, (4, 3, 3, 32, 16), dtype=torch.uint8),
            "modality": torch.tensor([2, 2, 1, 1]),
            "targets": torch.tensor([0, 1, 0, 1]),
        }
    )
    assert list(losses) == ["loss_cls", "loss_cls_frame", "loss_center"]
    sum(losses.values()).backward()
    assert model.attention.score.weight.grad.abs().sum() > 0
