"""MPANet against a restatement of its equations in float64, and the copies of its classifiers."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.methods.mpanet import (
    MaskSeparationLoss,
    ModalityAlleviation,
    ModalityClassifiers,
    ModalityIdentityLoss,
    MutualLearningLoss,
)

from ...tiny import small_config
from ..restated import cross_entropy, norm, unusual

VISIBLE = [True, True, False, False] * 2  # of rows: four clips of two frames
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


def build(tmp_path, *more):
    torch.manual_seed(0)
    classes = "MODEL.HEADS.NUM_CLASSES", "3"
    model = unusual(
        Trainer.build_model(small_config("MPANet", tmp_path, tmp_path, *classes, *more))
    )
    if model.classifiers is not None:
        with torch.no_grad():
            for value in (*model.classifiers.parameters(), *model.classifiers.buffers()):
                value.normal_(std=0.05)
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (4, 2, 3, 64, 32), generator=generator),
        "modality": torch.tensor([2, 1, 2, 1]),
        "targets": torch.tensor([0, 0, 1, 1]),
    }


# --- the restatement: from the maps on


def features(p, maps):
    """Masks ``[N, 6, h, w]`` and features ``[N, 7 D]``."""
    weight, bias = p["masks.conv.weight"][..., 0, 0], p["masks.conv.bias"]
    masks = torch.einsum("nchw,kc->nkhw", maps, weight) + bias[:, None, None]
    masks = 1 / (1 + (-masks).exp())
    parts = [(maps * masks[:, k : k + 1]).mean((2, 3)) for k in range(6)]
    return masks, torch.cat([*parts, maps.mean((2, 3))], 1)


def separation(masks):
    pairs = [(k, m) for k in range(6) for m in range(k + 1, 6)]
    total = sum((frame[k] * frame[m]).sum() for frame in masks for k, m in pairs)
    return total / len(masks) / 15


def center_cluster(x):
    centers = [x[:4].mean(0), x[4:].mean(0)]
    pull = sum((row - centers[y]).norm() for row, y in zip(x, LABELS, strict=True)) / len(x)
    return pull + (0.7 - (centers[0] - centers[1]).norm()).clamp(min=0)


def modality_losses(p, f, epoch):
    """Both cross entropies, and the divergence; the copies after their step are put into p."""
    rate = 0.2 * min(100 / (epoch + 1), 1)
    weights, logits, crossed = {}, [], []
    for name in ("visible", "infrared"):
        weights[name] = p[f"classifiers.{name}"]
        slow = (1 - rate) * p[f"classifiers.slow_{name}"] + rate * weights[name]
        p[f"classifiers.slow_{name}"] = slow.detach()
    for row, seen in zip(f, VISIBLE, strict=True):
        own, other = ("visible", "infrared") if seen else ("infrared", "visible")
        logits.append(weights[own] @ row)
        crossed.append(p[f"classifiers.slow_{other}"] @ row.detach())
    halves = [[i for i, seen in enumerate(VISIBLE) if seen == half] for half in (True, False)]
    total = sum(
        cross_entropy([logits[i] for i in half], [LABELS[i] for i in half]) for half in halves
    )
    mutual = sum(
        (a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))).sum()
        for a, b in zip(logits, crossed, strict=True)
    )
    return total, mutual / len(logits)


@pytest.mark.parametrize("epoch", [0, 199])
def test_a_step_equals_the_restatement(tmp_path, epoch):
    """All losses with their weights, their gradients, and the copies of the classifiers."""
    model, inputs = build(tmp_path).double().train(), batch()
    model.epoch = epoch
    p = {n: v.detach().clone() for n, v in model.state_dict().items()}
    trained = [
        n for n, w in model.named_parameters() if w.requires_grad and not n.startswith("backbone")
    ]
    for name in trained:
        p[name].requires_grad_(True)
    first = copy.deepcopy(model)
    maps = model.encode(inputs)["maps"].detach()
    assert maps.min() < 0 < maps.max()
    found = first(inputs)
    masks, x = features(p, maps)
    f = norm(x, p, "heads.bottleneck.0", True)
    identity, mutual = modality_losses(p, f, epoch)
    expected = {
        "loss_cls": cross_entropy(f @ p["heads.weight"].T, LABELS),
        "loss_center_cluster": center_cluster(x),
        "loss_separation": 0.5 * separation(masks),
        "loss_cls_modality": identity,
        "loss_mutual": 2.5 * mutual,
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.squeeze(), rtol=0, atol=1e-9, msg=name)
    assert mutual > 1e-3
    named = dict(first.named_parameters())
    ours = torch.autograd.grad(sum(found.values()), [named[n] for n in trained])
    theirs = torch.autograd.grad(sum(expected.values()), [p[n] for n in trained])
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)
        assert other.abs().max() > 1e-7, name
    for name in ("slow_visible", "slow_infrared"):
        after = first.state_dict()[f"classifiers.{name}"]
        torch.testing.assert_close(after, p[f"classifiers.{name}"], rtol=0, atol=1e-12)


def test_the_feature_equals_the_restatement(tmp_path):
    model, inputs = build(tmp_path).double().eval(), batch()
    with torch.no_grad():
        outputs = model.encode(inputs)
        p = model.state_dict()
        _, x = features(p, outputs["maps"])
        rows = norm(x, p, "heads.bottleneck.0", False)
        expected = F.normalize(rows.view(4, 2, -1).mean(1), dim=1)
        torch.testing.assert_close(outputs["features"], expected, rtol=0, atol=1e-10)
    assert outputs["features"].shape == (4, 7 * 128)


def test_both_stages_are_followed_by_an_alleviation(tmp_path):
    model, inputs = build(tmp_path).eval(), batch()
    with torch.no_grad():
        outputs = model.encode(inputs)
        third, fourth = (model.backbone.after[n] for n in "34")
        middle = third(model.backbone.stages[2](outputs["low"]))
        torch.testing.assert_close(outputs["middle"], middle)
        torch.testing.assert_close(outputs["maps"], fourth(model.backbone.stages[3](middle)))
    assert model.backbone.infrared_stem is None
    # weights of another network fit: no name of the backbone changes
    assert {n for n in model.backbone.state_dict() if n.startswith("after.")} == {
        f"after.{n}.gate.{i}.weight" for n in "34" for i in (0, 2)
    }


def test_alleviation_equals_instance_norm_under_gates():
    torch.manual_seed(0)
    layer = ModalityAlleviation(32).double()
    x = torch.randn(3, 32, 4, 2, dtype=torch.float64, requires_grad=True)
    hidden = (x.mean((2, 3)) @ layer.gate[0].weight.T).clamp(min=0)
    gates = (1 / (1 + (-hidden @ layer.gate[2].weight.T).exp()))[..., None, None]
    expected = x * gates + F.instance_norm(x) * (1 - gates)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(x)
    torch.testing.assert_close(
        *(torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected))
    )
    assert layer(x[..., :1, :1]).isfinite().all(), "maps of one position"
    assert ModalityAlleviation(32)(torch.ones(2, 32, 3, 3).half()).dtype == torch.float16


def test_every_parameter_is_trained(tmp_path):
    model = build(tmp_path).train()
    sum(model(batch()).values()).backward()
    assert [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None] == []
    assert not model.has_idle_parameters
    without = build(tmp_path, "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)")
    assert without.classifiers is None


def test_a_batch_of_one_modality_trains_its_classifier():
    torch.manual_seed(0)
    classifiers = ModalityClassifiers(8, 3)
    rows, targets, seen = torch.randn(4, 8), torch.arange(4) % 3, torch.ones(4, dtype=torch.bool)
    logits = classifiers(rows, seen)
    loss = ModalityIdentityLoss()(logits, targets, seen)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets))
    (loss + MutualLearningLoss()(logits, classifiers.crossed(rows, seen))).backward()
    assert classifiers.visible.grad.abs().sum() > 0
    assert classifiers.infrared.grad.abs().sum() == 0


def test_the_copies_follow_slower_from_epoch_100_on():
    classifiers = ModalityClassifiers(2, 2)
    assert torch.equal(classifiers.slow_visible, classifiers.visible)
    moved = []
    for epoch in (0, 99, 199):
        classifiers.slow_visible.zero_()
        classifiers.follow(epoch)
        moved.append(classifiers.slow_visible / classifiers.visible.detach())
    for share, rate in zip(moved, (0.2, 0.2, 0.1), strict=True):
        torch.testing.assert_close(share, torch.full((2, 2), rate))


def test_masks_apart_and_alike():
    apart = torch.zeros(2, 2, 1, 4)
    apart[:, 0, :, :2] = apart[:, 1, :, 2:] = 1
    assert MaskSeparationLoss()(apart) == 0
    assert MaskSeparationLoss()(torch.ones(2, 3, 1, 4)) == 4, "a sum over the positions"
    assert MaskSeparationLoss()(torch.ones(2, 1, 1, 4)) == 0, "no pair"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("MODEL.HEADS.GEM_P", "3.0"), "both signs"),
        (("MODEL.HEADS.SPATIAL_P", "3.0"), "both signs"),
        (("MODEL.FRAME_CORRECTOR.NAME", "SkeletonFrameCorrector"), "no frame corrector"),
        (("MODEL.BACKBONE.NAME", "build_dinov2_backbone"), "convolutional"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, word):
    with pytest.raises(UserError, match=word):
        build(tmp_path, *options)
