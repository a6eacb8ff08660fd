"""The operators that replace those that cannot be exported."""

import torch
import torch.nn.functional as F

from fastreid_star.inference import onnx_graph


def test_atan2():
    values = torch.tensor([-3.5, -1.0, 0.0, 1e-30, 0.3, 1.0, 200.0])
    y, x = torch.cartesian_prod(values, values).unbind(1)
    torch.testing.assert_close(onnx_graph._atan2(y, x), torch.atan2(y, x), atol=1e-6, rtol=1e-6)


def test_adaptive_pooling():
    for length in range(1, 30, 3):
        for size in range(1, 30, 4):
            x = torch.rand(2, 1, length)
            found = onnx_graph._adaptive_avg_pool1d(x, size)
            torch.testing.assert_close(found, F.adaptive_avg_pool1d(x, size))


def test_the_parts_products():
    tokens, weight = torch.rand(3, 4, 12), torch.rand(5, 4, 6, 12)
    found = onnx_graph._einsum("bpc,kpdc->bkpd", tokens, weight)
    torch.testing.assert_close(found, torch.einsum("bpc,kpdc->bkpd", tokens, weight))
    torch.testing.assert_close(onnx_graph._einsum("bpc->bcp", tokens), tokens.transpose(1, 2))
