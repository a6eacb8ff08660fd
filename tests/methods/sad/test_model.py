"""The meta-architecture: its losses, its features and its augmentation."""

import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.methods.sad import SAD
from fastreid_star.modeling import VideoReID

from .small import ALL, config, make_batch, small


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
    assert model.has_idle_parameters == ("CrossEntropyLoss" not in chosen)


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
    assert model.losses["TripletLoss"].arguments == {
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
