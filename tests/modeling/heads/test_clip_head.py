import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.heads import REID_HEADS_REGISTRY

from fastreid_star.modeling.heads import ClipHead, FrameHead
from fastreid_star.modeling.layers.pooling import gem


def test_bnneck_by_hand():
    head = FrameHead(feat_dim=2, num_classes=2)
    neck = head.bottleneck[0]
    with torch.no_grad():
        neck.weight.copy_(torch.tensor([1.0, 3.0]))
        head.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    # per column: mean 2 and 4, population variance 1 and 4, so both rows become -1 and 1, times the
    # scale
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    outputs = head(x, torch.tensor([0, 1]))
    assert torch.allclose(
        outputs["cls_outputs"], torch.tensor([[-1.0, -4.0], [1.0, 4.0]]), atol=1e-4
    )
    assert torch.equal(outputs["features"], x)  # before the neck

    # evaluation: running mean 0.1 * batch mean, running variance 0.9 + 0.1 * sample variance (2 and
    # 8)
    head.eval()
    expected = (
        (x - torch.tensor([0.2, 0.4])) / torch.tensor([1.1, 1.7]).sqrt() * torch.tensor([1.0, 3.0])
    )
    assert torch.allclose(head(x), expected, atol=1e-4)


@pytest.mark.parametrize("cls", [FrameHead, ClipHead])
def test_scale_is_trained_and_shift_is_frozen(cls):
    head = cls(feat_dim=4, num_classes=3)
    assert {name: p.requires_grad for name, p in head.named_parameters()} == {
        "weight": True, "bottleneck.0.weight": True, "bottleneck.0.bias": False,
    }  # fmt: skip
    assert (head.bottleneck[0].weight == 1).all()
    assert (head.bottleneck[0].bias == 0).all()
    assert head.weight.shape == (3, 4)  # no bias


def test_clip_head_pools_over_time():
    head = ClipHead(feat_dim=4, num_classes=3, gem_p=3.0)
    frames = torch.rand(5, 6, 4)
    clip = head.aggregate({"corrected": frames}, {})["clip"]
    assert torch.equal(clip, gem(frames, 3.0, dim=1))
    outputs = head(clip, torch.arange(5) % 3)
    assert torch.equal(outputs["features"], clip)
    assert outputs["cls_outputs"].shape == (5, 3)


def test_built_from_config():
    cfg = get_cfg()
    cfg.MODEL.HEADS.NUM_CLASSES = 7
    cfg.MODEL.HEADS.GEM_P = 2.0
    cfg.MODEL.HEADS.WITH_BNNECK = False  # has no say
    cfg.MODEL.HEADS.EMBEDDING_DIM = 8
    head = REID_HEADS_REGISTRY.get("ClipHead")(cfg, feat_dim=16)
    assert head.gem_p == 2.0
    assert head.weight.shape == (7, 8)
    assert [type(m).__name__ for m in head.bottleneck] == ["Conv2d", "BatchNorm"]
    assert REID_HEADS_REGISTRY.get("FrameHead")(cfg, feat_dim=16).eval()(
        torch.rand(3, 16)
    ).shape == (3, 8)


@pytest.mark.parametrize("cls_type", ["ArcSoftmax", "CosSoftmax", "CircleSoftmax"])
def test_fastreid_classifiers(cls_type):
    head = ClipHead(feat_dim=4, num_classes=3, cls_type=cls_type, scale=16, margin=0.3)
    outputs = head(torch.rand(6, 4), torch.arange(6) % 3)
    assert not torch.allclose(outputs["cls_outputs"], outputs["pred_class_logits"])
    outputs["cls_outputs"].sum().backward()
    assert head.weight.grad.isfinite().all()
