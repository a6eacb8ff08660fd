"""The only module that knows device names: npu (torch_npu), cuda, mps (Apple) and cpu.

There is no silent fallback: a requested device that cannot be used raises a :class:`UserError` with
cause and cure.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path

import torch

from fastreid_star.errors import UserError

DEVICE_NAMES = ("auto", "npu", "cuda", "cpu", "mps")
_BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo", "mps": "gloo"}
_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of this process and make it the current one.

    Args:
        name: ``auto`` (the first usable one of npu, cuda, cpu), one of these, with or without an
            index, or mps.
        local_rank: the index of the device on this machine, if the name has none.

    Raises:
        UserError: the name is unknown, or the device cannot be used.
    """
    kind, index = _kind_and_index(name)
    if kind == "cpu":
        return torch.device("cpu")
    position = local_rank if index is None else index
    count = _count(kind)
    if position >= count:
        raise UserError(
            f"{kind}:{position} was requested, but this machine has {count} {kind} device(s)"
        )
    device = torch.device(kind, position)
    if kind != "mps":  # a Mac has one
        _module(kind).set_device(device)
    return device


def _kind_and_index(name: str) -> tuple[str, int | None]:
    """Parse a name and check that the device can be used, without touching a device."""
    kind, _, index = name.partition(":")
    if kind not in DEVICE_NAMES or (index and not index.isdigit()):
        raise UserError(f"MODEL.DEVICE {name!r} is unknown: use one of {', '.join(DEVICE_NAMES)}")
    if kind == "auto":
        kind = next(kind for kind in ("npu", "cuda", "cpu") if why_unusable(kind) is None)
    else:
        reason = why_unusable(kind)
        if reason:
            raise UserError(reason)
    return kind, int(index) if index else None


def why_unusable(kind: str) -> str | None:
    """Why devices of this kind cannot be used here, with the cure; None if they can."""
    if kind == "cpu":
        return None
    if kind == "cuda":
        if torch.cuda.is_available():
            return None
        if torch.version.cuda is None:
            return "MODEL.DEVICE cuda: this torch is built without CUDA; install a CUDA build"
        return "MODEL.DEVICE cuda: no GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    if kind == "mps":
        if torch.backends.mps.is_available():
            return None
        return "MODEL.DEVICE mps: it needs a Mac with Apple silicon and a torch built for it"
    return _why_no_npu()


def _why_no_npu() -> str | None:
    if importlib.util.find_spec("torch_npu") is None:
        return "MODEL.DEVICE npu: torch_npu is not installed; install torch's release of it"
    try:
        torch_npu = importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        cure = "source CANN's set_env.sh in this shell first"
        if torch.version.cuda is not None:
            cure = "it needs a torch built without CUDA"
        return f"MODEL.DEVICE npu: torch_npu cannot be loaded ({first}); {cure}"
    # 2.13.0+cpu, 2.13.0.post1 and 2.13.0rc1 belong to the release 2.13.0
    ours, theirs = (
        re.findall(r"^[\d.]*\d", version)[0]
        for version in (torch.__version__, torch_npu.__version__)
    )
    if ours != theirs:
        return f"MODEL.DEVICE npu: torch {ours} and torch_npu {theirs} must be the same release"
    if not torch.npu.is_available():
        return (
            "MODEL.DEVICE npu: no NPU is visible; check npu-smi info and ASCEND_RT_VISIBLE_DEVICES"
        )
    return None


def collective_backend(name: str) -> str:
    """The torch.distributed backend for ``MODEL.DEVICE`` `name`: hccl, nccl or gloo."""
    return _BACKENDS[_kind_and_index(name)[0]]


def device_count(name: str) -> int | None:
    """The number of devices of this machine; None for the CPU, which processes can share."""
    kind, _ = _kind_and_index(name)
    return None if kind == "cpu" else _count(kind)


def configure(
    device: torch.device,
    *,
    fast_float32: bool = False,
    cudnn_benchmark: bool = False,
    jit_compile: bool = False,
    internal_format: bool = False,
) -> None:
    """Set the switches that change the numbers or the speed of a device, for the whole process.

    Args:
        device: the current device.
        fast_float32: let convolutions and matrix products round float32 inputs: TF32 on a GPU, HF32
            on an NPU, whose own default is to round in convolutions.
        cudnn_benchmark: GPU only. Let cuDNN measure its algorithms and use the fastest one for each
            shape.
        jit_compile: NPU only. Compile operators for each new shape; False: use the precompiled
            ones.
        internal_format: NPU only. Allow the chip's own memory layouts (FRACTAL_Z and others) for
            weights. Checkpoints, DDP's buckets and channels-last need plain layouts.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = fast_float32
        torch.backends.cudnn.allow_tf32 = fast_float32
        torch.backends.cudnn.benchmark = cudnn_benchmark
    elif device.type == "npu":
        torch.npu.set_compile_mode(jit_compile=jit_compile)
        torch.npu.config.allow_internal_format = internal_format
        torch.npu.matmul.allow_hf32 = fast_float32
        torch.npu.conv.allow_hf32 = fast_float32


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work: needed before a clock is read."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        _module(device.type).synchronize(device)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors have used on the device; None where they are not counted."""
    counted = device.type not in ("cpu", "mps")
    return _module(device.type).max_memory_allocated(device) if counted else None


def describe(device: torch.device) -> str:
    """The device and its name in one line."""
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    if device.type == "mps":
        return f"{device} ({platform.processor() or platform.machine()})"
    return f"{device} ({_module(device.type).get_device_name(device)})"


def inventory() -> dict[str, str]:
    """Versions of CUDA, torch_npu and CANN, as far as they are installed."""
    found = {}
    if torch.version.cuda is not None:
        found["CUDA"] = torch.version.cuda
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["torch_npu"] = importlib.metadata.version("torch_npu")
    # set by CANN's set_env.sh
    toolkit = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    if toolkit:
        found["CANN"] = toolkit
        for info in sorted(Path(toolkit).glob("*-linux/ascend_toolkit_install.info")):
            versions = re.findall(r"^version=(.*)$", info.read_text(encoding="utf-8"), re.MULTILINE)
            found["CANN"] = f"{', '.join(versions)} in {toolkit}"
    return found


def needs_pinned_memory(device: torch.device) -> bool:
    """Whether copies to this device are faster from page-locked memory."""
    return device.type == "cuda"


def seed_everywhere(seed: int) -> None:
    """Seed torch's generators of the CPU and of every visible device."""
    torch.manual_seed(seed)


def autocast(device: torch.device, dtype: str | None):
    """A context for mixed precision: `dtype` is ``float16`` or ``bfloat16``; None: full precision.

    Raises:
        UserError: another dtype.
    """
    if dtype is None:
        return contextlib.nullcontext()
    if dtype not in _AMP_DTYPES:
        raise UserError(f"SOLVER.AMP.DTYPE {dtype!r}: use float16 or bfloat16")
    return torch.autocast(device.type, dtype=_AMP_DTYPES[dtype])


def grad_scaler(device: torch.device, dtype: str | None):
    """The gradient scaler that float16 needs; None for other types."""
    if dtype != "float16":
        return None
    if device.type == "npu":  # it also detects overflows on chips that saturate
        return torch.npu.amp.GradScaler()
    return torch.amp.GradScaler(device.type)


def _count(kind: str) -> int:
    """The number of devices of a kind that can be used."""
    return 1 if kind == "mps" else _module(kind).device_count()


def _module(kind: str):
    """torch.npu or torch.cuda, which have the same interface."""
    return getattr(torch, kind)
