"""Features of clips and of their mirror images, for TEST.FLIP.ENABLED."""

import torch
import torch.nn.functional as F

from fastreid_star.coco import LEFT_RIGHT
from fastreid_star.engine.trainer import Trainer
from fastreid_star.modeling.mirror import MirrorAverage, build_test_network, mirrored

from ..tiny import star_config


def batch_of(width=16):
    generator = torch.Generator().manual_seed(0)
    joints = torch.rand(2, 3, 17, 3, generator=generator) * torch.tensor([width, 32, 1.0])
    return {
        "images": torch.randint(0, 256, (2, 3, 3, 32, width), generator=generator).byte(),
        "modality": torch.tensor([1, 2]),
        "skeletons": joints,
        "has_skeleton": torch.ones(2, 3, dtype=torch.bool),
    }


def test_pixels_and_joints_by_hand():
    batch = batch_of()
    batch["skeletons"][0, 0, 5] = torch.tensor([2.0, 7.0, 0.5])  # the left shoulder
    batch["skeletons"][0, 0, 8] = 0  # missing: the right elbow
    found = mirrored(batch)
    assert torch.equal(found["images"][..., 0], batch["images"][..., 15])
    assert found["skeletons"][0, 0, 6].tolist() == [13.0, 7.0, 0.5]  # 16 - 1 - 2
    assert not found["skeletons"][0, 0, 7].any()
    again = mirrored(found)
    assert torch.equal(again["images"], batch["images"])
    torch.testing.assert_close(again["skeletons"], batch["skeletons"])
    assert torch.equal(found["modality"], batch["modality"])
    assert sorted(LEFT_RIGHT) == list(range(17))


def test_the_mean_of_both_has_unit_length(tiny_root, tmp_path):
    cfg = star_config(tiny_root, tmp_path, "MODEL.HEADS.NUM_CLASSES", "3")
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).eval()
    batch = batch_of()
    assert build_test_network(cfg, model) is model
    with torch.no_grad():
        one, other = model(batch), model(mirrored(batch))
        found = MirrorAverage(model)(batch)
    assert (one - other).abs().max() > 1e-4
    torch.testing.assert_close(found, F.normalize(one + other, dim=1))


def test_features_of_parts_are_not_scaled():
    parts = torch.rand(2, 2, 4, 5)

    class Parts(torch.nn.Module):
        def forward(self, batch):
            return parts[int(batch["images"][0, 0, 0, 0, 0] != first)]

    batch = batch_of()
    first = batch["images"][0, 0, 0, 0, 0].clone()
    torch.testing.assert_close(MirrorAverage(Parts())(batch), parts.mean(0))
