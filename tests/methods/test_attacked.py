"""SAD's augmentation, attack and defense inside methods for images, by config."""

import pytest
import torch

from fastreid_star.engine.trainer import Trainer

from ..tiny import small_config

LOSSES = ("CrossEntropyLoss", "StyleAttackLoss", "StyleDefenseLoss")
OWN = {
    "DDAG": ("StripeCrossEntropyLoss", "IdentityGraphLoss"),
    "MPANet": ("MaskSeparationLoss", "ModalityIdentityLoss", "MutualLearningLoss"),
    "LbA": ("IdentityConsistencyLoss", "DenseTripletLoss"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_method_for_images_is_attacked(tmp_path, name):
    losses = (*LOSSES, *OWN[name])
    options = ("MODEL.LOSSES.NAME", str(losses), "MODEL.SAD.AUGMENT", "True")
    classes = ("MODEL.HEADS.NUM_CLASSES", "2")
    torch.manual_seed(0)
    model = Trainer.build_model(small_config(name, tmp_path, tmp_path, *options, *classes)).train()
    model.epoch = 1
    batch = {
        "images": torch.randint(0, 256, (4, 2, 3, 64, 32)),
        "modality": torch.tensor([2, 1, 2, 1]),
        "targets": torch.tensor([0, 0, 1, 1]),
    }
    outputs = model.encode(batch)
    assert outputs["attacked_frames"].shape == outputs["frames"].shape
    assert not torch.equal(outputs["attacked_frames"], outputs["frames"])
    found = model(batch)
    assert len(found) == len(losses)
    sum(found.values()).backward()
    assert [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None] == []
    assert all(w.grad.isfinite().all() for w in model.parameters() if w.requires_grad)
