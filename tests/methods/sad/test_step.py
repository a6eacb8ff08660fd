"""A training step, against a rewrite of its equations in plain torch and float64."""

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.methods.sad import SAD
from fastreid_star.methods.sad import model as sad

from ..restated import batch_hard, cross_entropy
from .small import config, make_batch


def batch_norm(x, scale, shift):
    axes = [0, *range(2, x.dim())]
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return (x - mean) / (variance + 1e-5) ** 0.5 * scale.view(shape) + shift.view(shape)


def residual_block(p, name, x, stride):
    def conv_bn(x, conv, bn, **options):
        x = F.conv2d(x, p[f"{name}.{conv}.weight"], **options)
        return batch_norm(x, p[f"{name}.{bn}.weight"], p[f"{name}.{bn}.bias"])

    y = conv_bn(x, "conv1", "bn1", stride=stride, padding=1).clamp(min=0)
    y = conv_bn(y, "conv2", "bn2", padding=1)
    if f"{name}.downsample.0.weight" in p:
        x = conv_bn(x, "downsample.0", "downsample.1", stride=stride)
    return (x + y).clamp(min=0)


def stage(p, number, x):
    """Stage 1 to 4 of an R18 whose last stride is 1."""
    name = f"backbone.stages.{number - 1}"
    x = residual_block(p, f"{name}.0", x, stride=2 if number in (2, 3) else 1)
    return residual_block(p, f"{name}.1", x, stride=1)


def stem(p, name, x):
    x = F.conv2d(x, p[f"backbone.{name}.0.weight"], stride=2, padding=3)
    x = batch_norm(x, p[f"backbone.{name}.1.weight"], p[f"backbone.{name}.1.bias"]).clamp(min=0)
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


def restyle(x, partner):
    """AdaIN, frame by frame and channel by channel."""
    flat = x.flatten(2)
    mean = flat.sum(2) / flat.shape[2]
    sd = (((flat - mean[..., None]) ** 2).sum(2) / flat.shape[2] + 1e-5).sqrt()
    frames = [
        (flat[n] - mean[n, :, None]) / sd[n, :, None] * sd[m, :, None] + mean[m, :, None]
        for n, m in enumerate(partner.tolist())
    ]
    return torch.stack(frames).view_as(x)


def classify(p, head, x, labels):
    """BNNeck, bias-free classifier, cross entropy."""
    x = batch_norm(x, p[f"{head}.bottleneck.0.weight"], torch.zeros(x.shape[1], dtype=x.dtype))
    return cross_entropy(x @ p[f"{head}.weight"].T, labels)


def rewrite(p, batch, style):
    """All losses of the baseline from named parameters `p`, for a [visible; infrared] batch."""
    factors, order, same, other = style
    clips, length = batch["images"].shape[:2]
    half = clips * length // 2
    x = batch["images"].flatten(0, 1).double()
    mean = torch.tensor([0.485 * 255, 0.456 * 255, 0.406 * 255]).double()  # given as float32
    std = torch.tensor([0.229 * 255, 0.224 * 255, 0.225 * 255]).double()
    x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    x = torch.stack([
        torch.stack([factors[n, c] * x[n, c] for c in order[n].tolist()]) for n in range(len(x))
    ])  # fmt: skip
    x = torch.cat([stem(p, "visible_stem", x[:half]), stem(p, "infrared_stem", x[half:])])
    low = stage(p, 2, stage(p, 1, x))
    clean = stage(p, 4, stage(p, 3, low)).mean((2, 3))
    attacked = stage(p, 4, restyle(stage(p, 3, restyle(low, same)), other)).mean((2, 3))

    clip = ((clean.view(clips, length, -1) ** 3).mean(1) + 1e-12) ** (1 / 3)
    labels = batch["targets"]
    frame_labels = torch.stack([labels] * length, dim=1).flatten()
    return {
        "loss_cls": classify(p, "heads", clip, labels),
        "loss_cls_frame": classify(p, "frame_heads", clean, frame_labels),
        "loss_triplet": batch_hard(clip, labels),
        "loss_cls_attack": classify(p, "frame_heads", attacked, frame_labels),
        "loss_defense": ((clean - attacked) ** 2).sum(1).sqrt().mean(),
    }


@pytest.fixture
def fixed_style(monkeypatch):
    """The style randomness of 24 frames, [visible; infrared], written down."""
    generator = torch.Generator().manual_seed(3)

    def shuffled(start):
        return start + torch.randperm(12, generator=generator)

    factors = 0.5 + torch.rand(24, 3, generator=generator)
    factors[12:] = factors[12:, :1]
    order = torch.rand(24, 3, generator=generator).argsort(1)
    order[12:] = torch.arange(3)
    same, other = torch.cat([shuffled(0), shuffled(12)]), torch.cat([shuffled(12), shuffled(0)])

    def of_this_batch(is_visible, written):
        assert is_visible.tolist() == [True] * 12 + [False] * 12
        return written

    monkeypatch.setattr(
        sad, "style_factors", lambda is_visible, *_: of_this_batch(is_visible, (factors, order))
    )
    monkeypatch.setattr(
        sad, "attack_partners", lambda is_visible: of_this_batch(is_visible, (same, other))
    )
    return factors, order, same, other


def test_a_step_equals_the_rewrite(fixed_style):
    """Losses and gradients of one training step in float64."""
    torch.manual_seed(1)
    model = SAD(config()).train()
    with torch.no_grad():  # nothing at a special value, and classifiers that are not all but 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.1 * torch.randn_like(parameter) * (1 if "bn" in name else parameter.std())
                )
        model.heads.weight.mul_(10)
        model.frame_heads.weight.mul_(10)
    batch = make_batch()
    parameters = {
        name: p.detach().double().requires_grad_()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    expected = rewrite(parameters, batch, fixed_style)
    sum(expected.values()).backward()
    losses = model.double()(batch)
    sum(losses.values()).backward()

    def relative(found, wanted):
        return ((found - wanted).norm() / wanted.norm()).item()

    assert list(losses) == list(expected)
    assert all(loss.detach() > 0.01 for loss in expected.values())  # every loss is at work
    assert all(relative(losses[name], expected[name]) < 1e-10 for name in expected)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(gradients) == 67  # two stems, four stages, two heads
    errors = {name: relative(grad, parameters[name].grad) for name, grad in gradients.items()}
    assert max(errors.values()) < 1e-9, errors
