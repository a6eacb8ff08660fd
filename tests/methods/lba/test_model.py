"""LbA against a restatement of its equations in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.methods.lba import Alignment, DenseTripletLoss
from fastreid_star.methods.lba.layers import align_modalities, draw_pairs
from fastreid_star.methods.lba.losses import dense_triplet_loss

from ...tiny import small_config
from ..restated import batch_hard, cross_entropy, norm, unusual

LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
VISIBLE = torch.tensor([True, True, False, False] * 2)


def build(tmp_path, *more):
    torch.manual_seed(0)
    classes = "MODEL.HEADS.NUM_CLASSES", "3"
    return unusual(Trainer.build_model(small_config("LbA", tmp_path, tmp_path, *classes, *more)))


def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (4, 2, 3, 64, 32), generator=generator),
        "modality": torch.tensor([2, 1, 2, 1]),
        "targets": torch.tensor([0, 0, 1, 1]),
    }


# --- the restatement, frame by frame and position by position


def scaled(m):
    return (m - m.min()) / (m.max() - m.min())


def rebuild(x, y, co=False):
    """The frame x ``[C, L]`` from y, and the co-mask."""
    m, n = scaled(x.detach().norm(dim=0)), scaled(y.detach().norm(dim=0))
    columns, seen = [], []
    for i in range(x.shape[1]):
        weights = (50 * F.cosine_similarity(x[:, i : i + 1], y, dim=0)).softmax(0)
        columns.append(m[i] * (y @ weights) + (1 - m[i]) * x[:, i])
        seen.append((n @ weights).detach())
    return torch.stack(columns, 1), scaled(m * torch.stack(seen))


def dense(maps, pairs, release=False):
    """The dense triplet loss of one stage, and the maps rebuilt from the positive frames."""
    x, found = maps.flatten(2), []
    for n in range(len(x)):
        positive, mask = rebuild(x[n], x[pairs.positive[n]])
        found.append((x[n], positive, rebuild(x[n], x[pairs.negative[n]])[0], mask))
    mean, total = sum(mask for *_, mask in found) / len(found), 0
    for frame, positive, negative, mask in found:
        hinge = (frame - positive).norm(dim=0) - (frame - negative).norm(dim=0) + 0.3
        total = total + ((mean if release else mask) * hinge.clamp(min=0)).mean()
    return total / len(found), torch.stack([positive for _, positive, *_ in found])


def pooled(maps):
    return (maps.clamp(min=0).flatten(2) ** 3).mean(2).add(1e-12) ** (1 / 3)


@pytest.mark.parametrize("reading", ["default", "release"])
def test_a_step_equals_the_restatement(tmp_path, reading):
    """All losses, and their gradients for the classifier and for both maps."""
    model, inputs = build(tmp_path, "MODEL.LBA.READING", reading).double().train(), batch()
    stage4 = copy.deepcopy(model.backbone.stages[3])
    torch.manual_seed(5)
    outputs = model.encode(inputs)
    found = {loss.log_name: loss.of(outputs) for loss in model.losses.values()}
    torch.manual_seed(5)
    pairs = draw_pairs(torch.tensor(LABELS), VISIBLE)

    p = {n: v.detach().clone() for n, v in model.state_dict().items()}
    weight = p["heads.weight"].requires_grad_()
    middle = outputs["middle"].detach().requires_grad_()
    last = stage4(middle)
    (one, third), (two, fourth) = (dense(x, pairs, reading == "release") for x in (middle, last))
    rows = pooled(last), pooled(stage4(third.view_as(middle))), pooled(fourth)
    plain, *rebuilt = (
        cross_entropy(norm(row, p, "heads.bottleneck.0", True) @ weight.T, LABELS) for row in rows
    )
    expected = {
        "loss_cls": plain,
        "loss_triplet": batch_hard(rows[0], LABELS),
        "loss_cls_rebuilt": sum(rebuilt),
        "loss_dense": 0.5 * (one + two),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.squeeze(), rtol=0, atol=1e-8, msg=name)
        assert value > 0, name
    ours = torch.autograd.grad(sum(found.values()), [model.heads.weight, outputs["middle"]])
    theirs = torch.autograd.grad(sum(expected.values()), [weight, middle])
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
        assert second.abs().max() > 1e-7


def test_the_feature_is_the_one_before_the_neck(tmp_path):
    model, inputs = build(tmp_path).double().eval(), batch()
    with torch.no_grad():
        outputs = model.encode(inputs)
        expected = F.normalize(pooled(outputs["maps"]).view(4, 2, -1).mean(1), dim=1)
        torch.testing.assert_close(outputs["features"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reading", ["default", "release"])
def test_rebuilt_maps_leave_the_running_statistics_alone(tmp_path, reading):
    """In the reading `release` three passes change those of the neck."""
    options = "MODEL.LBA.READING", reading
    model = build(tmp_path, *options).train()
    plain = build(tmp_path, *options, "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)").train()
    for each in (model, plain):
        each(batch())
    buffers = dict(plain.named_buffers())
    changed = {
        name
        for name, value in model.named_buffers()
        if "running" in name and not torch.equal(value, buffers[name])
    }
    assert all(name.startswith(("backbone.stages.3", "heads")) for name in changed)
    assert bool(changed) == (reading == "release")
    momenta = {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}, "restored"


def test_pairs_are_a_pairing_of_the_modalities_and_negatives_of_others():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(4).repeat(6)[torch.randperm(24, generator=generator)]
    visible = torch.zeros(24, dtype=torch.bool)
    for y in range(4):
        visible[(targets == y).nonzero().flatten()[:3]] = True
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        pairs = draw_pairs(targets, visible)
        assert pairs.usable.all()
        assert (targets[pairs.positive] == targets).all()
        assert (targets[pairs.negative] != targets).all()
        for other in (pairs.positive, pairs.negative):
            assert (visible[other] != visible).all()
        assert torch.equal(pairs.positive[pairs.positive], torch.arange(24)), "a pairing"
        seen.add((int(pairs.positive[0]), int(pairs.negative[0])))
    assert len({one for one, _ in seen}) == 3
    assert len({two for _, two in seen}) > 4


def test_frames_without_a_pair_are_left_out():
    targets, visible = torch.tensor([0, 0, 1, 2]), torch.tensor([True, False, True, True])
    pairs = draw_pairs(targets, visible)
    assert pairs.usable.tolist() == [False, True, False, False]  # 0 has no infrared negative
    maps = torch.randn(4, 3, 2, 2, requires_grad=True)
    loss = dense_triplet_loss(align_modalities(maps, pairs))
    alone = align_modalities(maps, pairs)
    rows = [Alignment(*(part[n : n + 1] for part in alone)) for n in range(4)]
    torch.testing.assert_close(loss, dense_triplet_loss(rows[1]))
    none = draw_pairs(torch.tensor([0, 0]), torch.tensor([True, True]))
    empty = dense_triplet_loss(align_modalities(maps[:2], none))
    assert empty == 0
    empty.backward()
    assert maps.grad.isfinite().all()


def test_constant_and_equal_maps_have_finite_gradients():
    maps = torch.ones(4, 3, 2, 2, requires_grad=True)
    pairs = draw_pairs(torch.tensor([0, 0, 1, 1]), torch.tensor([True, False] * 2))
    assert pairs.usable.all()
    dense_triplet_loss(align_modalities(maps, pairs)).backward()
    assert maps.grad.isfinite().all()
    zero = torch.zeros(4, 3, 2, 2, requires_grad=True)
    dense_triplet_loss(align_modalities(zero, pairs)).backward()
    assert zero.grad.isfinite().all()


def test_every_parameter_is_trained_and_an_unknown_reading_is_refused(tmp_path):
    model = build(tmp_path).train()
    sum(model(batch()).values()).backward()
    assert [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None] == []
    assert not model.has_idle_parameters
    with pytest.raises(UserError, match="READING is 'authors'"):
        DenseTripletLoss(reading="authors")
    with pytest.raises(UserError, match="convolutional"):
        build(tmp_path, "MODEL.BACKBONE.NAME", "build_dinov2_backbone")
