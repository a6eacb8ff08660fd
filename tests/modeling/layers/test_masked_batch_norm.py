import torch
import torch.nn.functional as F

from fastreid_star.modeling.layers.masked_batch_norm import MaskedBatchNorm


def test_masked_batch_norm_is_batch_norm_where_nothing_is_missing():
    mine, torchs = MaskedBatchNorm(5), torch.nn.BatchNorm1d(5)
    everything = torch.ones(1, 1, dtype=torch.bool)
    for _ in range(3):
        x = 3 * torch.randn(20, 5) + 1
        torch.testing.assert_close(mine(x, everything.expand(20, 1)), torchs(x))
    for (name, a), b in zip(mine.state_dict().items(), torchs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    x = torch.randn(4, 5)
    torch.testing.assert_close(mine.eval()(x, everything.expand(4, 1)), torchs.eval()(x))


def test_masked_batch_norm_leaves_out_what_is_missing():
    x = torch.randn(12, 3)
    mask = torch.rand(12, 3) > 0.4
    mask[:, 2] = False
    norm = MaskedBatchNorm(3)
    y = norm(torch.where(mask, x, 1e4), mask)
    for c in range(2):
        alone = F.batch_norm(x[mask[:, c], c, None], None, None, training=True)
        torch.testing.assert_close(y[mask[:, c], c, None], alone, atol=1e-4, rtol=1e-4)
    assert (y[~mask] == 0).all()
    assert norm.running_mean[2] == 0
    assert norm.running_var[2] == 1


def test_one_value_leaves_the_running_statistics_alone():
    norm, mask = MaskedBatchNorm(2), torch.zeros(8, 2, dtype=torch.bool)
    mask[3, 0] = True
    for _ in range(50):
        y = norm(torch.randn(8, 2), mask)
    assert torch.equal(norm.running_var, torch.ones(2))
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.isfinite(y).all()
