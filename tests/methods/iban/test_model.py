"""IBAN against a restatement of its equations in float64, in both readings."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.methods.iban.layers import CrossAttention, to_maps, to_volume
from fastreid_star.methods.iban.losses import easy_sample_loss
from fastreid_star.modeling.layers.colors import anaglyph

from ...tiny import small_config
from ..restated import assert_same_step, batch_hard, cross_entropy, gate, lstm, norm, unusual

T, SIZE = 3, (64, 32)
VISIBLE = [True] * 4 + [False] * 4
READINGS = ("default", "authors")


def build(tmp_path, *more):
    torch.manual_seed(0)
    options = ("MODEL.HEADS.NUM_CLASSES", "2", "MODEL.IBAN.ANAGLYPH_EPOCH", "1", *more)
    return Trainer.build_model(small_config("IBAN", tmp_path, tmp_path, *options))


def different(model):
    """Both networks differ, and the attention is not the identity."""
    unusual(model)
    with torch.no_grad():
        for parameter in model.anaglyph_backbone.parameters():
            parameter.mul_(1.1)
    return model


def batch(clips=8, length=T):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (clips * length, 3, 8, 4), generator=generator).float()
    images = F.interpolate(coarse, SIZE, mode="bilinear").view(clips, length, 3, *SIZE)
    modality = torch.tensor([2 if visible else 1 for visible in VISIBLE[:clips]])
    return {"images": images, "modality": modality, "targets": torch.tensor([0, 0, 1, 1] * 2)}


# --- the restatement


def relief(images):
    g = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    out = torch.zeros_like(g)
    for i in range(g.shape[1] - 1):
        for j in range(g.shape[2] - 1):
            out[:, i, j] = (g[:, i + 1, j + 1] - g[:, i, j] + 128).clamp(0, 255)
    return torch.stack([out] * 3, 1)


def pool(volume):
    """The maximum of 2 x 2 positions; a map of width 1 keeps it."""
    h, w = ([*range(0, side - side % 2, 2)] or [0] for side in volume.shape[2:])
    cells = [[volume[:, :, i : i + 2, j : j + 2].amax((2, 3)) for j in w] for i in h]
    return torch.stack([torch.stack(row, -1) for row in cells], -2)


def attend(p, depth, x, f, reading, training):
    """Clip by clip; positions one by one in the default reading, as the program in the other."""
    name, out = f"attention.{depth}", []
    for clip in range(len(x) // T):
        of_clip = [maps[clip * T : clip * T + T] for maps in (x, f)]
        channels, h, w = x.shape[1:]
        if reading == "authors":  # [T, C, h, w], read as [C, T, h, w]
            of_clip = [maps.reshape(channels, T, h, w) for maps in of_clip]
        else:
            of_clip = [torch.stack([maps[:, c] for c in range(channels)]) for maps in of_clip]

        def conv(layer, volume):
            weight = p[f"{name}.{layer}.weight"][..., 0]
            found = torch.einsum("oc,cthw->othw", weight, volume)
            return found + p[f"{name}.{layer}.bias"].view(-1, 1, 1, 1)

        query, key, value = (
            conv("theta", of_clip[1]),
            conv("phi", of_clip[0]),
            conv("g", of_clip[0]),
        )
        scores = query.flatten(1).T @ pool(key).flatten(1)
        mixture = (scores.softmax(1) @ pool(value).flatten(1).T).T.view(-1, T, h, w)
        out.append(conv("out.0", mixture))
    volume = torch.stack(out)
    rows = volume.transpose(1, 0).flatten(1).T
    rows = norm(rows, p, f"{name}.out.1", training) + p[f"{name}.out.1.bias"]
    volume = rows.T.view(volume.shape[1], len(out), T, h, w).transpose(0, 1)
    if reading == "authors":
        return x + volume.reshape(x.shape)
    return x + torch.cat([clip.transpose(0, 1) for clip in volume])


def easy(x, labels, reading):
    total, anchors = 0, len(x)
    for i in range(anchors):
        others = [k for k in range(anchors) if VISIBLE[k] != VISIBLE[i]]
        positives = [k for k in others if labels[k] == labels[i]]
        nearest = min(positives, key=lambda k: (x[i] - x[k]).square().sum().item())
        pulled = others if reading == "authors" else positives
        errors = [(x[k] - x[nearest].detach()).square().mean() for k in pulled]
        total = total + (sum(errors) if reading == "authors" else sum(errors) / len(errors))
    return total if reading == "authors" else total / anchors


def restate(model, inputs, reading, training=True):
    """All losses, or the features before they get unit length, by a model's own backbones."""
    p = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    visible = torch.tensor(VISIBLE).repeat_interleave(T)
    images = inputs["images"].flatten(0, 1).double()

    def first(backbone, pixels):
        x = backbone.stem((pixels - model.pixel_mean) / model.pixel_std, visible)
        return backbone.stage3(backbone.low(x))

    x = first(model.backbone, images)
    f = first(model.anaglyph_backbone, relief(images))
    x = model.backbone.stage4(attend(p, 0, x, f, reading, training))
    last = model.anaglyph_backbone.stage4(f)
    x = attend(p, 1, x, last, reading, training)
    frames = x.mean((2, 3)).view(8, T, -1)
    h, r = lstm(p, "forward_lstm", frames), lstm(p, "backward_lstm", frames.flip(1))
    clip = 0
    for i in range(T):
        xi = frames[:, i]
        cosines = [(xi * e).sum(1) / xi.norm(dim=1) / e.norm(dim=1) for e in (h, r)]
        y = xi * (1 + gate(p, i, h, xi))
        clip = clip + y * (1 + (cosines[0] + cosines[1])[:, None] / 2) / T
    if not training:
        return norm(clip, p, "heads.bottleneck.0", False)
    labels = inputs["targets"].tolist()
    logits = norm(clip, p, "heads.bottleneck.0", True) @ p["heads.weight"].T
    reliefs = last.mean((2, 3)).view(8, T, -1).mean(1)
    of_reliefs = norm(reliefs, p, "anaglyph_neck.0", True) @ p["heads.weight"].T
    rebuilt, half = 0, 4 * T
    for depth, maps in enumerate((f, last)):
        for source, rows, goal in (
            ("visible", maps[:half], maps[half:]), ("infrared", maps[half:], maps[:half])
        ):  # fmt: skip
            weight = p[f"reconstruction.{source}.{depth}.weight"]
            found = F.conv2d(rows, weight, padding=weight.shape[-1] // 2)
            rebuilt = rebuilt + (found - goal.detach()).square().mean()
    return {
        "loss_cls": cross_entropy(logits, labels),
        "loss_triplet": batch_hard(clip, labels),
        "loss_easy": easy(clip, labels, reading),
        "loss_triplet_anaglyph": batch_hard(reliefs, labels),
        "loss_cls_anaglyph": cross_entropy(of_reliefs, labels),
        "loss_easy_anaglyph": easy(reliefs, labels, reading),
        "loss_reconstruction": rebuilt,
    }


@pytest.mark.parametrize("reading", READINGS)
def test_a_step_equals_the_restatement(tmp_path, reading):
    model = different(build(tmp_path, "MODEL.IBAN.READING", reading)).double().train()
    twin, inputs = copy.deepcopy(model), batch()
    expected = restate(twin, inputs, reading)
    assert_same_step(model, twin, model(inputs), expected, relative=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("reading", READINGS)
def test_the_feature_equals_the_restatement(tmp_path, reading):
    model = different(build(tmp_path, "MODEL.IBAN.READING", reading)).double().eval()
    feature = restate(model, batch(), reading, training=False)
    expected = feature / feature.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(batch()), expected, rtol=0, atol=1e-10)
    moved = model({**batch(), "modality": 3 - batch()["modality"]})
    assert (moved - expected).norm(dim=1).min() > 1e-3, "each modality has stems of its own"


def test_the_anaglyph_of_an_image_by_value():
    image = torch.zeros(1, 3, 2, 3, dtype=torch.float64)
    image[0, :, 1, 1], image[0, 0, 1, 2], image[0, 1, 0, 0] = 10.0, 255.0, 255.0
    expected = torch.tensor([[0, 128 + 0.299 * 255, 0], [0, 0, 0]])
    assert (anaglyph(image)[0] - expected).abs().max() < 1e-4
    assert (
        anaglyph(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2))[0, 0, 0, 0] == 255
    )


@pytest.mark.parametrize("mixed", [True, False])
def test_volumes_and_maps(mixed):
    maps = torch.arange(2 * 3 * 4 * 2.0).view(6, 4, 2, 1)
    volume = to_volume(maps, 3, mixed=mixed)
    assert torch.equal(to_maps(volume, mixed=mixed), maps)
    assert torch.equal(volume[1, 2, 1], maps[4, 2]) != mixed


def test_both_networks_start_equal_and_the_attention_as_the_identity(tmp_path):
    model = build(tmp_path)
    x, f = torch.randn(6, 8, 4, 2), torch.randn(6, 8, 4, 2)
    assert torch.equal(CrossAttention(8)(x, f, T), x)
    pairs = [*zip(model.backbone.parameters(), model.anaglyph_backbone.parameters(), strict=True)]
    assert all(torch.equal(one, two) and one is not two for one, two in pairs)
    state = {n: v + 1 for n, v in model.state_dict().items() if n.startswith("backbone.")}
    model.load_state_dict(state, strict=False)  # weights of another method
    assert all(torch.equal(one, two) for one, two in pairs)


def test_losses_of_the_anaglyphs_begin_in_their_epoch(tmp_path):
    model, inputs = build(tmp_path).train(), batch()
    model.epoch = 0
    assert list(model(inputs)) == [
        *("loss_cls", "loss_triplet", "loss_easy", "loss_triplet_anaglyph")
    ]
    assert model.has_idle_parameters
    model.epoch = 1
    losses = model(inputs)
    assert len(losses) == 7
    assert not model.has_idle_parameters
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_an_anchor_without_the_other_modality_has_no_easy_sample():
    clips = torch.randn(3, 4, dtype=torch.float64)
    targets, visible = torch.tensor([0, 0, 1]), torch.tensor([True, False, True])
    assert easy_sample_loss(clips, targets, visible) == 0  # each is pulled to itself
    pulled = easy_sample_loss(clips, targets, visible, reading="authors")
    torch.testing.assert_close(pulled, (clips[2] - clips[0]).square().mean())


def test_wrong_values_are_refused(tmp_path):
    for options, word in (
        (("MODEL.IBAN.READING", "release"), "authors"),
        (("MODEL.FRAME_CORRECTOR.NAME", "SkeletonFrameCorrector"), "no frame corrector"),
        (("MODEL.BACKBONE.NAME", "build_dinov2_backbone"), "convolutional"),
    ):
        with pytest.raises(UserError, match=word):
            build(tmp_path, *options)
    model = build(tmp_path).train()
    inputs = {**batch(), "modality": torch.tensor([2] * 5 + [1] * 3)}
    with pytest.raises(UserError, match="as many visible clips"):
        model(inputs)


def test_the_classifier_learns_from_the_anaglyphs_too(tmp_path):
    model = build(tmp_path).train()
    model(batch())["loss_cls_anaglyph"].backward()
    assert model.heads.weight.grad.abs().max() > 0
