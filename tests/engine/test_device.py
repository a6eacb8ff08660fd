"""Devices by name: an unusable device raises an error with its cure, and there is no silent
fallback.
"""

import importlib.util
import sys
import types

import pytest
import torch

from fastreid_star.engine import device as devices
from fastreid_star.errors import UserError


def test_auto_and_cpu():
    assert devices.choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available() and importlib.util.find_spec("torch_npu") is None:
        assert devices.choose_device("auto") == torch.device("cpu")
    assert devices.collective_backend("cpu") == "gloo"
    assert devices.device_count("cpu") is None
    assert devices.peak_memory(torch.device("cpu")) is None
    devices.synchronize(torch.device("cpu"))
    assert "cpu" in devices.describe(torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "tpu:0"])
def test_unknown_names(name):
    with pytest.raises(UserError, match="auto, npu, cuda, cpu"):
        devices.choose_device(name)


def test_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, words in ((None, "without CUDA"), ("13.0", "CUDA_VISIBLE_DEVICES")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(UserError, match=words):
            devices.choose_device("cuda")


def test_each_process_gets_its_own_device_and_keeps_it(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert devices.choose_device("cuda", local_rank=3) == torch.device("cuda", 3)
    assert devices.choose_device("cuda:1", local_rank=3) == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"cuda:4 .* 4 cuda device"):
        devices.choose_device("cuda", local_rank=4)
    # these questions must not change the current device
    assert devices.collective_backend("cuda") == "nccl"
    assert devices.device_count("cuda") == 4
    assert current == [torch.device("cuda", 3), torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("version", "available", "broken", "cuda", "words"),
    [
        (None, True, "Two accelerators cannot be used", "13.0", r"Two acc.* built without CUDA"),
        (None, True, "libhccl.so: cannot open", None, r"libhccl\.so.*set_env\.sh"),
        ("2.1.0.post3", True, None, None, r"torch_npu 2\.1\.0 must be the same release"),
        (None, False, None, None, "ASCEND_RT_VISIBLE_DEVICES"),
    ],
    ids=["beside cuda", "without CANN", "another release", "no device"],
)
def test_no_npu(monkeypatch, version, available, broken, cuda, words):
    module = types.ModuleType("torch_npu")
    module.__version__ = version or torch.__version__
    module.__spec__ = importlib.util.spec_from_loader("torch_npu", loader=None)
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    npu = types.SimpleNamespace(is_available=lambda: available)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    real = importlib.import_module

    def load(name, *args):
        if name == "torch_npu" and broken:
            raise ImportError(broken)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(UserError, match=words):
        devices.choose_device("npu")


def test_npu_without_torch_npu():
    if importlib.util.find_spec("torch_npu"):
        pytest.skip("torch_npu is installed here")
    with pytest.raises(UserError, match="torch_npu is not installed"):
        devices.choose_device("npu")


def test_mixed_precision(monkeypatch):
    cpu = torch.device("cpu")
    for name, dtype in (("bfloat16", torch.bfloat16), (None, torch.float32)):
        with devices.autocast(cpu, name):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert devices.grad_scaler(cpu, name) is None
    with pytest.raises(UserError, match="float16 or bfloat16"):
        devices.autocast(cpu, "fp8")
    assert isinstance(devices.grad_scaler(cpu, "float16"), torch.amp.GradScaler)
    scaler = object()  # the NPU has its own
    fake = types.SimpleNamespace(amp=types.SimpleNamespace(GradScaler=lambda: scaler))
    monkeypatch.setattr(torch, "npu", fake, raising=False)
    assert devices.grad_scaler(types.SimpleNamespace(type="npu"), "float16") is scaler


def test_switches_of_a_gpu(monkeypatch):
    fake = types.SimpleNamespace
    matmul, cudnn = fake(allow_tf32=True), fake(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cuda", fake(matmul=matmul))
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    for fast in (False, True):
        devices.configure(torch.device("cuda", 0), fast_float32=fast)
        assert matmul.allow_tf32 == cudnn.allow_tf32 == fast
    devices.configure(torch.device("cpu"))
    assert cudnn.allow_tf32, "a CPU has no such switch"


def test_memory_and_waiting_of_a_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    devices.synchronize(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]
    assert devices.peak_memory(torch.device("cuda", 3)) == 1003


def test_inventory_of_an_ascend_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    assert "CANN" not in devices.inventory()
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert devices.inventory()["CANN"] == str(tmp_path)
    folder = tmp_path / "aarch64-linux"
    folder.mkdir()
    (folder / "ascend_toolkit_install.info").write_text("package_name=x\nversion=8.9.9\n")
    assert devices.inventory()["CANN"] == f"8.9.9 in {tmp_path}"
