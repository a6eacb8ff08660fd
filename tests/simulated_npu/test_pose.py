"""What the pose estimators compute beside their networks: on the device as on the CPU, with operators an NPU has."""

import json
from pathlib import Path

import pytest
import torch

import simulated_npu

REPOSITORY = Path(__file__).parents[2]
reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_choosing_and_finding():
    simulated_npu.load()
    from fastreid_star.pose.estimator import keep_central_peaks
    from fastreid_star.pose.vitpose import find_joints

    torch.manual_seed(0)
    maps, vectors, widths = (
        torch.randn(2, 17, 64, 48),
        torch.randn(2, 17, 1, 384),
        torch.tensor([0.5, 0.9]),
    )

    def compute(device):
        kept = keep_central_peaks(maps.to(device), widths.to(device))
        return [kept, keep_central_peaks(vectors.to(device), widths.to(device)), *find_joints(kept)]

    with simulated_npu.recording() as operators:
        there = compute("npu")
    for mine, expected in zip(there, compute("cpu"), strict=True):
        assert mine.device.type == "npu"
        torch.testing.assert_close(mine.cpu(), expected, atol=1e-3, rtol=1e-4)
    print(json.dumps(operators))


def test_choosing_and_finding():
    (said,) = simulated_npu.run(check_choosing_and_finding)
    taken = json.loads(said.splitlines()[-1])
    assert {"aten::max_pool2d_with_indices", "aten::gather"} & set(taken)
    lines = (REPOSITORY / "tests" / "engine" / "npu_registered_ops.txt").read_text().splitlines()
    registered = [line for line in lines if line and not line.startswith("#")]
    assert simulated_npu.missing(taken, registered) == []
