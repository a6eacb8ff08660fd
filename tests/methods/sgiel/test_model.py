"""SGIEL against a restatement of its equations in float64."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fastreid.utils import comm

from fastreid_star.engine.checkpoint import Checkpointer
from fastreid_star.engine.resume import Resumable
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.inference.program import export_program
from fastreid_star.modeling.layers.split_norm import SplitBatchNorm

from ...tiny import small_config
from ..restated import assert_same_step, batch_hard, cross_entropy, norm, unusual

T, SIZE = 2, (64, 32)
LABELS = [0, 0, 1, 1, 0, 1, 0, 1]
VISIBLE = [True, False, True, False, True, False, False, True]  # in no order


def build(tmp_path, *more, name="SGIEL"):
    torch.manual_seed(0)
    options = ("MODEL.HEADS.NUM_CLASSES", "3", "MODEL.SGIEL.CUTMIX", "0.0")
    options += ("INPUT.AUGMENTATIONS", "[]", *more)
    return Trainer.build_model(small_config(name, tmp_path, tmp_path, *options))


def different(model):
    """Nothing at a special value, and an average that differs from the network."""
    unusual(model)
    with torch.no_grad():
        model.shape_head.weight.mul_(200)
        for parameter in model.average.parameters():
            parameter.mul_(1.1)
    return model.double()


def batch():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (8 * T, 4, 8, 4), generator=generator).float()
    pixels = F.interpolate(coarse, SIZE, mode="bilinear").view(8, T, 4, *SIZE)
    modality = torch.tensor([2 if visible else 1 for visible in VISIBLE])
    return {
        "images": pixels[:, :, :3],
        "shapes": pixels[:, :, 3].byte(),
        "modality": modality,
        "targets": torch.tensor(LABELS),
    }


# --- the restatement


def with_set(part, number, x):
    """A part of the network with one set of BatchNorm in place of all."""
    split = [m for m in part.modules() if isinstance(m, SplitBatchNorm)]
    places = [(p, n) for p in part.modules() for n, c in p.named_children() if c in split]
    try:
        for parent, name in places:
            setattr(parent, name, getattr(parent, name).sets[number])
        return part(x)
    finally:
        for (parent, name), norm_ in zip(places, split, strict=True):
            setattr(parent, name, norm_)


def features(network, prefix, p, images, shapes, rows, training=True):
    """x, f and f_s of all rows, each kind of rows on its own."""
    backbone = network.backbone
    flags = torch.tensor([VISIBLE[r // (len(rows) // 8)] for r in rows])
    stems = {True: backbone.visible_stem, False: backbone.infrared_stem}

    def pooled(x, number):
        for stage in backbone.stages:
            x = with_set(stage, number, x)
        return ((x.relu() ** 3).mean((2, 3)) + 1e-12) ** (1 / 3)

    back = torch.cat([flags.nonzero(), (~flags).nonzero()]).flatten().argsort()
    own = [
        pooled(with_set(stems[flag], 0, images[flags == flag]), number)
        for number, flag in enumerate((True, False))
    ]
    x = torch.cat(own)[back]
    f = [
        norm(x[flags == flag], p, f"{prefix}heads.bottleneck.0.sets.{number}", training)
        for number, flag in enumerate((True, False))
    ]
    f = torch.cat(f)[back]
    if shapes is None:
        return x, f, None
    low = {flag: with_set(stems[flag], 1, shapes[flags == flag]) for flag in (True, False)}
    both = torch.cat([low[True], low[False]])
    return x, f, norm(pooled(both, 2), p, f"{prefix}heads.bottleneck.0.sets.2", training)[back]


def soft(student, teacher):
    teacher = teacher.detach().softmax(1)
    return -(teacher * student.log_softmax(1)).sum(1).mean()


def restate(model, inputs, erasure):
    p = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    mean, std = model.pixel_mean, model.pixel_std
    images = (inputs["images"].double().flatten(0, 1) - mean) / std
    shapes = inputs["shapes"].flatten(0, 1).double()[:, None].expand(-1, 3, -1, -1)
    shapes, rows = (shapes - mean) / std, list(range(8 * T))
    labels, visible = ([v for v in values for _ in range(T)] for values in (LABELS, VISIBLE))
    x, f, f_s = features(model.trained, "", p, images, shapes, rows)
    with torch.no_grad():
        _, _, theirs = features(model.evaluated, "average.", p, images, shapes, rows)
        goal = theirs @ p["average.shape_head.shape"]
        goal_logits = goal @ p["average.shape_head.weight"].T
    weight, projection = p["heads.weight"], p["shape_head.image"]
    z_s, estimate = f_s @ p["shape_head.shape"], f @ projection
    unit = torch.stack([column / column.norm() for column in projection.T], 1)
    basis = unit if erasure == "columns" else projection @ torch.linalg.inv(
        torch.linalg.cholesky(projection.T @ projection).mH)  # fmt: skip
    erased = (f - (f @ basis) @ basis.T) @ weight.T

    partner, least = [], []
    for row in rows:
        own, other = ([k for k in rows if labels[k] == labels[row] and visible[k] == flag]
                      for flag in (visible[row], not visible[row]))  # fmt: skip
        partner.append(other[own.index(row)])
        cosines = [F.cosine_similarity(z_s[row], z_s[k], dim=0).item() for k in other]
        least.append(other[cosines.index(min(cosines))])

    logits = f @ weight.T
    tells = (estimate - goal).square().mean()
    tells = tells + soft(estimate @ p["shape_head.weight"].detach().T, goal_logits)
    apart = cross_entropy(erased, labels)
    apart = apart + 2 * soft(erased, erased[partner]) + 2 * soft(erased, erased[least])
    a, b = (torch.autograd.grad(loss, x, retain_graph=True)[0].norm(dim=1).mean()
            for loss in (apart, tells))  # fmt: skip
    products = unit.T @ unit - torch.eye(unit.shape[1], dtype=unit.dtype)
    return {
        "loss_cls": cross_entropy(logits, labels),
        "loss_triplet": batch_hard(x, labels),
        "loss_cls_shape": cross_entropy(z_s @ p["shape_head.weight"].T, labels),
        "loss_distillation": 2 * soft(logits, logits[partner]),
        "loss_shape": 2 * b / (a + b) * tells + 2 * a / (a + b) * apart,
        "loss_projection": products.abs().sum(1).mean(),
    }


@pytest.mark.parametrize("erasure", ["orthogonal", "columns"])
def test_a_step_equals_the_restatement(tmp_path, erasure):
    options = ("MODEL.SGIEL.EMA", "[[0, 0.0]]", "MODEL.SGIEL.ERASURE", erasure)
    model = different(build(tmp_path, *options)).train()
    twin, inputs = copy.deepcopy(model), batch()
    expected = restate(twin, inputs, erasure)
    assert_same_step(model, twin, model(inputs), expected, relative=1e-7)
    theirs = dict(twin.named_buffers())
    for name, value in model.named_buffers():
        if "running" in name and (".heads." not in name and not name.startswith("heads.")):
            torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_feature_is_that_of_the_averaged_network(tmp_path):
    model, inputs = different(build(tmp_path)).eval(), batch()
    p = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    images = (inputs["images"].double().flatten(0, 1) - model.pixel_mean) / model.pixel_std
    _, f, _ = features(model.evaluated, "average.", p, images, None, [*range(8 * T)], False)
    clip = f.view(8, T, -1).mean(1)
    expected = clip / clip.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-10)
    flags = {"images": inputs["images"], "is_visible": torch.tensor(VISIBLE).double()}
    torch.testing.assert_close(model(flags), expected, rtol=0, atol=1e-10)  # as exported
    for parameter in model.trained.backbone.parameters():
        parameter.mul_(2)
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-10)


def test_a_step_with_cutmix(tmp_path):
    model = build(tmp_path, "MODEL.SGIEL.CUTMIX", "1.0").train()
    torch.manual_seed(3)
    outputs = model.encode(batch())
    share, second = outputs["first_share"], outputs["second_targets"]
    assert 0.05 < share < 0.95
    first = outputs["targets"]
    assert (first != second).any()
    assert "erased_logits" not in outputs
    losses = {name: loss.of(outputs) for name, loss in model.active_losses.items()}
    assert [*losses] == ["MixedCrossEntropyLoss", "ShapeCrossEntropyLoss",
                         "MutualDistillationLoss", "ProjectionLoss"]  # fmt: skip
    for name, key in (("MixedCrossEntropyLoss", "clip_logits"),
                      ("ShapeCrossEntropyLoss", "shape_logits")):  # fmt: skip
        both = [F.cross_entropy(outputs[key], labels) for labels in (first, second)]
        expected = share * both[0] + (1 - share) * both[1]
        torch.testing.assert_close(losses[name], expected)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not model.has_idle_parameters


def test_all_processes_have_cutmix_in_the_same_steps(tmp_path, monkeypatch):
    model = build(tmp_path, "MODEL.SGIEL.CUTMIX", "0.5").train()
    for first in (True, False):
        monkeypatch.setattr(comm, "all_gather", lambda own, first=first: [first, own])
        for seed in range(4):
            torch.manual_seed(seed)
            assert ("loss_triplet" in model(batch())) != first


def test_it_is_a_program_of_torch_export_for_any_number_of_clips(tmp_path):
    """The norms of two modalities are chosen without a shape that follows from the batch."""
    options = ("MODEL.HEADS.NUM_CLASSES", "3", "INPUT.SIZE_TEST", "[64,32]")
    cfg = small_config("SGIEL", tmp_path, tmp_path, *options)
    model = Trainer.build_model(cfg).eval()
    assert export_program(model, cfg, tmp_path / "model.pt2").difference < 1e-5


def test_with_the_style_attack_of_sad(tmp_path):
    """The attack's maps have the rows of the images alone; a step with CutMix has no attack."""
    names = ["MixedCrossEntropyLoss", "ShapeCrossEntropyLoss", "ProjectionLoss", "StyleAttackLoss",
             "StyleDefenseLoss", "FrameCrossEntropyLoss"]  # fmt: skip
    model = build(tmp_path, "MODEL.LOSSES.NAME", str(names), "MODEL.SAD.AUGMENT", "True").train()
    losses = model(batch())
    assert {"loss_cls_attack", "loss_defense"} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert model.has_idle_parameters
    model.cutmix = 1.0
    assert [*model(batch())] == ["loss_cls", "loss_cls_shape", "loss_projection"]


def test_the_average_follows_at_the_rate_of_the_epoch(tmp_path):
    model = build(tmp_path, "MODEL.SGIEL.EMA", "[[0, 0.5], [3, 0.1]]").train()
    for epoch, rate in ((None, 0.5), (2, 0.5), (3, 0.1), (9, 0.1)):
        model.epoch = epoch
        for part, factor in (
            ("backbone.stages.0", 1),
            ("heads.weight", 2),
            ("shape_head.shape", 2),
        ):
            assert model.rate(part) == factor * rate
    with torch.no_grad():
        model.heads.weight.add_(1.0)
    before = model.average["heads"].weight.clone()
    model(batch())
    assert torch.allclose(model.average["heads"].weight - before, torch.tensor(0.2), atol=1e-6)


def test_weights_of_another_method_fill_every_copy(tmp_path):
    other = Trainer.build_model(
        small_config("SAD", tmp_path, tmp_path, "MODEL.HEADS.NUM_CLASSES", "3")
    )
    torch.save({"model": unusual(other).state_dict()}, tmp_path / "sad.pth")
    model = build(tmp_path)
    part = SimpleNamespace(checkpointer=Checkpointer(model))
    Resumable._load_weights(part, str(tmp_path / "sad.pth"))
    theirs = other.state_dict()
    for network in (model.trained, model.evaluated):
        norms = network.backbone.stages[2].bn1.sets
        name = "backbone.stages.2.bn1.running_mean"
        assert len(norms) == 3
        assert all(torch.equal(norm_.running_mean, theirs[name]) for norm_ in norms)
        assert torch.equal(network.heads.weight, theirs["heads.weight"])


def test_what_is_wrong_is_named(tmp_path):
    for options, word in (
        (("MODEL.SGIEL.ERASURE", "qr"), "columns"),
        (("MODEL.SGIEL.CUTMIX", "1.5"), "share"),
        (("MODEL.SGIEL.EMA", "[[1, 0.1]]"), "epoch 0"),
        (("MODEL.SGIEL.EMA", "[[0, 0.1], [0, 0.2]]"), "epoch 0"),
    ):
        with pytest.raises(UserError, match=word):
            build(tmp_path, *options)
    inputs = batch()
    del inputs["shapes"]
    with pytest.raises(UserError, match=r"DATASETS\.SHAPES"):
        build(tmp_path).train()(inputs)
