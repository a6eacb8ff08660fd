"""The module, the memory, the guards and the recorder of the simulated device."""

import gc
import importlib.util
import os
import sys

import pytest
import torch
from torch import nn

import simulated_npu


def check_module():
    assert importlib.util.find_spec("torch_npu") is not None
    assert "torch_npu" not in sys.modules
    import torch_npu

    assert torch_npu.__version__ == torch.__version__
    assert torch_npu.npu is torch.npu is sys.modules["torch.npu"]
    simulated_npu.load()  # a second time

    assert torch.npu.is_available()
    assert torch.npu.device_count() == torch.accelerator.device_count() == 3, "SIMULATED_NPU_COUNT"
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    torch.npu.set_device("npu:2")
    assert torch.npu.current_device() == torch.accelerator.current_device_index() == 2
    assert torch.ones(1, device="npu").device == torch.ones(1).npu().device == torch.device("npu:2")
    with torch.npu.device(1):
        assert torch.ones(1, device="npu").get_device() == 1
    torch.npu.set_device(torch.device("npu", 0))
    with pytest.raises(RuntimeError, match=r"was asked for, there are 3"):
        torch.npu.set_device("npu:7")

    x = torch.ones(4, device="npu")
    assert repr(x * 1.5) == "tensor([1.5000, 1.5000, 1.5000, 1.5000], device='npu:0')"
    assert torch.npu.is_bf16_supported()
    assert "NPU" in torch.npu.get_device_name(1)

    assert simulated_npu.settings() == {}
    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
    assert (torch.npu.matmul.allow_hf32, torch.npu.conv.allow_hf32) == (False, True)
    torch.npu.conv.allow_hf32 = False
    assert not torch.npu.conv.allow_hf32
    settings = {"jit_compile": False, "allow_internal_format": False, "conv.allow_hf32": False}
    assert simulated_npu.settings() == settings
    with pytest.raises(AttributeError):
        torch.npu.matmul.allow_tf32 = 1


def check_memory():
    gc.collect()
    before = torch.npu.memory_allocated()
    fresh = torch.empty(1000, dtype=torch.uint8, device="npu")
    assert (fresh.cpu() == 0x7F).all(), "memory that nobody wrote shows"
    large = torch.zeros(10_000, dtype=torch.uint8, device="npu")
    del large
    gc.collect()
    assert torch.npu.memory_allocated() == before + 1000
    assert torch.npu.max_memory_allocated() >= before + 11_000
    free, total = torch.npu.mem_get_info("npu:0")
    assert total - free == before + 1000
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(total, dtype=torch.uint8, device="npu")

    # views share the memory, set_ and resize_ move it
    x = torch.arange(24.0, device="npu").view(4, 6)
    x[1:3, ::2].mul_(10)
    x.t()[5] = 0
    x.unfold(0, 2, 2)[0, 0] += 1
    y = torch.arange(24.0).view(4, 6)
    y[1:3, ::2] *= 10
    y[:, 5] = 0
    y.unfold(0, 2, 2)[0, 0] += 1
    assert torch.equal(x.cpu(), y)
    assert x.transpose(0, 1).data_ptr() == x.data_ptr()
    z = torch.empty(0, device="npu").set_(x)
    assert z.data_ptr() == x.data_ptr()
    assert torch.equal(z.resize_(5, 6)[:4].cpu(), y)
    out = torch.empty(0, device="npu")
    assert torch.add(x, 1, out=out) is out
    assert torch.equal(out.cpu(), y + 1)
    page_locked = torch.ones(3).pin_memory()
    assert page_locked[1:].is_pinned()
    assert not torch.ones(3).is_pinned()
    assert torch.equal(page_locked.to("npu", non_blocking=True).cpu(), torch.ones(3))

    pid = os.fork()  # as a DataLoader's worker is
    if pid == 0:
        try:
            torch.manual_seed(0)  # leaves the device alone
            torch.ones(1, device="npu")
        except RuntimeError as error:
            os._exit(0 if "forked subprocess" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def check_guards():
    here, there, other = torch.ones(3, device="npu"), torch.ones(3), torch.ones(3, device="npu:1")
    mask = torch.tensor([True, False, True])
    conv = nn.Conv1d(1, 1, 1).npu()
    for operation in (
        lambda: here + there,
        lambda: here.add_(there),
        lambda: torch.cat([here, there]),
        lambda: torch.where(mask, here, here),
        lambda: here.index_select(0, torch.tensor([0])),
        lambda: nn.functional.cross_entropy(here[None], torch.tensor([0])),
        lambda: conv(torch.ones(1, 1, 3)),
        lambda: here + other,
        lambda: here.copy_(torch.ones(3, device="npu:5")),
    ):
        with pytest.raises(RuntimeError, match=r"device|npu:5"):
            operation()

    # numbers on the host are welcome, as core has it, and so are indices, which indexing itself moves
    assert (
        (here + torch.tensor(2.0)).device
        == (torch.tensor(2.0, dtype=torch.float64) * here).device
        == here.device
    )
    assert (torch.tensor(2.0) * here).dtype == torch.float32
    assert here[mask].device == here[torch.tensor([0])].device == here.device
    here[torch.tensor([1])] = 5.0
    here.fill_(torch.tensor(1.0))
    assert torch.where(here > 0, here, torch.tensor(0.0)).device == here.device
    assert here.copy_(there).device == torch.device("npu:0")
    assert there.copy_(here).device == torch.device("cpu")
    assert torch.equal(other.to("npu:0"), here)

    for operation in (
        lambda: torch.ones(3, dtype=torch.float64, device="npu"),
        lambda: torch.ones(3, dtype=torch.float64).to("npu"),
        lambda: here.sum(0, keepdim=True, dtype=torch.float64),
    ):
        with pytest.raises(RuntimeError, match="the npu has no"):
            operation()
    assert torch.ones(3, dtype=torch.float64).to("npu", torch.float32).dtype == torch.float32
    assert here.to("cpu", torch.float64).dtype == torch.float64

    # the device's random numbers are the CPU's, but a generator must be of the device
    torch.manual_seed(3)
    drawn = torch.rand(5, device="npu")
    torch.manual_seed(3)
    assert torch.equal(drawn.cpu(), torch.rand(5))
    generator = torch.Generator("npu:0").manual_seed(4)
    drawn = torch.rand(5, device="npu", generator=generator)
    assert torch.equal(drawn.cpu(), torch.rand(5, generator=torch.Generator().manual_seed(4)))
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(5, device="npu", generator=torch.Generator())


def check_recorder():
    weight = torch.ones(3, 3, device="npu", requires_grad=True)
    with simulated_npu.recording() as operators:
        x = torch.zeros(2, 3, device="npu")
        y = (x.view(3, 2)[1:] * 2).relu_()
        (x @ weight).sum().backward()  # backward runs in a thread of its own
        y.copy_(torch.ones(1, 2))
        (x + torch.tensor(1.0)).sum(0).cpu()
        nn.functional.conv1d(torch.ones(1, 1, 4, device="npu"), torch.ones(1, 1, 2, device="npu"))
        nn.functional.batch_norm(x, None, None, training=True)
    assert operators == sorted(set(operators))
    expected = """
        aten::empty.memory_format aten::zero_ aten::view aten::as_strided aten::mul.Tensor aten::relu_ aten::mm
        aten::sum.dim_IntList aten::add.Tensor aten::copy_ aten::convolution_overrideable
        aten::native_batch_norm
    """
    assert set(expected.split()) <= set(operators), operators
    assert not [name for name in operators if name.startswith("aten::_copy_from")], (
        "what kernels do is not recorded"
    )
    _ = x + x
    with simulated_npu.recording() as operators:
        pass
    assert operators == []
