"""What watches a step on an NPU: operators the device has, one look from the host, and none that waits for shapes."""

import math
import re
from pathlib import Path

import pytest

import simulated_npu

REPOSITORY = Path(__file__).parents[2]
reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_step(path):
    import torch
    import torch_npu  # noqa: F401
    from fastreid.utils.events import EventStorage

    from fastreid_star.engine.train_loop import StepRunner, copy_all, measure
    from fastreid_star.errors import UserError

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
            )

        def forward(self, batch):
            value = self.layers(batch["x"]).mean()
            return {"loss_a": value, "loss_b": value * batch["factor"]}

    device = torch.device("npu", 0)
    network = Network().to(device)
    factors = iter([1.0, math.nan])
    batches = ({"x": torch.randn(8, 4).to(device), "factor": factor} for factor in factors)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    runner = StepRunner(network, batches, optimizer, device=device, amp_dtype=None, seed=0)
    with EventStorage(0):
        runner.iter = 0
        runner.run_step()
        before = {name: value.cpu().clone() for name, value in network.state_dict().items()}
        with pytest.raises(UserError, match="loss_b is nan at iteration 0"):
            runner.run_step()
    assert all(
        torch.equal(value.cpu(), before[name]) for name, value in network.state_dict().items()
    )

    losses = {"a": torch.ones((), device=device), "b": torch.zeros((), device=device)}
    gradients = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())
    floating = {name: b for name, b in buffers.items() if b.is_floating_point()}
    noted = {name: b.clone() for name, b in buffers.items()}
    with simulated_npu.recording() as operators:
        copy_all(noted, buffers)
        assert measure(losses, gradients, floating).forward_is_finite
    Path(path).write_text("\n".join(operators) + "\n")


def test_watching_takes_no_operator_that_torch_npu_has_not(tmp_path):
    simulated_npu.run(check_step, str(tmp_path / "operators.txt"))
    taken = (tmp_path / "operators.txt").read_text().split()
    assert "aten::_local_scalar_dense" not in taken, (
        "one transfer for all numbers, not one for each"
    )
    assert not {
        name for name in taken if re.match(r"aten::(nonzero|masked_select|_?unique|index\b)", name)
    }
    lines = (REPOSITORY / "tests" / "engine" / "npu_registered_ops.txt").read_text().splitlines()
    registered = [line for line in lines if line and not line.startswith("#")]
    assert simulated_npu.missing(taken, registered) == []
    # here core computes them tensor by tensor; there is one kernel for all
    assert {"aten::_foreach_norm.Scalar", "aten::_foreach_copy_"} <= set(registered)
