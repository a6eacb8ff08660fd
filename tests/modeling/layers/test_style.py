import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.style import (
    adain,
    attack_partners,
    augment_style,
    channel_statistics,
    style_factors,
)

flags = st.lists(st.booleans(), min_size=2, max_size=20).filter(lambda f: any(f) and not all(f))


class TestAugmentation:
    def test_by_hand(self):
        # two frames of 1x1: channels (1, 2, 3) times (10, 100, 1000), then the order (2, 0, 1)
        images = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).repeat(2, 1, 1, 1)
        factors = torch.tensor([[10.0, 100.0, 1000.0], [0.5, 0.5, 0.5]])
        order = torch.tensor([[2, 0, 1], [0, 1, 2]])
        styled = augment_style(images, factors, order)
        assert styled.flatten(1).tolist() == [[3000.0, 10.0, 200.0], [0.5, 1.0, 1.5]]
        assert images.flatten(1).tolist() == [[1.0, 2.0, 3.0]] * 2  # out of place

    def test_a_frames_pixels_stay_where_they_are(self):
        images, factors = torch.randn(2, 3, 4, 5), torch.rand(2, 3)
        order = torch.tensor([[1, 2, 0], [2, 1, 0]])
        styled = augment_style(images, factors, order)
        for frame in range(2):
            for channel, source in enumerate(order[frame]):
                assert torch.equal(
                    styled[frame, channel], images[frame, source] * factors[frame, source]
                )

    @settings(deadline=None, max_examples=40)
    @given(flags, st.integers(0, 2**31))
    def test_infrared_has_one_factor_and_keeps_its_channels(self, is_visible, seed):
        torch.manual_seed(seed)
        is_visible = torch.tensor(is_visible)
        factors, order = style_factors(is_visible, 0.5, 1.5)
        assert ((factors >= 0.5) & (factors <= 1.5)).all()
        assert (factors[~is_visible] == factors[~is_visible][:, :1]).all()
        assert (order[~is_visible] == torch.arange(3)).all()
        assert (order.sort(dim=1).values == torch.arange(3)).all()  # permutations

    def test_visible_draws_everything(self):
        factors, order = style_factors(torch.ones(4000, dtype=torch.bool), 0.5, 1.5)
        assert (factors[:, 0] != factors[:, 1]).all()
        assert factors.mean().item() == pytest.approx(1.0, abs=0.02)
        permutations, counts = order.unique(dim=0, return_counts=True)
        assert len(permutations) == 6
        assert counts.min() > 4000 / 6 * 0.8


class TestStatistics:
    def test_by_hand(self):
        x = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(
            1, 1, 2, 2
        )  # mean 4, squared deviations 9 1 1 9
        mean, sd = channel_statistics(x, (2, 3), "sqrt_var")
        assert (mean.item(), sd.item()) == (4.0, pytest.approx((5 + 1e-5) ** 0.5))
        mean, sd = channel_statistics(x, (2, 3), "release")
        assert (mean.item(), sd.item()) == (4.0, pytest.approx((20 / 3) ** 0.5 + 1e-6))

    def test_one_position(self):
        one = torch.randn(2, 3, 1, 1)
        assert channel_statistics(one, (2, 3))[1].isfinite().all()
        with pytest.raises(UserError, match="sqrt_var"):
            channel_statistics(one, (2, 3), "release")


class TestAdaIN:
    def test_by_hand(self):
        # frame 0: mean 2, population sd 1; frame 1: mean 10, sd 4. Each in the style of the other.
        x = torch.tensor([[1.0, 3.0], [6.0, 14.0]], dtype=torch.float64).view(2, 1, 1, 2)
        y = adain(x, torch.tensor([1, 0]))
        assert torch.allclose(
            y.flatten(1), torch.tensor([[6.0, 14.0], [1.0, 3.0]], dtype=torch.float64), rtol=1e-4
        )
        expected = 2 + (6 - 10) / (16 + 1e-5) ** 0.5 * (1 + 1e-5) ** 0.5
        assert y[1, 0, 0, 0].item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("std", ["sqrt_var", "release"])
    @pytest.mark.parametrize(
        "partner", [[1, 2, 0], [2, 2, 1]]
    )  # frame 2 may lend its style twice, frame 0 never
    def test_gradients_flow_through_every_statistic(self, std, partner):
        x = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda v: adain(v, torch.tensor(partner), (2, 3), std), (x,)
        )
        tokens = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda v: adain(v, torch.tensor(partner), (1,), std), (tokens,)
        )

    @pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("std", ["sqrt_var", "release"])
    def test_is_the_formula_and_its_gradient(self, std, layout, kind, tolerance):
        """Against the formula as it is written, its gradient by autograd, all in float64."""
        maps = (
            torch.randn(6, 5, 9, 7)
            .mul(torch.rand(6, 5, 1, 1))
            .add(torch.randn(6, 5, 1, 1))
            .to(kind)
        )
        maps, weights = (
            part.contiguous(memory_format=layout) for part in (maps, torch.randn_like(maps))
        )
        partner = torch.tensor([2, 0, 5, 5, 1, 4])
        ours, exact = maps.clone().requires_grad_(), maps.double().requires_grad_()
        restyled = adain(ours, partner, std=std)
        restyled.backward(weights)
        mean = exact.mean((2, 3), keepdim=True)
        if std == "release":
            sd = exact.std((2, 3), keepdim=True) + 1e-6
        else:
            sd = (exact.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        expected = (exact - mean) / sd * sd[partner] + mean[partner]
        expected.backward(weights.double())
        for found, wanted in ((restyled, expected), (ours.grad, exact.grad)):
            assert found.is_contiguous(memory_format=layout)
            assert (found - wanted).abs().max() < tolerance * wanted.abs().max()

    def test_constant_map(self):
        """A map without variance: bounded gradients by default, a blow-up under `release`."""

        def largest_gradient(std):
            torch.manual_seed(0)
            x = torch.randn(2, 1, 4, 4)
            x[0] = 0.5
            x.requires_grad_()
            (adain(x, torch.tensor([1, 0]), std=std) * torch.randn(2, 1, 4, 4)).sum().backward()
            assert x.grad.isfinite().all()
            return x.grad.abs().max().item()

        assert largest_gradient("sqrt_var") < 1e3  # 1 / sqrt(1e-5) = 316
        assert largest_gradient("release") > 1e5  # 1 / 1e-6


class TestPartners:
    @settings(deadline=None, max_examples=100)
    @given(flags, st.integers(0, 2**31))
    def test_come_from_the_right_half(self, is_visible, seed):
        torch.manual_seed(seed)
        is_visible = torch.tensor(is_visible)
        same, other = attack_partners(is_visible)
        assert (is_visible[same] == is_visible).all()
        assert (is_visible[other] != is_visible).all()
        assert same.sort().values.tolist() == list(range(len(is_visible)))
        if 2 * is_visible.sum() == len(is_visible):
            assert other.sort().values.tolist() == list(range(len(is_visible)))

    def test_reach_every_frame_of_the_half(self):
        is_visible = torch.tensor([True] * 3 + [False] * 2)
        draws = [attack_partners(is_visible) for _ in range(100)]
        assert {int(same[0]) for same, _ in draws} == {0, 1, 2}
        assert {int(other[0]) for _, other in draws} == {3, 4}
        assert {int(other[4]) for _, other in draws} == {0, 1, 2}
