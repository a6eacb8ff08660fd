"""The meta-architecture, against a rewrite of its equations in plain torch and float64."""

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg

from fastreid_star.errors import UserError
from fastreid_star.methods.sad import SAD
from fastreid_star.methods.sad import model as sad
from fastreid_star.modeling import VideoReID

ALL = (
    "CrossEntropyLoss",
    "FrameCrossEntropyLoss",
    "TripletLoss",
    "StyleAttackLoss",
    "StyleDefenseLoss",
)


def config(name="build_resnet_backbone", depth="18x", losses=ALL, size=(64, 32), classes=2):
    cfg = get_cfg()
    cfg.INPUT.SIZE_TRAIN = list(size)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SAD"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.DEPTH = depth
    cfg.MODEL.BACKBONE.FEAT_DIM = 0
    cfg.MODEL.HEADS.NAME = "ClipHead"
    cfg.MODEL.HEADS.NUM_CLASSES = classes
    cfg.MODEL.LOSSES.NAME = tuple(losses)
    cfg.MODEL.LOSSES.TRI.HARD_MINING = True
    return cfg


def small(**options):
    """A small, quick model."""
    torch.manual_seed(0)
    return SAD(config("build_osnet_backbone", "x0_25", **options))


def make_batch(clips_per_half=4, length=3, size=(64, 32), seed=0):
    """[visible; infrared], two identities."""
    generator = torch.Generator().manual_seed(seed)
    clips = 2 * clips_per_half
    return {
        "images": torch.randint(
            0, 256, (clips, length, 3, *size), generator=generator, dtype=torch.uint8
        ),
        "modality": torch.tensor([2] * clips_per_half + [1] * clips_per_half),
        "targets": torch.arange(clips_per_half)
        .mul(2)
        .div(clips_per_half, rounding_mode="floor")
        .repeat(2),
    }


# --- the rewrite


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
    logits = x @ p[f"{head}.weight"].T
    log_probability = logits - logits.exp().sum(1, keepdim=True).log()
    return -sum(log_probability[n, label] for n, label in enumerate(labels.tolist())) / len(labels)


def batch_hard(x, labels, margin=0.3):
    loss = 0
    for a in range(len(x)):
        distance = [0 if a == b else ((x[a] - x[b]) ** 2).sum().sqrt() for b in range(len(x))]
        positive = max(distance[b] for b in range(len(x)) if b != a and labels[b] == labels[a])
        negative = min(distance[b] for b in range(len(x)) if labels[b] != labels[a])
        loss = loss + (margin + positive - negative).clamp(min=0)
    return loss / len(x)


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


@pytest.mark.parametrize(
    ("name", "depth", "options"),
    [
        ("build_resnet_backbone", "50x", {"WITH_IBN": True, "WITH_SE": True, "WITH_NL": True}),
        ("build_resnext_backbone", "50x", {"WITH_IBN": True, "WITH_NL": True}),
        ("build_mobilenetv3_backbone", "Small", {}),
        ("build_shufflenetv2_backbone", "0.5x", {}),
        ("build_repvgg_backbone", "A0", {}),
        ("build_regnet_backbone", "200y", {}),
        ("build_effnet_backbone", "b0", {}),
    ],
)
def test_every_family_takes_a_training_step(name, depth, options):
    """Families that have no config of STAR; tests/cli/test_configs.py trains the others."""
    torch.manual_seed(0)
    cfg = config(name, depth)
    cfg.MODEL.BACKBONE.update(options)
    model = SAD(cfg)
    losses = model(make_batch(clips_per_half=2, length=2))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())

    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"heads.bottleneck.0.bias", "frame_heads.bottleneck.0.bias"}
    gradients = {name: p.grad for name, p in model.named_parameters() if name not in frozen}
    assert [name for name, g in gradients.items() if g is None or not g.isfinite().all()] == []
    for stem_name in ("visible_stem", "infrared_stem"):
        weights = [
            g
            for name, g in gradients.items()
            if name.startswith(f"backbone.{stem_name}") and g.dim() > 1
        ]
        assert weights
        assert all(g.abs().max() > 0 for g in weights)

    model.eval()
    with torch.no_grad():
        features = model(make_batch(clips_per_half=2, length=2))
    assert features.shape == (4, model.backbone.feature_width)


# --- losses


@pytest.mark.parametrize(
    ("chosen", "given", "passes"),
    [
        (["TripletLoss"], ["loss_triplet"], 1),
        (["StyleAttackLoss"], ["loss_cls_attack"], 2),
        (["StyleDefenseLoss"], ["loss_defense"], 2),
        (["StyleDefenseLoss", "CrossEntropyLoss"], ["loss_defense", "loss_cls"], 2),
    ],
)
def test_losses_are_chosen_by_name(chosen, given, passes):
    model = small(losses=chosen)
    losses = model(make_batch(clips_per_half=2, length=2))
    assert list(losses) == given
    # BatchNorm's statistics count the passes: one of stem and stages 1-2, and the attack's of
    # stages 3 and 4
    counts = {
        name.split(".")[2]: int(buffer)
        for name, buffer in model.named_buffers()
        if name.startswith("backbone.stages.") and name.endswith("num_batches_tracked")
    }
    assert counts == {"0": 1, "1": 1, "2": passes, "3": passes}
    assert model.has_idle_parameters


def test_a_loss_that_nothing_can_feed_is_refused():
    with pytest.raises(UserError, match="needs attacked_"):
        VideoReID(config("build_osnet_backbone", "x0_25"))


def test_weights_and_first_epochs():
    cfg = config("build_osnet_backbone", "x0_25", losses=ALL)
    cfg.MODEL.LOSSES.WEIGHTS = [["StyleDefenseLoss", 0.5], ["CrossEntropyLoss", 3.0]]
    cfg.MODEL.LOSSES.CE_ONLY_EPOCHS = 2
    torch.manual_seed(0)
    model, batch = SAD(cfg), make_batch(clips_per_half=2, length=2)
    model.epoch = 1
    assert list(model(batch)) == ["loss_cls", "loss_cls_frame"]
    assert model.has_idle_parameters
    model.epoch = 2
    torch.manual_seed(1)
    weighted = model(batch)
    assert len(weighted) == 5
    assert not model.has_idle_parameters
    for loss in model.losses.values():
        loss.weight = 1.0
    torch.manual_seed(1)
    plain = model(batch)
    factors = {name: float(weighted[name].detach() / plain[name].detach()) for name in plain}
    assert factors == pytest.approx(
        {
            "loss_cls": 3,
            "loss_cls_frame": 1,
            "loss_triplet": 1,
            "loss_cls_attack": 1,
            "loss_defense": 0.5,
        },
        rel=1e-4,
    )
    cfg.MODEL.LOSSES.WEIGHTS = [["CircleLoss", 0.5]]
    with pytest.raises(UserError, match="WEIGHTS names CircleLoss"):
        SAD(cfg)


def test_config_reaches_the_losses():
    cfg = config("build_osnet_backbone", "x0_25")
    cfg.MODEL.LOSSES.CE.EPSILON, cfg.MODEL.LOSSES.CE.SCALE = 0.1, 0.5
    cfg.MODEL.LOSSES.TRI.MARGIN, cfg.MODEL.LOSSES.TRI.SCALE = 0.7, 2.0
    cfg.MODEL.LOSSES.TRI.ALL_RANKS = True
    cfg.MODEL.HEADS.GEM_P, cfg.MODEL.SAD.STD = 2.0, "release"
    model = SAD(cfg)
    for name in ("CrossEntropyLoss", "FrameCrossEntropyLoss", "StyleAttackLoss"):
        assert (model.losses[name].epsilon, model.losses[name].scale) == (0.1, 0.5)
    assert model.losses["TripletLoss"].options == {
        "margin": 0.7,
        "norm_feat": False,
        "hard_mining": True,
        "scale": 2.0,
        "all_ranks": True,
    }
    assert (model.heads.gem_p, model.std) == (2.0, "release")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.SAD.STD", "std", "sqrt_var, release"),
        ("MODEL.LOSSES.CE.EPSILON", -0.1, "EPSILON is -0.1"),
        ("MODEL.LOSSES.NAME", ["CircleLoss"], "CircleLoss: the registered losses are .*Triplet"),
        ("MODEL.HEADS.NAME", "EmbeddingHead", "EmbeddingHead.*needs ClipHead"),
    ],
)
def test_bad_config_is_one_line(key, value, message):
    cfg = config("build_osnet_backbone", "x0_25")
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=message) as error:
        SAD(cfg)
    assert "\n" not in str(error.value)


# --- evaluation


@pytest.fixture
def evaluated():
    """A model in evaluation whose stems differ and whose statistics have seen data."""
    model = small()
    with torch.no_grad():
        for parameter in model.backbone.infrared_stem.parameters():
            parameter.mul_(1.5).add_(0.05)
        for _ in range(8):
            model(make_batch())
    return model.eval()


@torch.no_grad()
def test_the_feature_for_retrieval_by_value(evaluated):
    model, batch = evaluated.double(), make_batch()
    is_visible = model.frame_modality(batch, 3)
    with torch.no_grad():
        norm = model.heads.bottleneck[0]
        norm.weight.uniform_(0.5, 1.5)
        norm.running_mean.uniform_(0.0, 0.2)
        norm.running_var.uniform_(0.5, 2.0)
        pixels = (batch["images"].double().flatten(0, 1) - model.pixel_mean) / model.pixel_std
        frames = model.backbone(pixels, is_visible).mean((2, 3)).view(8, 3, -1)
        clip = ((frames**3).mean(1) + 1e-12) ** (1 / 3)
        after = (clip - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight
        expected = after / after.norm(dim=1, keepdim=True)
        assert torch.allclose(model(batch), expected, atol=1e-10)


@torch.no_grad()
def test_a_feature_depends_on_its_clip_and_modality_only(evaluated):
    batch = make_batch()
    expected = evaluated(batch)
    for rows in (torch.tensor([5, 0, 7, 2, 1, 4, 6, 3]), slice(0, 4), slice(4, 8), slice(6, 7)):
        alone = evaluated({"images": batch["images"][rows], "modality": batch["modality"][rows]})
        assert torch.allclose(alone, expected[rows], atol=1e-5)
    wrong = evaluated({"images": batch["images"][:4], "modality": torch.ones(4, dtype=torch.long)})
    assert not torch.allclose(wrong, expected[:4], atol=1e-2)
    flags = {"images": batch["images"], "is_visible": (batch["modality"] == 2).float()}
    assert torch.allclose(evaluated(flags), expected, atol=1e-6), "without a branch, for export"
    with pytest.raises(UserError, match=r"1 \(infrared\) or 2 \(visible\).*\[0, 1\]"):
        evaluated({"images": batch["images"][:2], "modality": torch.tensor([0, 1])})


# --- training


def test_training_needs_both_modalities_for_the_attack():
    batch = make_batch(clips_per_half=2, length=2)
    batch["modality"] = torch.full((4,), 2)
    with pytest.raises(UserError, match="both modalities"):
        small()(batch)
    assert all(loss.isfinite() for loss in small(losses=["CrossEntropyLoss"])(batch).values())


def test_augmentation_is_a_switch():
    batch = make_batch(clips_per_half=2, length=2)
    is_visible = torch.tensor([True] * 4 + [False] * 4)
    model = small()
    plain = model.eval().preprocess(batch["images"], is_visible)
    assert not torch.allclose(model.train().preprocess(batch["images"], is_visible), plain)
    model.augment = False
    assert torch.equal(model.preprocess(batch["images"], is_visible), plain)


def test_bfloat16_autocast():
    model, batch = small(), make_batch(clips_per_half=2, length=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.encode(batch)
    for name in ("frames", "attacked_frames", "clip"):
        assert outputs[name].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.eval()(batch).dtype == torch.float32
