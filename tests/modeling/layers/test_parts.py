"""Horizontal stripes of maps, and a linear layer for each."""

import torch

from fastreid_star.modeling.layers.parts import SeparateLinear, horizontal_pyramid


def test_stripes_are_mean_plus_maximum_from_top_to_bottom():
    maps = torch.tensor([[1.0, 3.0], [5.0, 7.0], [2.0, 2.0], [0.0, 4.0]])[None, None]
    found = horizontal_pyramid(maps, (1, 2))
    torch.testing.assert_close(found, torch.tensor([[[3.0 + 7], [4.0 + 7], [2.0 + 4]]]))


def test_stripes_of_any_height_cover_every_row():
    maps = torch.arange(5.0).view(1, 1, 5, 1)
    found = horizontal_pyramid(maps, (2,))[0, :, 0]  # rows 0-2 and 2-4
    torch.testing.assert_close(found, torch.tensor([1.0 + 2, 3.0 + 4]))
    assert horizontal_pyramid(maps, (8,)).isfinite().all()  # more stripes than rows


def test_each_part_has_its_own_layer():
    layer = SeparateLinear(3, 4, 2).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    found = layer(x)
    for part in range(3):
        torch.testing.assert_close(found[:, part], x[:, part] @ layer.weight[part])
