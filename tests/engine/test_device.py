"""Devices by name: what is not usable says why, and nothing is replaced silently."""

import importlib.util
import platform
import subprocess
import sys
import types

import pytest
import torch

from fastreid_star.engine import device as devices
from fastreid_star.engine.device import keep_freed_memory  # before conftest puts it out of force
from fastreid_star.errors import UserError

# what a training step asks for: large blocks, freed and asked for again; tells the pages that were new, in MB
BLOCKS = """
import resource, sys, torch
from fastreid_star.engine import device
device.configure(torch.device("cpu"), keep_memory=sys.argv[1] == "True")
for round in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for count in (10, 20):
        torch.ones(count << 20)
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages * resource.getpagesize() / (1 << 20))
"""


def test_auto_and_cpu():
    assert devices.choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available() and importlib.util.find_spec("torch_npu") is None:
        assert devices.choose_device("auto") == torch.device("cpu")
    assert devices.collective_backend("cpu") == "gloo"
    assert devices.device_count("cpu") is None
    assert "cpu" in devices.describe(torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "tpu:0"])
def test_unknown_names(name):
    with pytest.raises(UserError, match="use one of auto, npu, cuda, cpu"):
        devices.choose_device(name)


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="built without CUDA"):
        devices.choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match="no GPU is visible"):
        devices.choose_device("cuda")


def test_an_index_beyond_the_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"cuda:2 .* shows 2 cuda device"):
        devices.choose_device("cuda", local_rank=2)


def test_each_process_gets_its_own_device_and_keeps_it(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert devices.choose_device("cuda", local_rank=3) == torch.device("cuda", 3)
    assert devices.choose_device("cuda:1", local_rank=3) == torch.device("cuda", 1)
    # asking about a kind of device must not move a process to the first one
    assert devices.collective_backend("cuda") == "nccl"
    assert devices.device_count("cuda") == 4
    assert current == [torch.device("cuda", 3), torch.device("cuda", 1)]


def fake_npu(monkeypatch, *, version=None, available=True, broken=None):
    module = types.ModuleType("torch_npu")
    module.__version__ = version or torch.__version__
    module.__spec__ = importlib.util.spec_from_loader("torch_npu", loader=None)
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    monkeypatch.setattr(
        torch, "npu", types.SimpleNamespace(is_available=lambda: available), raising=False
    )
    if broken:
        real = importlib.import_module

        def fail(name, *args):
            if name == "torch_npu":
                raise ImportError(broken)
            return real(name, *args)

        monkeypatch.setattr(importlib, "import_module", fail)


def test_npu_without_torch_npu():
    if importlib.util.find_spec("torch_npu"):
        pytest.skip("torch_npu is installed here")
    with pytest.raises(UserError, match="torch_npu is not installed"):
        devices.choose_device("npu")


def test_npu_beside_cuda(monkeypatch):
    fake_npu(
        monkeypatch,
        broken="Two accelerators cannot be used at the same time in PyTorch: npu and cuda",
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=r"Two accelerators .* install a torch built without CUDA"):
        devices.choose_device("npu")


def test_npu_without_cann(monkeypatch):
    fake_npu(monkeypatch, broken="libhccl.so: cannot open shared object file")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match=r"libhccl\.so.*set_env\.sh"):
        devices.choose_device("npu")


def test_npu_of_another_release(monkeypatch):
    fake_npu(monkeypatch, version="2.1.0.post3")
    with pytest.raises(UserError, match=r"torch_npu 2\.1\.0 must be the same release"):
        devices.choose_device("npu")


def test_npu_with_no_device(monkeypatch):
    fake_npu(monkeypatch, available=False)
    with pytest.raises(UserError, match="ASCEND_RT_VISIBLE_DEVICES"):
        devices.choose_device("npu")


def test_mixed_precision():
    cpu = torch.device("cpu")
    with devices.autocast(cpu, "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with devices.autocast(cpu, None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(UserError, match="float16 or bfloat16"):
        devices.autocast(cpu, "fp8")
    assert devices.grad_scaler(cpu, "bfloat16") is None
    assert devices.grad_scaler(cpu, "float16").is_enabled()


def test_switches_of_a_gpu(monkeypatch):
    fake = types.SimpleNamespace
    monkeypatch.setattr(torch.backends, "cuda", fake(matmul=fake(allow_tf32=True)))
    monkeypatch.setattr(torch.backends, "cudnn", fake(allow_tf32=True))
    devices.configure(torch.device("cuda", 0))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    devices.configure(torch.device("cuda", 0), fast_float32=True)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    devices.configure(torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
@pytest.mark.parametrize("keep", [True, False])
def test_a_cpu_keeps_freed_memory_for_the_next_step(keep):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS, str(keep)], capture_output=True, text=True, check=True
    )
    fresh = float(done.stdout)
    assert fresh < 1 if keep else 110 < fresh < 130  # of 40 + 80 MB a round


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_a_c_library_without_the_switch(monkeypatch, error):
    def no_library(name):
        raise error("no")

    monkeypatch.setattr("ctypes.CDLL", no_library)
    assert not keep_freed_memory()


def test_memory_and_waiting(monkeypatch):
    assert devices.peak_memory(torch.device("cpu")) is None
    devices.synchronize(torch.device("cpu"))
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    devices.synchronize(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]
    assert devices.peak_memory(torch.device("cuda", 3)) == 1003


def test_the_scaler_is_the_devices_own(monkeypatch):
    assert devices.grad_scaler(torch.device("cpu"), None) is None
    assert devices.grad_scaler(torch.device("cpu"), "bfloat16") is None
    assert isinstance(devices.grad_scaler(torch.device("cpu"), "float16"), torch.amp.GradScaler)
    own = object()
    fake = types.SimpleNamespace(amp=types.SimpleNamespace(GradScaler=lambda: own))
    monkeypatch.setattr(torch, "npu", fake, raising=False)
    assert devices.grad_scaler(types.SimpleNamespace(type="npu"), "float16") is own
