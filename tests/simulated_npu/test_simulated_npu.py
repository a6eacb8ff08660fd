"""The stand-in for an Ascend is honest: it refuses what a device refuses and computes what the CPU
computes.
"""

import gc
import os

import pytest
import torch
from torch import nn

import simulated_npu
from simulated_npu.computation_checks import (
    check_gradients,
    check_mixed_precision,
    check_saved_files,
)
from simulated_npu.device_checks import check_guards, check_memory, check_module, check_recorder

reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_everything():
    check_module()
    check_memory()
    check_guards()
    check_recorder()
    check_gradients()
    check_mixed_precision()
    check_saved_files()


def test_one_device():
    """In one process: starting torch takes longer than most checks."""
    simulated_npu.run(check_everything, SIMULATED_NPU_COUNT="3")


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "no C++ compiler (no-such-compiler)" in simulated_npu.missing_compiler()


def test_operators_that_a_device_lacks():
    there = [
        "aten::add.Tensor",
        "aten::index_add.out",
        "aten::scatter.src_out",
        "aten::no_such_operator.out",
    ]
    taken = [
        "aten::add.Tensor",
        "aten::index_add_",
        "aten::index_add",
        "aten::scatter_.src",
        "aten::scatter.value",
    ]
    assert simulated_npu.missing(taken, there) == ["aten::scatter.value"]
    assert simulated_npu.missing(
        ["aten::embedding_dense_backward", "aten::add_.Tensor"], there
    ) == [
        "aten::add_.Tensor",
        "aten::embedding_dense_backward",
    ]


def check_collectives():
    import torch.distributed as dist
    import torch_npu  # noqa: F401
    from torch.nn.parallel import DistributedDataParallel

    rank = int(os.environ["RANK"])
    device = torch.device("npu", rank)
    torch.npu.set_device(device)
    dist.init_process_group("hccl")
    assert dist.get_backend() == "hccl"
    mine = torch.full((2,), rank + 1.0, device=device)

    total = mine.clone()
    dist.all_reduce(total)
    assert total.tolist() == [3, 3]
    dist.all_reduce(total.fill_(rank), op=dist.ReduceOp.MAX, async_op=True).wait()
    assert total.tolist() == [1, 1]
    sent = mine.clone()
    dist.broadcast(sent, 1)
    assert sent.tolist() == [2, 2]
    parts = [torch.empty(2, device=device) for _ in range(2)]
    dist.all_gather(parts, mine)
    assert [part.tolist() for part in parts] == [[1, 1], [2, 2]]
    whole = torch.empty(4, device=device)
    dist.all_gather_into_tensor(whole, mine)
    assert whole.tolist() == [1, 1, 2, 2]
    dist.barrier()
    gloo = dist.new_group(backend="gloo")
    host = torch.ones(1)
    dist.all_reduce(host, group=gloo)
    assert host.item() == 2
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(host)

    torch.manual_seed(rank)  # DDP shares rank 0's weights
    model = DistributedDataParallel(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).to(
            device
        ),
        device_ids=[rank],
        find_unused_parameters=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(10 + rank)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 4, 4)).pow(
            2
        ).mean().backward()  # DDP brings the batch to the device
        optimizer.step()
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    both = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(both, weights)
    assert torch.equal(both[0].cpu(), both[1].cpu())
    del model, optimizer, gloo  # a group's threads end with its last reference
    gc.collect()
    dist.destroy_process_group()


def test_collectives_and_ddp():
    simulated_npu.run(check_collectives, processes=2)


def test_a_failure_is_shown_and_ends_the_others():
    body = "import os, sys, time; sys.exit('no such luck') if os.environ['RANK'] == '1' else time.sleep(100)"
    with pytest.raises(AssertionError, match=r"process 1 ended with 1:\nno such luck"):
        simulated_npu.run(body, processes=2)
