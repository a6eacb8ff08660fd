"""The store of silhouettes, and the true ones of the synthetic data."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from fastreid_star.data.build import build_clip_train_loader
from fastreid_star.data.clips import frame_indices
from fastreid_star.data.datasets.synthetic import (
    SyntheticOptions,
    SyntheticVCM,
    people,
    render,
    scene,
    write_masks,
    write_synthetic_vcm,
)
from fastreid_star.data.silhouettes import (
    draw_skeletons,
    read_shape,
    read_silhouette,
    write_shape,
    write_silhouette,
)
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.transforms import Resize
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

from ..tiny import REPOSITORY, tiny_config

CLEAN = SyntheticOptions(
    train_ids=1, test_ids=1, tracklets=2, frames=3, size=(64, 32), occlusion=0.0, blur=0.0,
    background=False,
)  # fmt: skip


def test_a_silhouette_is_read_as_it_was_written(tmp_path):
    mask = np.random.default_rng(0).random((7, 5)) < 0.5
    write_silhouette(tmp_path, "0001/ir/D4/1", mask)
    assert np.array_equal(read_silhouette(tmp_path, "0001/ir/D4/1"), mask)
    with pytest.raises(UserError, match=r"D4/2\.png cannot be read"):
        read_silhouette(tmp_path, "0001/ir/D4/2")
    (tmp_path / "0001/ir/D4/1.png").write_bytes(b"none")
    with pytest.raises(UserError, match="cannot be read"):
        read_silhouette(tmp_path, "0001/ir/D4/1")


def test_a_shape_keeps_its_probabilities(tmp_path):
    shape = np.array([[0, 127, 128, 255]], np.uint8)
    write_shape(tmp_path, "1", shape)
    assert np.array_equal(read_shape(tmp_path, "1"), shape)
    assert read_silhouette(tmp_path, "1").tolist() == [[False, False, True, True]]


def filmed(options, *, masks, modality=Modality.VISIBLE, seed=0):
    rng = np.random.default_rng(seed)
    person = people.draw_person(rng)
    return render.film(person, 3, modality, options, rng, masks=masks)


@pytest.mark.parametrize("detections", [False, True])
def test_asking_for_masks_changes_neither_images_nor_joints(detections):
    options = dataclasses.replace(CLEAN, occlusion=1.0, detections=detections)
    plain, masked = (filmed(options, masks=masks) for masks in (False, True))
    assert plain.masks is None
    assert len(masked.masks) == 3
    assert np.array_equal(plain.joints, masked.joints)
    for first, second, mask in zip(plain.images, masked.images, masked.masks, strict=True):
        assert np.array_equal(first, second)
        assert mask.shape == first.shape[:2]
        assert 0.03 < mask.mean() < 0.8


def test_a_mask_is_where_the_picture_differs_from_the_empty_wall(monkeypatch):
    """Without blur, noise and light, every pixel outside is the gray wall, but for the shadow."""
    monkeypatch.setattr(render, "expose", lambda images, *args: images)
    footage = filmed(CLEAN, masks=True, seed=4)
    for image, mask in zip(footage.images, footage.masks, strict=True):
        changed = np.abs(image - scene.PLAIN_GRAY).max(-1) > 3
        rows = slice(0, 48)  # the shadow is at the feet
        assert not (mask & ~changed)[rows].any() or (mask & ~changed)[rows].mean() < 0.02
        outside = changed & ~mask
        assert outside[rows].sum() < 0.35 * mask[rows].sum()  # pixels that are covered in part


def test_an_occluder_hides_a_part_of_the_mask():
    free = sum(mask.sum() for mask in filmed(CLEAN, masks=True, seed=1).masks)
    hidden = dataclasses.replace(CLEAN, occlusion=1.0)
    assert sum(mask.sum() for mask in filmed(hidden, masks=True, seed=1).masks) < 0.95 * free


def test_the_masks_of_a_written_dataset(tmp_path):
    write_synthetic_vcm(tmp_path / "SyntheticVCM", CLEAN)
    write_masks(tmp_path / "SyntheticVCM", tmp_path / "masks")
    data = SyntheticVCM(str(tmp_path), min_frames=3)
    for tracklet in [*data.train, *data.query, *data.gallery]:
        for index in range(len(tracklet)):
            mask = read_silhouette(tmp_path / "masks", tracklet.key(index))
            with Image.open(tracklet.path(index)) as image:
                pixels = np.asarray(image.convert("L"), float)
            # the person is not the wall: it differs from the corners more than the rest does
            wall = np.median(np.concatenate([pixels[:8, :4], pixels[:8, -4:]]))
            difference = np.abs(pixels - wall)
            assert difference[mask].mean() > 1.5 * difference[~mask].mean()
    with pytest.raises(UserError, match="not a synthetic dataset"):
        write_masks(tmp_path, tmp_path / "masks")


def test_drawn_skeletons_cover_a_part_of_the_person(tmp_path):
    write_synthetic_vcm(tmp_path / "SyntheticVCM", CLEAN)
    data = SyntheticVCM(str(tmp_path), min_frames=3)
    write_masks(data.folder, tmp_path / "masks")
    store = SkeletonStore.open(data.path("skeletons"))
    draw_skeletons(data.train, store, tmp_path / "limbs")
    pairs = [
        [read_silhouette(tmp_path / name, tracklet.key(1)) for name in ("limbs", "masks")]
        for tracklet in data.train
    ]
    assert np.mean([(limbs & mask).sum() / limbs.sum() for limbs, mask in pairs]) > 0.7
    assert np.mean([(limbs & mask).sum() / mask.sum() for limbs, mask in pairs]) > 0.3


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dataclasses.replace(CLEAN, tracklets=1, frames=12)
    write_synthetic_vcm(tmp_path / "datasets" / "SyntheticVCM", options)
    page = (REPOSITORY / "docs" / "sgiel.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        exec(block, {})
    assert read_shape("shapes", "0001/ir/D4/1").mean() == round(255 * 6 / 7)
    data = SyntheticVCM("datasets")
    assert read_silhouette(data.path("limbs"), data.train[0].key(3)).any()


def test_a_batch_has_the_shapes_of_its_frames(tiny_root, tmp_path):
    """SyntheticVCM draws them when they are first needed; a store that lacks frames is refused."""
    cfg = tiny_config(tiny_root, tmp_path, "DATASETS.SHAPES", str(tmp_path / "exact"))
    loader = build_clip_train_loader(cfg, seed=0)
    batch = next(iter(loader))
    assert batch["shapes"].shape == (8, 3, 32, 16)
    assert batch["shapes"].dtype == batch["images"].dtype
    assert 0.05 < (batch["shapes"] > 127).float().mean() < 0.8
    first = loader.dataset.tracklets[0]
    loader.dataset.transform = Resize((32, 16))  # the size of the frames
    item = loader.dataset[0]
    shown = frame_indices(len(first), 3).tolist()
    expected = [read_shape(tmp_path / "exact", first.key(index)) for index in shown]
    assert np.array_equal(item["shapes"], np.stack(expected))
    assert not np.array_equal(expected[0], expected[2])
    (tmp_path / "exact" / f"{first.key(0)}.png").unlink()
    with pytest.raises(UserError, match=rf"{first.key(0)}\.png: each training frame"):
        build_clip_train_loader(cfg, seed=0)
