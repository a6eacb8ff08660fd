"""What is around ViTPose's network; the network itself in the pose environment, by checks/vitpose_checks.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.pose.vitpose import PrepareCrop, find_joints

from .environment import needs_environment, run_checks


@needs_environment
def test_networks_and_libraries(tmp_path):
    print(run_checks("vitpose_checks", tmp_path))


def gaussian(x, y, height=1.0, size=(64, 48)):
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    return height * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8.0)


@settings(deadline=None, max_examples=15)
@given(x=st.floats(12, 35), y=st.floats(12, 51), height=st.floats(0.2, 1.5))
def test_a_gaussian_is_found_between_the_cells(x, y, height):
    maps = gaussian(x, y, height).repeat(2, 3, 1, 1)
    cells, scores = find_joints(maps)
    assert cells.shape == (2, 3, 2)
    torch.testing.assert_close(cells, torch.tensor([x, y]).expand(2, 3, 2), atol=2e-3, rtol=0)
    torch.testing.assert_close(scores, maps.flatten(2).amax(2))


def test_each_map_for_itself():
    places = torch.tensor([[[10.0, 20.0], [30.25, 40.5]], [[21.0, 9.75], [40.0, 55.0]]])
    maps = torch.stack(
        [torch.stack([gaussian(*place) for place in crop]) for crop in places.tolist()]
    )
    torch.testing.assert_close(find_joints(maps)[0], places, atol=2e-3, rtol=0)


def test_maps_that_say_nothing():
    for value in (0.0, -1.0, 0.3):
        cells, scores = find_joints(torch.full((1, 1, 64, 48), value))
        assert cells.abs().max() <= 2
        assert scores.item() == pytest.approx(value)


def test_a_peak_in_the_corner_stays_in_reach():
    cells, _ = find_joints(gaussian(0, 63)[None, None])
    assert (cells[0, 0] - torch.tensor([0.0, 63.0])).abs().max() <= 2


def test_a_step_that_leaves_the_peak_is_not_taken():
    """Ridges bend along one direction only: there the top of the parabola is anywhere."""
    torch.manual_seed(0)
    maps = 0.002 * torch.randn(4, 17, 64, 48) + 0.5 + torch.linspace(0, 1e-4, 48)
    highest = maps.flatten(2).argmax(2)
    highest = torch.stack([highest % 48, highest // 48], dim=-1)
    assert (find_joints(maps)[0] - highest).abs().max() <= 2


@pytest.mark.parametrize(("width", "height"), [(60, 160), (96, 128), (300, 100)])
def test_geometry_of_a_crop(width, height):
    """The box is 1.25 crops in the input's proportions; the input's first and last pixels lie on its first and last."""
    prepared = PrepareCrop(192, 256)(np.full((height, width, 3), 255, np.uint8))
    assert prepared.image.shape == (3, 256, 192)
    assert prepared.image.dtype == torch.uint8
    tall = 1.25 * max(height, width * 256 / 192)
    assert prepared.box == pytest.approx([tall * 0.75, tall])
    assert prepared.corner == pytest.approx([(width - tall * 0.75) / 2, (height - tall) / 2])
    assert prepared.share == pytest.approx(width / (tall * 0.75))
    shown = (prepared.image[0] > 127).float()
    across, down = shown.amax(0).sum(), shown.amax(1).sum()
    assert across == pytest.approx(width * 191 / prepared.box[0], abs=1.5)
    assert down == pytest.approx(height * 255 / prepared.box[1], abs=1.5)


def test_colors_and_sides_of_a_crop():
    crop = np.zeros((128, 96, 3), np.uint8)
    crop[:, :48, 0] = 200  # red on the left
    crop[:64, :, 2] = 100  # blue above
    image = PrepareCrop(192, 256)(crop).image
    assert image[:, 64, 48].tolist() == [200, 0, 100]
    assert image[:, 64, 144].tolist() == [0, 0, 100]
    assert image[:, 192, 48].tolist() == [200, 0, 0]
