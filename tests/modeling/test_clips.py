"""Networks that see single frames, and the spatial pooling."""

import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.methods.sad import SAD
from fastreid_star.modeling.clips import frames_as_clips, join_frames

from ..methods.sad.small import config, make_batch

LOSSES = ("CrossEntropyLoss", "TripletLoss")


def network(*options):
    torch.manual_seed(0)
    cfg = config("build_small_resnet_backbone", "tiny", losses=LOSSES)
    cfg.merge_from_list(["MODEL.HEADS.GEM_P", 1.0, "MODEL.SAD.AUGMENT", False, *options])
    return SAD(cfg)


def test_frames_follow_one_another_with_the_label_of_their_clip():
    batch = {
        "images": torch.arange(6.0).view(2, 3, 1, 1, 1),
        "crop_sizes": torch.arange(12).view(2, 3, 2),
        "modality": torch.tensor([2, 1]),
        "targets": torch.tensor([5, 6]),
        "paths": ["a", "b"],
    }
    split = frames_as_clips(batch)
    assert split["images"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert split["images"].shape == (6, 1, 1, 1, 1)
    assert split["crop_sizes"].shape == (6, 1, 2)
    assert split["modality"].tolist() == [2, 2, 2, 1, 1, 1]
    assert split["targets"].tolist() == [5, 5, 5, 6, 6, 6]
    assert split["paths"] == ["a", "b"]


def test_features_are_joined_before_or_after_they_get_unit_length():
    frames = torch.tensor([[3.0, 4.0], [0.0, 10.0]])
    assert torch.allclose(join_frames(frames, 2), torch.tensor([[1.5, 7.0]]))
    assert torch.allclose(join_frames(frames, 2, "normalized"), torch.tensor([[0.3, 0.9]]))


def test_losses_of_frames_are_those_of_clips_of_one_frame():
    batch = make_batch(clips_per_half=4, length=3)
    found = network("MODEL.UNIT", "frame")(batch)
    expected = network()(frames_as_clips(batch))
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}


def test_the_feature_of_a_clip_is_that_of_its_mean_frame():
    batch = make_batch(clips_per_half=2, length=3)
    frames, clips = network("MODEL.UNIT", "frame").eval(), network().eval()
    with torch.no_grad():
        assert torch.allclose(frames(batch), clips(batch), atol=1e-6)  # the neck is affine


def test_generalized_mean_over_the_map():
    model = network("MODEL.HEADS.SPATIAL_P", 3.0)
    maps = torch.tensor([[[[0.0, 2.0]], [[-1.0, 1.0]]]])  # [1, 2, 1, 2]
    assert model.pool_frames(maps)[0].tolist() == pytest.approx([4 ** (1 / 3), 0.5 ** (1 / 3)])


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.UNIT", "image"), ("MODEL.HEADS.JOIN", "sum"), ("MODEL.HEADS.SPATIAL_P", 0.0)],
)
def test_a_value_that_does_not_exist_is_named(key, value):
    with pytest.raises(UserError, match=key):
        network(key, value)
