"""Properties of all registered losses, and the values of those that methods share."""

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg

from fastreid_star.errors import UserError
from fastreid_star.modeling.losses import LOSS_REGISTRY, build_losses

from . import restated

D, C, T = 5, 8, 2  # width, classes, frames
# identity and modality of the clips: 0 has two pairs, 1 a half more visible, 2 one pair, 3 no pair
IDS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
VISIBLE = [1, 1, 0, 0, 1, 1, 0, 1, 0, 1]


def outputs(ids=IDS, visible=VISIBLE, scale=2.0, dtype=torch.float64, seed=0):
    """What a model gives, with random features; they require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (scale * x).to(dtype).requires_grad_()

    b = len(ids)
    targets, of_clips = torch.tensor(ids), torch.tensor(visible).bool()
    found = {
        "targets": targets,
        "frame_targets": targets.repeat_interleave(T),
        "is_visible": of_clips.repeat_interleave(T),
    }
    found["clip"] = draw(b, 3, D)  # parts
    for name in ("clip_features", "anaglyph_features", "auxiliary_clip"):
        found[name] = draw(b, D)
    for name in ("frames", "attacked_frames", "frame_embeddings", "corrected"):
        found[name] = draw(b, T, D)
    for name in ("clip_logits", "anaglyph_logits", "absent_logits"):
        found[name] = draw(b, C)
    for name in ("frame_logits", "attacked_logits"):
        found[name] = draw(b * T, C)
    return {**found, "auxiliary_targets": targets}


def build(name, *options):
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.MODEL.LOSSES.NAME = (name,)
    cfg.MODEL.LOSSES.TRI.HARD_MINING = True
    cfg.MODEL.LOSSES.OPTIONS = [[name, *option] for option in options]
    cfg.MODEL.HEADS.NUM_CLASSES = C
    cfg.MODEL.IBAN.ANAGLYPH_EPOCH = 0
    loss = build_losses(cfg, feat_dim=D)[name]
    for module in loss.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    return loss


def gradients(loss, given):
    leaves = [x for n, x in given.items() if n in loss.needs and x.requires_grad]
    value = loss.of(given)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return value, [
        torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)
    ]


MADE = set(outputs())
PACKAGE = {
    n: c
    for n, c in LOSS_REGISTRY._obj_map.items()
    if c.__module__.startswith("fastreid_star.") and ".example." not in c.__module__
}
NAMES = sorted(n for n, c in PACKAGE.items() if set(c.needs) <= MADE)
CATALOG = {
    "WeightedTripletLoss": restated.weighted_triplet,
    "SquaredDifferenceLoss": restated.squared_difference,
    "HeteroCenterLoss": restated.hetero_center,
    "HeteroCenterTripletLoss": restated.hetero_center_triplet,
    "CenterClusterLoss": restated.center_cluster,
    "SharedEnhancementLoss": restated.shared_enhancement,
    "DiscriminativeCenterLoss": restated.discriminative_center,
    "MeanDiscrepancyLoss": restated.mean_discrepancy,
    "ModalityAlignmentLoss": restated.alignment,
    "CrossModalContrastiveLoss": restated.contrastive,
}


def rows(x):
    return list(x.unbind())


def compare(loss, given, expected):
    value, found = gradients(loss, given)
    leaves = [x for n, x in given.items() if n in loss.needs and x.requires_grad]
    wanted = torch.autograd.grad(expected, leaves)
    assert value.item() > 0
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 2.0, 12.0])
@pytest.mark.parametrize("name", CATALOG)
def test_value_and_gradient_equal_a_restatement(name, scale):
    given = outputs(scale=scale)
    expected = CATALOG[name](rows(given["clip_features"]), IDS, [bool(v) for v in VISIBLE])
    compare(build(name), given, expected)


@pytest.mark.parametrize("scale", [0.3, 2.0, 12.0])
@pytest.mark.parametrize("name", ["WeightedTripletLoss", "SquaredDifferenceLoss"])
def test_published_readings_equal_a_restatement(name, scale):
    given = outputs(scale=scale)
    expected = CATALOG[name](rows(given["clip_features"]), IDS, VISIBLE, published=True)
    compare(build(name, ("reading", "published")), given, expected)


def test_losses_of_other_outputs_equal_a_restatement():
    given, v = outputs(), [bool(x) for x in VISIBLE]
    compare(
        build("LogitDistillationLoss"),
        given,
        restated.distillation(rows(given["clip_logits"]), IDS, v),
    )
    compare(build("OrthogonalityLoss"), given, restated.orthogonality(given["frames"]))
    embedded = rows(given["attacked_frames"].mean(1))
    expected = restated.pair_mining(rows(given["clip_features"]), IDS, v, embedded)
    compare(build("CenterPairMiningLoss"), given, expected)


def test_reversal_is_a_classifier_from_which_the_clips_hide():
    given, loss = outputs(), build("ModalityReversalLoss").double()
    layer = loss.classifier
    logits = given["clip_features"] @ layer.weight.T + layer.bias
    entropy = F.cross_entropy(logits, torch.tensor(VISIBLE))
    compare(loss, given, 2 * entropy.detach() - entropy)
    learned = torch.autograd.grad(loss.of(given), layer.weight)[0]
    logits = F.linear(given["clip_features"], layer.weight, layer.bias)
    wanted = torch.autograd.grad(F.cross_entropy(logits, torch.tensor(VISIBLE)), layer.weight)[0]
    torch.testing.assert_close(learned, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_rows_has_no_effect(name):
    given, order = outputs(), torch.randperm(len(IDS), generator=torch.Generator().manual_seed(1))
    if (
        name == "MutualDistillationLoss"
    ):  # the n-th rows of an identity are a pair: one after another
        order = torch.tensor([9, 7, 8, 4, 5, 6, 0, 2, 3, 1])
    of_frames = (order[:, None] * T + torch.arange(T)).flatten()
    loss = build(name).double()
    value, found = gradients(loss, given)
    shuffled = {
        n: x.detach()[order if len(x) == len(IDS) else of_frames].requires_grad_(x.requires_grad)
        for n, x in given.items()
    }
    again, after = gradients(loss, shuffled)
    torch.testing.assert_close(again, value, rtol=1e-9, atol=1e-12)
    for before, g in zip(found, after, strict=True):
        moved = before[order if len(before) == len(IDS) else of_frames]
        torch.testing.assert_close(g, moved, rtol=1e-7, atol=1e-9)


CASES = {
    "one positive": ([0, 0, 1, 1], [1, 0, 1, 0], 2.0, torch.float32),
    "no positive": ([0, 1, 2, 3], [1, 0, 1, 0], 2.0, torch.float32),
    "one modality": ([0, 0, 1, 1], [1, 1, 1, 1], 2.0, torch.float32),
    "one identity": ([0, 0, 0, 0], [1, 1, 0, 0], 2.0, torch.float32),
    "equal features": (IDS, VISIBLE, 0.0, torch.float32),
    "huge distances": (IDS, VISIBLE, 1e6, torch.float32),
    "float16": (IDS, VISIBLE, 100.0, torch.float16),
    "bfloat16": (IDS, VISIBLE, 100.0, torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_finite(name, case):
    ids, visible, scale, dtype = CASES[case]
    given = outputs(ids, visible, scale, dtype)
    if case == "equal features":  # but not 0
        given = {
            n: x.detach().add(1).requires_grad_() if x.requires_grad else x
            for n, x in given.items()
        }
    half = dtype if dtype != torch.float32 else torch.bfloat16
    with torch.autocast("cpu", dtype=half, enabled=dtype != torch.float32):
        value, found = gradients(build(name), given)
    assert value.ndim == 0
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize(
    "name",
    [
        *("WeightedTripletLoss", "SquaredDifferenceLoss", "HeteroCenterTripletLoss"),
        *("DiscriminativeCenterLoss", "ModalityAlignmentLoss"),
    ],
)
def test_without_negatives_there_is_nothing_to_compare(name):
    ids, visible, _, _ = CASES["one identity"]
    assert build(name).of(outputs(ids, visible)).item() == 0


@pytest.mark.parametrize("name", [*CATALOG, "LogitDistillationLoss", "CenterPairMiningLoss"])
def test_half_precision_has_the_digits_of_its_input(name):
    given = outputs(scale=3.0, dtype=torch.bfloat16)
    exact = {n: x.detach().double() if x.requires_grad else x for n, x in given.items()}
    loss = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.of(given)
    assert found.item() == pytest.approx(loss.of(exact).item(), rel=1e-4, abs=1e-5)


def test_options_are_set_by_name():
    given = outputs(scale=0.1)
    wide = build("HeteroCenterTripletLoss", ("margin", 100))
    assert wide.of(given).item() > 90
    assert build("HeteroCenterTripletLoss").of(given).item() < 2


@pytest.mark.parametrize(
    ("option", "word"),
    [
        (("margn", 1.0), "has the options margin"),
        (("margin", "wide"), "give a number"),
        (("margin",), "give .loss, option, value"),
    ],
)
def test_a_wrong_option_is_named(option, word):
    with pytest.raises(UserError, match=word):
        build("HeteroCenterLoss", option)


def test_numbers_that_have_keys_of_their_own_are_no_options():
    with pytest.raises(UserError, match="TripletLoss has the options none"):
        build("TripletLoss", ("margin", 0.5))


def test_a_reading_that_does_not_exist_and_a_loss_that_is_not_used_are_named():
    with pytest.raises(UserError, match="stable, published"):
        build("WeightedTripletLoss", ("reading", "release"))
    cfg = get_cfg()
    cfg.MODEL.LOSSES.NAME = ("CrossEntropyLoss",)
    cfg.MODEL.LOSSES.OPTIONS = [["HeteroCenterLoss", "margin", 0.2]]
    with pytest.raises(UserError, match="names HeteroCenterLoss"):
        build_losses(cfg, feat_dim=D)


def test_every_loss_has_an_equation():
    assert [name for name, loss in PACKAGE.items() if not loss.equation] == []
