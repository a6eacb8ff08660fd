"""Augmentations by name: what they do to which clips."""

import re
from pathlib import Path

import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.modeling.augmentations import AUGMENTATION_REGISTRY, Augmentations

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ([120.0, 110.0, 100.0], [60.0, 50.0, 40.0]))
NAMES = sorted(AUGMENTATION_REGISTRY._obj_map)


def batch_of(visible, *, length=2, view=None, size=(16, 8)):
    torch.manual_seed(3)
    number = len(visible)
    images = torch.randint(0, 256, (number, length, 3, *size), dtype=torch.uint8)
    found = {"images": images, "modality": torch.tensor(visible) + 1}
    found["targets"] = torch.arange(number // 2).repeat(2)
    return found if view is None else {**found, "view": torch.tensor(view)}


def apply(batch, *names):
    torch.manual_seed(0)
    return Augmentations(names)(batch, MEAN, STD)["images"]


def gray(clip):
    """Whether the three channels of a clip [T, 3, H, W] are equal."""
    return torch.allclose(clip, clip[:, :1].expand_as(clip), atol=1e-3)


MANY = [1] * 60 + [0] * 60


@pytest.mark.parametrize("name", NAMES)
def test_all_frames_of_a_clip_are_changed_alike(name):
    batch = batch_of([1, 1, 0, 0])
    batch["images"] = batch["images"][:, :1].expand(-1, 3, -1, -1, -1)
    before = batch["images"].clone()
    changed = apply(batch, [name, 1.0])
    assert changed.shape == before.shape
    assert torch.equal(batch["images"], before)  # in a new tensor
    assert not torch.allclose(changed, before.float(), atol=1)
    assert torch.allclose(changed[:, :1].expand_as(changed), changed, atol=1e-3)


@pytest.mark.parametrize("name", ["channel_choice", "luma", "random_luma"])
def test_half_of_the_visible_clips_become_gray(name):
    batch = batch_of(MANY)
    changed, before = apply(batch, name), batch["images"].float()
    number = sum(gray(clip) for clip in changed[:60])
    assert 20 < number < 40
    assert torch.equal(changed[60:], before[60:])
    for clip, old in zip(changed[:60], before[:60], strict=True):
        if not gray(clip):
            assert torch.equal(clip, old)
        elif name == "channel_choice":
            assert sum(torch.equal(clip[:, 0], old[:, c]) for c in range(3)) == 1
        elif name == "luma":
            expected = 0.299 * old[:, 0] + 0.587 * old[:, 1] + 0.114 * old[:, 2]
            torch.testing.assert_close(clip[:, 0], expected)
        else:
            assert (clip[:, 0] <= old.amax(1) + 1e-3).all()
            assert (clip[:, 0] >= old.amin(1) - 1e-3).all()


@pytest.mark.parametrize("name", ["channel_choice", "published_channels"])
def test_second_views_and_no_others_lose_their_color(name):
    batch = batch_of([1, 1, 1, 1], view=[0, 0, 1, 1])
    changed, before = apply(batch, name), batch["images"].float()
    torch.testing.assert_close(changed[:2], before[:2], atol=1e-3, rtol=0)
    for clip, old in zip(changed[2:], before[2:], strict=True):
        if name == "published_channels":  # one channel in normalized units
            clip, old = (clip - MEAN) / STD, (old - MEAN) / STD
        assert gray(clip)
        assert any(torch.allclose(clip[:, 0], old[:, c], atol=1e-4) for c in range(3))


def test_published_choice_after_the_normalization_leaves_a_gray_clip_not_gray():
    batch = batch_of([1, 1], view=[1, 1])
    batch["images"] = batch["images"][:, :, :1].expand(-1, -1, 3, -1, -1)
    assert all(gray(clip) for clip in apply(batch, "channel_choice"))
    assert not any(gray(clip) for clip in apply(batch, "published_channels"))


def test_published_channels_change_seven_of_eight_infrared_clips():
    batch = batch_of([0] * 160)
    batch["targets"] = torch.arange(160)
    changed, before = apply(batch, "published_channels"), batch["images"].float()
    same = sum(torch.allclose(c, b, atol=1e-3) for c, b in zip(changed, before, strict=True))
    assert 8 < same < 34  # 20 +- 3 standard deviations
    assert all(gray((c - MEAN) / STD) or torch.allclose(c, b, atol=1e-3)
               for c, b in zip(changed, before, strict=True))  # fmt: skip


def test_factors_are_of_normalized_channels():
    batch = batch_of([1, 0])
    batch["images"] = torch.full_like(batch["images"], 200)
    normal = (apply(batch, "channel_factors") - MEAN) / STD
    before = (200 - MEAN) / STD
    assert normal.flatten(3).std(-1).max() < 1e-4  # constant images stay constant
    ratios = normal[1] / before
    assert torch.allclose(ratios, ratios[:1, :1, :1, :1].expand_as(ratios), atol=1e-4)
    assert 0.5 <= ratios[0, 0, 0, 0] <= 1.5
    assert not gray(normal[:1, 0])


def test_erased_pixels_have_the_published_gray():
    batch = batch_of(MANY)
    before = batch["images"].float()
    changed = apply(batch, "erasing")
    value = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1) * STD + MEAN
    painted = (changed != before).any(2)  # [B, T, H, W]
    assert torch.allclose(changed.permute(0, 1, 3, 4, 2)[painted], value.flatten())
    shares = painted[:, 0].flatten(1).float().mean(1)
    assert 40 < (shares > 0).sum() < 80
    assert 0.33 < shares.max() < 0.45


def test_cutmix_takes_a_rectangle_from_the_same_identity_in_the_other_modality():
    batch = batch_of([1, 1, 0, 0])  # identities 0, 1, 0, 1
    before, changed = batch["images"].float(), apply(batch, ["cutmix", 1.0])
    inside = (changed != before).any(2, keepdim=True).any(0, keepdim=True)
    assert 0 < inside.sum() < inside.numel()
    rows = inside[0, 0, 0].any(1).nonzero().flatten()
    columns = inside[0, 0, 0].any(0).nonzero().flatten()
    box = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert torch.equal(changed[box], before[[2, 3, 0, 1]][box])
    torch.manual_seed(0)
    steps = [Augmentations(["cutmix"])(batch, MEAN, STD)["images"] for _ in range(100)]
    assert 8 < sum(not torch.equal(step, before) for step in steps) < 32


def test_anaglyphs_by_value():
    batch = batch_of([1, 0])
    batch["images"] = torch.zeros_like(batch["images"])
    batch["images"][..., 3, 4] = 255  # a white pixel
    (relief, _) = apply(batch, ["anaglyph", 1.0])
    assert gray(relief)
    assert relief[0, 0, 2, 3].item() == 255
    assert relief[0, 0, 3, 4].item() == 0
    assert relief[0, 0, 5, 5].item() == 128


def test_steps_are_applied_in_their_order():
    batch = batch_of([1, 1], view=[1, 1])
    (relief, _) = apply(batch, ["luma", 1.0], ["anaglyph", 1.0])
    (alone, _) = apply(batch, ["anaglyph", 1.0])
    torch.testing.assert_close(relief, alone, atol=1e-2, rtol=0)  # luma of luma
    assert gray(apply(batch, ["anaglyph", 1.0], ["luma", 1.0])[0])
    assert Augmentations()(batch, MEAN, STD) is batch


@pytest.mark.parametrize(
    ("entry", "word"),
    [("lumma", "choose of"), (["luma", 1.5], "a share"), (["luma", 0, 1], "share")],
)
def test_a_wrong_entry_is_named(entry, word):
    with pytest.raises(UserError, match=word):
        Augmentations([entry])


def test_the_example_of_the_page(monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "extending.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    (block,) = [block for block in blocks if "AUGMENTATION_REGISTRY" in block]
    monkeypatch.setattr(AUGMENTATION_REGISTRY, "_obj_map", dict(AUGMENTATION_REGISTRY._obj_map))
    exec(block, {"__name__": "user"})
    batch = batch_of([1, 0])
    changed, before = apply(batch, ["inverted", 1.0]), batch["images"].float()
    assert torch.equal(changed[0], before[0])
    assert torch.equal(changed[1], 255 - before[1])
