"""What becomes ``torch.npu``: the functions of torch_npu that training needs, over the simulated device."""

from __future__ import annotations

import contextlib
import time
import types

import torch

extension = None  # the compiled half; simulated_npu.load() puts it here
settings: dict[str, bool] = {}  # what a program set, for tests; the real module keeps no such list


def is_available() -> bool:
    """Whether there is a device to compute on."""
    return device_count() > 0


def is_initialized() -> bool:
    """Whether the device can be used by this process."""
    return not _is_in_bad_fork()


def device_count() -> int:
    """How many devices there are: $SIMULATED_NPU_COUNT, or 2."""
    return extension.device_count()


def _index(device=None) -> int:
    """The index that an int, a string, a torch.device or None, the current one, stands for."""
    if isinstance(device, int):
        return device
    device = torch.device("npu" if device is None else device)
    if device.type != "npu":
        raise ValueError(f"expected an npu device, but got {device}")
    return current_device() if device.index is None else device.index


def _checked_index(device=None) -> int:
    index = _index(device)
    if not 0 <= index < device_count():
        raise RuntimeError(f"npu:{index} was asked for, there are {device_count()}")
    return index


def set_device(device) -> None:
    """Make `device` the current one of this thread.

    Raises:
        RuntimeError: there is no such device.
    """
    extension.set_device(_index(device))


def current_device() -> int:
    """The index of this thread's current device."""
    return extension.current_device()


@contextlib.contextmanager
def device(device):
    """A context in which `device` is the current one."""
    before = current_device()
    set_device(device)
    try:
        yield
    finally:
        set_device(before)


def get_device_name(device=None) -> str:
    """The name of a device."""
    return f"Simulated NPU {_checked_index(device)}"


def synchronize(device=None) -> None:
    """Wait for the device; every kernel has finished already."""
    _checked_index(device)


# ------------------------------------------------------------------------------------------------------- memory


def memory_allocated(device=None) -> int:
    """Bytes in use by tensors."""
    return extension.bytes(_checked_index(device))[0]


def max_memory_allocated(device=None) -> int:
    """The most bytes that were in use at once since the start or the last reset."""
    return extension.bytes(_checked_index(device))[1]


def reset_peak_memory_stats(device=None) -> None:
    """Let :func:`max_memory_allocated` start again from what is in use now."""
    extension.reset_peak(_checked_index(device))


def mem_get_info(device=None) -> tuple[int, int]:
    """Free and total bytes of a device."""
    total = extension.total_bytes()
    return total - memory_allocated(device), total


def empty_cache() -> None:
    """Give cached memory back; there is none."""


# ----------------------------------------------------------------------------------------------- random numbers


def manual_seed(seed: int) -> None:
    """Seed the current device's default generator, which is the CPU's."""
    torch.default_generator.manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seed the default generators of all devices, which are the CPU's."""
    manual_seed(seed)


def get_rng_state(device="npu") -> torch.Tensor:
    """The state of a device's default generator."""
    _checked_index(device)
    return torch.default_generator.get_state()


def set_rng_state(new_state: torch.Tensor, device="npu") -> None:
    """Set the state of a device's default generator."""
    _checked_index(device)
    torch.default_generator.set_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    """The states of all default generators."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states) -> None:
    """Set the states of all default generators."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def _is_in_bad_fork() -> bool:
    return extension.in_bad_fork()


# --------------------------------------------------------------------------------------------- streams, precision


class Stream(torch.Stream):
    """A stream of a device; there is one a device."""

    def __new__(cls, device=None, priority: int = 0):
        return super().__new__(cls, torch.device("npu", _checked_index(device)), priority=priority)


class Event:
    """A moment on the host's clock: kernels have finished when they return.

    Args:
        enable_timing: let :meth:`elapsed_time` be asked for.
        blocking, interprocess: as in torch; without effect.
    """

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ):
        self.enable_timing = enable_timing
        self._recorded: float | None = None

    def record(self, stream=None) -> None:
        """Note the time."""
        self._recorded = time.perf_counter()

    def wait(self, stream=None) -> None:
        """Let a stream wait for this event."""

    def query(self) -> bool:
        """Whether all that was recorded has happened."""
        return True

    def synchronize(self) -> None:
        """Wait for this event."""

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to `end_event`.

        Raises:
            RuntimeError: one of them was not recorded, or not made for timing.
        """
        if not (
            self.enable_timing
            and end_event.enable_timing
            and self._recorded
            and end_event._recorded
        ):
            raise RuntimeError("both events must be made with enable_timing=True and recorded")
        return 1000 * (end_event._recorded - self._recorded)


def current_stream(device=None) -> torch.Stream:
    """The stream that this thread's kernels go to."""
    return Stream(device)


default_stream = current_stream


@contextlib.contextmanager
def stream(stream):
    """A context in which kernels go to `stream`."""
    yield


def is_bf16_supported() -> bool:
    """Whether bfloat16 is computed."""
    return True


def get_amp_supported_dtype() -> list[torch.dtype]:
    """The types that ``torch.autocast('npu')`` takes."""
    return [torch.float16, torch.bfloat16]


class GradScaler(torch.amp.GradScaler):
    """The gradient scaler of ``torch.npu.amp``, with the one entry that its state has beyond torch's.

    Args:
        init_scale, growth_factor, backoff_factor, growth_interval, enabled: as in torch.
        dynamic: only True is simulated.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        dynamic: bool = True,
        enabled: bool = True,
    ):
        assert dynamic, "a static scale is not simulated"
        super().__init__("npu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic

    def state_dict(self) -> dict:
        return {**super().state_dict(), "dynamic": self._dynamic} if self.is_enabled() else {}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if self.is_enabled():
            self._dynamic = state_dict["dynamic"]


amp = types.SimpleNamespace(GradScaler=GradScaler)


def set_compile_mode(*, jit_compile: bool) -> None:
    """Choose whether operators are compiled for the shapes they meet."""
    settings["jit_compile"] = bool(jit_compile)


class _Config:
    """As the real one, it can be written and not be read."""

    def __setattr__(self, name: str, value: bool) -> None:
        if name != "allow_internal_format":
            raise AttributeError(f"torch.npu.config has no {name}")
        settings[name] = bool(value)

    def __getattr__(self, name: str):
        raise AttributeError(f"torch.npu.config.{name} cannot be read")


class _Hf32:
    """A switch for the shortened float32 of one kind of operator."""

    def __init__(self, kind: str, allowed: bool):
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_allowed", allowed)

    @property
    def allow_hf32(self) -> bool:
        return settings.get(f"{self._kind}.allow_hf32", self._allowed)

    def __setattr__(self, name: str, value: bool) -> None:
        if name != "allow_hf32":
            raise AttributeError(f"torch.npu.{self._kind} has no {name}")
        settings[f"{self._kind}.allow_hf32"] = bool(value)


config = _Config()
matmul = _Hf32("matmul", allowed=False)
conv = _Hf32("conv", allowed=True)
