"""VCD against a restatement of its equations in float64, in both readings."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.methods.vcd.layers import ChannelAttention, gray, sinkhorn_distance
from fastreid_star.methods.vcd.losses import cross_modal_rank_loss, divergence

from ...tiny import small_config
from ..restated import norm, unusual

T, SIZE = 2, (64, 32)
LABELS = [0, 1, 0, 1]
VISIBLE = [True, False, False, True]
WEIGHTS = (0.5, 0.5, 0.25, 0.25)


def build(tmp_path, *more):
    torch.manual_seed(0)
    options = ("MODEL.HEADS.NUM_CLASSES", "3", *more)
    return Trainer.build_model(small_config("VCD", tmp_path, tmp_path, *options))


def different(model):
    """Nothing at a special value; the networks differ, and their attention is at work."""
    unusual(model)
    with torch.no_grad():
        for number, name in enumerate(("backbone", "visible_backbone", "infrared_backbone")):
            for parameter in getattr(model, name).parameters():
                parameter.mul_(1 + 0.1 * number)
            for stage in "123":
                getattr(model, name).after[stage].scale.fill_(0.3 + 0.1 * int(stage))
        for head in model.branch_heads[:3]:
            head.bias.normal_()
            head.weight.normal_(std=0.2)
            head.classify_compressed[3].p = 0.0
            head.classify_compressed[4].weight.normal_()
    return model.double()


def batch():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (4 * T, 3, 8, 4), generator=generator).float()
    images = F.interpolate(coarse, SIZE, mode="bilinear").view(4, T, 3, *SIZE)
    modality = torch.tensor([2 if visible else 1 for visible in VISIBLE])
    return {"images": images, "modality": modality, "targets": torch.tensor(LABELS)}


# --- the restatement


def attend(x, scale):
    """Image by image, channel by channel."""
    out = torch.zeros_like(x)
    for n, image in enumerate(x.flatten(2)):
        energy = torch.stack([(image * channel).sum(1) for channel in image])
        weights = (energy.amin(1, keepdim=True) - energy).exp()
        weights = weights / weights.sum(1, keepdim=True)
        out[n] = sum(weights[:, c, None] * image[c] for c in range(len(image))).view_as(x[n])
    return x + scale * out


def pooled(backbone, pixels):
    x = backbone.visible_stem(pixels)
    for number, stage in enumerate(backbone.stages, start=1):
        x = stage(x)
        if number < 4:
            x = attend(x, backbone.after[str(number)].scale)
    return x.mean((2, 3))


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def head(p, name, x):
    seen = norm(x, p, f"{name}.bottleneck.0", True)
    z = seen
    for place in (0, 3):
        z = linear(p, f"{name}.compress.{place}", z)
        z = (
            norm(z, p, f"{name}.compress.{place + 1}", True)
            + p[f"{name}.compress.{place + 1}.bias"]
        )
        z = z.clamp(min=0)
    z = linear(p, f"{name}.compress.6", z)
    own = f"{name}.classify_compressed"
    y = norm(linear(p, f"{own}.0", z), p, f"{own}.1", True) + p[f"{own}.1.bias"]
    y = torch.where(y > 0, y, 0.1 * y)
    return seen, seen @ p[f"{name}.weight"].T + p[f"{name}.bias"], z, linear(p, f"{own}.4", y)


def smoothed(logits, labels):
    log = logits.log_softmax(1)
    goal = torch.full_like(log, 0.1 / 3)
    goal[range(len(log)), labels] += 0.9
    return -(goal * log).sum(1).mean()


def rank(x, labels, visible):
    x = x / x.norm(dim=1, keepdim=True)
    total = 0
    for i in range(len(x)):
        for same, high, low in ((True, 1.3, 2.2), (False, 1.0, 2.0)):
            positive, negative = [], []
            for j in range(len(x)):
                if i == j or (visible[i] == visible[j]) != same:
                    continue
                d = (x[i] - x[j]).norm()
                if labels[i] == labels[j]:
                    positive.append((d - high).clamp(min=0))
                elif d < low:
                    negative.append(((low - d).exp(), low - d))
            total = total + sum(positive) / max(1, len(positive))
            total = total + sum(w * r for w, r in negative) / sum(w for w, _ in negative)
    return total / len(x)


def transport(x, y):
    n, eps = len(x), 0.01
    cost = torch.stack([(row - y).square().sum(1) for row in x])
    u, v = torch.zeros(n).double(), torch.zeros(n).double()
    for _ in range(100):
        last = u
        inner = ((u[:, None] + v[None] - cost) / eps).exp()
        u = eps * (torch.tensor(1 / n).double().log() - inner.sum(1).log()) + u
        inner = ((u[:, None] + v[None] - cost) / eps).exp()
        v = eps * (torch.tensor(1 / n).double().log() - inner.sum(0).log()) + v
        if (u - last).abs().sum() < 0.1:
            break
    return (((u[:, None] + v[None] - cost) / eps).exp() * cost).sum()


def far(kept, seen, reading):
    p, q = seen.detach().softmax(1), kept.softmax(1)
    if reading == "authors":
        return F.kl_div(p, q)  # as the program calls it
    return (p * (p / q).log()).sum(1).mean()


def restate(model, inputs, reading):
    p = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    images = (inputs["images"].double().flatten(0, 1) - model.pixel_mean) / model.pixel_std
    luma = 0.2989 * images[:, 0] + 0.5870 * images[:, 1] + 0.1140 * images[:, 2]
    copies = torch.stack([luma] * 3, 1)
    labels, visible = ([v for v in values for _ in range(T)] for values in (LABELS, VISIBLE))
    branches = [
        head(p, "visible_head", pooled(model.visible_backbone, images)),
        head(p, "infrared_head", pooled(model.infrared_backbone, copies)),
        head(p, "heads", pooled(model.backbone, images)),
        head(p, "heads", pooled(model.backbone, copies)),
    ]
    rgb, ir, color, grays = branches
    both = [*zip(WEIGHTS, branches, strict=True)]
    return {
        "loss_cls": sum(w * (smoothed(b[1], labels) + smoothed(b[3], labels)) for w, b in both),
        "loss_rank": sum(w * (rank(b[0], labels, visible) + rank(b[2], labels, visible))
                         for w, b in both),
        "loss_sinkhorn": 8 * transport(ir[1].softmax(1), rgb[1].softmax(1)),
        "loss_vsd": 2 * (far(rgb[3], rgb[1], reading) + far(ir[3], ir[1], reading)),
        "loss_vcd": far(grays[3], color[1], reading) + far(color[3], grays[1], reading),
    }  # fmt: skip


@pytest.mark.parametrize("reading", ["default", "authors"])
def test_a_step_equals_the_restatement(tmp_path, reading):
    model = different(build(tmp_path, "MODEL.VCD.READING", reading)).train()
    twin, inputs = copy.deepcopy(model), batch()
    expected = restate(twin, inputs, reading)
    found = model(inputs)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)
        assert abs(value) > 1e-3, f"{name} is at work"
    sum(found.values()).backward()
    sum(expected.values()).backward()
    wanted = dict(twin.named_parameters())
    largest = max(w.grad.abs().max() for w in wanted.values() if w.grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = wanted[name].grad.abs().max() + 1e-6 * largest
            assert (parameter.grad - wanted[name].grad).abs().max() < 1e-5 * scale, name
    assert not model.has_idle_parameters


@torch.no_grad()
def test_the_feature_is_all_observations(tmp_path):
    model, inputs = different(build(tmp_path)).eval(), batch()
    p = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    images = (inputs["images"].double().flatten(0, 1) - model.pixel_mean) / model.pixel_std
    parts = [
        norm(pooled(backbone, pixels), p, f"{name}.bottleneck.0", False)
        for backbone, pixels, name in (
            (model.visible_backbone, images, "visible_head"),
            (model.infrared_backbone, gray(images), "infrared_head"),
            (model.backbone, images, "heads"),
            (model.backbone, gray(images), "heads"),
        )
    ]
    expected = F.normalize(torch.cat(parts, 1).view(4, T, -1).mean(1))
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-10)
    swapped = {**inputs, "modality": 3 - inputs["modality"]}
    assert torch.equal(model(swapped), model(inputs)), "the modality chooses nothing"


def test_all_networks_start_from_one(tmp_path):
    model = build(tmp_path)
    state = {n: v + 1 for n, v in model.state_dict().items()
             if n.startswith("backbone.stages") or n == "heads.weight"}  # fmt: skip
    model.load_state_dict(state, strict=False)
    for name in ("visible", "infrared"):
        own = dict(model.named_parameters())
        for there in ("stages.1.conv1.weight", "after.1.scale"):
            assert torch.equal(own[f"{name}_backbone.{there}"], own[f"backbone.{there}"])
        assert torch.equal(own[f"{name}_head.weight"], own["heads.weight"])
        assert not torch.equal(
            own[f"{name}_head.compress.0.weight"], own["heads.compress.0.weight"]
        )


def test_gray_and_attention_by_hand():
    image = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    assert gray(image)[0, :, 0, 0].tolist() == pytest.approx([0.2989 + 5.87 + 11.4] * 3)
    x = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    attention = ChannelAttention()
    assert torch.equal(attention(x), x)
    with torch.no_grad():
        attention.scale.fill_(1.0)
    e = torch.tensor([1.0, 4.0]).exp()  # of the products with itself; those with the other are 0
    expected = [
        [1 + 1 / (1 + e[0]), 2 * e[0] / (1 + e[0])],
        [e[1] / (1 + e[1]), 2 + 2 / (1 + e[1])],
    ]
    torch.testing.assert_close(attention(x)[0, :, 0], torch.tensor(expected))


def test_transport_by_hand():
    x = torch.eye(3).double()
    moved = x[[2, 0, 1]]
    assert sinkhorn_distance(x, moved).item() == pytest.approx(0, abs=1e-9)  # sets are equal
    one, two = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.5], [1.5]]).double()
    assert sinkhorn_distance(one, two, tolerance=1e-6).item() == pytest.approx(0.25, abs=1e-3)
    # 0.1 must go to 1, although 0 is nearer: each row of the second set takes its share
    one, two = (
        torch.tensor([[0.0], [0.1], [1.0]]).double(),
        torch.tensor([[0.0], [1], [1]]).double(),
    )
    found = sinkhorn_distance(one, two, steps=300, tolerance=1e-6).item()
    assert found == pytest.approx(0.81 / 3, abs=0.01)


def test_the_divergence_of_the_program_is_least_near_the_uniform_distribution():
    p = torch.tensor([[30.0, 0, 0, 0]]).double()
    for reading, best in (("default", p.softmax(1)), ("authors", p.softmax(1).softmax(1))):
        kept = best.log().requires_grad_()
        divergence(kept, p, reading).backward()
        assert kept.grad.abs().max() < 1e-6
        other = torch.tensor([[1.0, 2, 0, 0]]).double()
        assert divergence(other, p, reading) > divergence(kept, p, reading)


def test_ranks_of_odd_batches_are_finite():
    x = torch.randn(4, 6).double().requires_grad_()
    for targets, visible in (([0, 0, 0, 0], [1, 1, 0, 0]), ([0, 1, 2, 3], [1, 1, 1, 1])):
        loss = cross_modal_rank_loss(x, torch.tensor(targets), torch.tensor(visible).bool())
        assert torch.autograd.grad(loss, x)[0].isfinite().all()
    same = torch.ones(4, 6).double().requires_grad_()
    loss = cross_modal_rank_loss(
        same, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 1, 0]).bool()
    )
    assert loss.item() == pytest.approx(2.2 + 2.0)
    assert torch.autograd.grad(loss, same)[0].isfinite().all()


def test_what_does_not_fit_is_named(tmp_path):
    for options, word in (
        (("MODEL.VCD.READING", "release"), "authors"),
        (("MODEL.BACKBONE.STREAMS", "2"), "STREAMS 1"),
        (("MODEL.HEADS.NAME", "ClipHead"), "BranchHead"),
        (("MODEL.FRAME_CORRECTOR.NAME", "SkeletonFrameCorrector"), "no frame corrector"),
    ):
        with pytest.raises(UserError, match=word):
            build(tmp_path, *options)
