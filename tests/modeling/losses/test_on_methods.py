"""Any loss of the catalog, any augmentation and any classifier, on the methods, by config."""

import pytest
import torch

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.modeling.augmentations import AUGMENTATION_REGISTRY

from ...tiny import small_config

LOSSES = (
    *("CrossEntropyLoss", "TripletLoss", "WeightedTripletLoss", "SquaredDifferenceLoss"),
    *("HeteroCenterLoss", "HeteroCenterTripletLoss", "CenterClusterLoss", "SharedEnhancementLoss"),
    *("DiscriminativeCenterLoss", "MeanDiscrepancyLoss", "ModalityAlignmentLoss"),
    *("CrossModalContrastiveLoss", "LogitDistillationLoss", "ModalityReversalLoss"),
    "OrthogonalityLoss",
)
ATTACKED = ("StyleAttackLoss", "StyleDefenseLoss", "CenterPairMiningLoss")


def build(name, folder, *options):
    torch.manual_seed(0)
    cfg = small_config(name, folder, folder, "MODEL.HEADS.NUM_CLASSES", "2", *options)
    return Trainer.build_model(cfg).train()


def batch_of(views=(0, 0)):
    """Two identities, each with two visible and two infrared clips."""
    images = torch.randint(0, 256, (8, 3, 3, 32, 16), dtype=torch.uint8)
    batch = {"images": images, "modality": torch.tensor([2] * 4 + [1] * 4)}
    batch["targets"] = torch.tensor([0, 0, 1, 1] * 2)
    batch["view"] = torch.tensor([*views, *views, 0, 0, 0, 0])
    batch["skeletons"] = torch.rand(8, 3, 17, 3) * 16
    batch["has_skeleton"] = torch.ones(8, 3, dtype=torch.bool)
    return batch


@pytest.mark.parametrize("name", ["SAD", "STAR", "M3ReID"])
def test_all_losses_and_augmentations_take_a_step(tmp_path, name):
    names = LOSSES if name == "M3ReID" else (*LOSSES, *ATTACKED)
    steps = sorted(AUGMENTATION_REGISTRY._obj_map)
    options = ("MODEL.LOSSES.NAME", str(names), "INPUT.AUGMENTATIONS", str(steps))
    model = build(name, tmp_path, *options)
    losses = model(batch_of())
    assert len(losses) == len(names)
    sum(losses.values()).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is None or value.grad.isfinite().all(), parameter
    assert next(model.backbone.stages[0].parameters()).grad.abs().max() > 0


def test_a_loss_that_a_method_cannot_have_is_named(tmp_path):
    with pytest.raises(UserError, match="CenterPairMiningLoss needs attacked_frames"):
        build(
            "M3ReID", tmp_path, "MODEL.LOSSES.NAME", "('CrossEntropyLoss','CenterPairMiningLoss')"
        )


@pytest.mark.parametrize("name", ["ArcSoftmax", "CosSoftmax", "CircleSoftmax"])
def test_classifiers_with_a_margin(tmp_path, name):
    """The margin makes the label harder to reach: the loss of the same weights is larger."""
    options = ("MODEL.HEADS.CLS_LAYER", name, "MODEL.HEADS.SCALE", "16")
    found = {}
    for margin in ("0.0", "0.3"):
        model = build("SAD", tmp_path, *options, "MODEL.HEADS.MARGIN", margin)
        model.augment = False
        loss = found[margin] = model(batch_of())["loss_cls"]
        loss.backward()
        assert model.heads.weight.grad.abs().max() > 0
    assert found["0.3"].isfinite()
    assert found["0.3"] != found["0.0"]
    if name != "CircleSoftmax":
        assert found["0.3"] > found["0.0"]


def test_method_and_style_attack(tmp_path):
    """CAJL with SAD's attack: a third of the batch are second views of visible frames."""
    names = "('CrossEntropyLoss','SquaredDifferenceLoss','StyleAttackLoss','StyleDefenseLoss')"
    model = build("CAJL", tmp_path, "MODEL.LOSSES.NAME", names, "MODEL.SAD.AUGMENT", "True")
    seen = []
    model.backbone.stages[2].register_forward_hook(lambda *_: seen.append(1))
    batch = {key: value[:6] for key, value in batch_of(views=(0, 1)).items()}
    losses = model(batch)
    assert set(losses) == {
        *("loss_cls", "loss_squared_difference", "loss_cls_attack", "loss_defense")
    }
    assert len(seen) == 2  # a clean and an attacked pass
    sum(losses.values()).backward()
    assert model.eval()(batch).shape == (6, model.backbone.feature_width)
