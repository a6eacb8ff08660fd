"""A device that torch knows as ``npu`` and that computes on the CPU: the Ascend path, tested without an Ascend.

torch lets one process have one such device and cannot forget it, so a test runs what needs it in processes of its own:

    reason = missing_compiler()
    pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

    def check_something():
        import torch_npu
        ...

    def test_something():
        run(check_something)

In such a process, and in those that it starts, ``import torch_npu`` finds the device.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_SOURCE = _FOLDER / "npu.cpp"
_EXTENSION = "simulated_npu_extension"


def missing_compiler() -> str | None:
    """Why the device cannot be built here, for pytest to skip with; None where it can."""
    import torch

    if sys.platform != "linux":
        return "the simulated npu is built on Linux only"
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        return f"the simulated npu is written for torch 2.13 and later, this is {torch.__version__}"
    if _built(_build_folder()):
        return None
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) to build the simulated npu with"
    if shutil.which("ninja", path=_path()) is None:
        return "no ninja to build the simulated npu with: pip install ninja"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's headers are missing, so the simulated npu cannot be built"
    return None


def environment(*folders: str | Path, **variables: str) -> dict[str, str]:
    """This process's environment with the device, this package and `folders` on PYTHONPATH, and `variables`."""
    paths = [
        _FOLDER / "site",
        _FOLDER.parent,
        _FOLDER.parents[1],
        *folders,
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **variables}


def run(
    body: Callable[[], None] | str,
    *arguments: str,
    processes: int = 1,
    timeout: float = 600,
    **variables: str,
) -> list[str]:
    """Run something in fresh processes that have the device, and fail with their stderr if one of them fails.

    Args:
        body: a function at the top of a file that imports nothing relative, or source code. Processes started by it
            can import the file too, as multiprocessing does.
        arguments: of the function; ``sys.argv[1:]`` for source code.
        processes: how many; several get what torchrun gives: RANK, WORLD_SIZE, MASTER_ADDR and so on.
        timeout: in seconds, for each.
        variables: of the environment, such as ``SIMULATED_NPU_COUNT="4"``.

    Returns:
        what each of them wrote to stdout.

    Raises:
        AssertionError: one ended with another status than 0, or had to be ended.
    """
    _extension_file()  # built before the clocks of the processes run
    if isinstance(body, str):
        code, folders = body, []
    else:
        file = Path(body.__code__.co_filename)
        code, folders = (
            f"import sys, {file.stem}; {file.stem}.{body.__name__}(*sys.argv[1:])",
            [file.parent],
        )
    meeting = _rendezvous(processes) if processes > 1 else {}
    children: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(processes):
                ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if meeting else {}
                with (
                    open(f"{folder}/{rank}.out", "w") as out,
                    open(f"{folder}/{rank}.err", "w") as err,
                ):
                    child = subprocess.Popen(
                        [sys.executable, "-c", code, *arguments],
                        env=environment(*folders, **meeting, **ranks, **variables),
                        stdout=out,
                        stderr=err,
                    )
                children.append(child)
            _wait(children, timeout)
        finally:
            for child in children:
                child.kill()
                child.wait()
        said = [
            [Path(folder, f"{rank}.{end}").read_text() for end in ("out", "err")]
            for rank in range(processes)
        ]
    ends = [child.returncode for child in children]
    reports = [
        f"process {rank} ended with {end}:\n{''.join(said[rank])}"
        for rank, end in enumerate(ends)
        if end
    ]
    assert not reports, "\n".join(reports)
    return [out for out, _ in said]


def _rendezvous(size: int) -> dict[str, str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }


def _wait(children: list[subprocess.Popen], timeout: float) -> None:
    """Until all have ended, or one has failed and the others, which may wait for it for ever, had a moment."""
    end = time.monotonic() + timeout
    while None in (ends := [child.poll() for child in children]):
        if any(ends):
            end = min(end, time.monotonic() + 5)
        if time.monotonic() > end:
            return
        time.sleep(0.05)


@contextlib.contextmanager
def recording() -> Iterator[list[str]]:
    """A context that notes what is dispatched to the device.

    Yields:
        a list, filled at the end with the operators' sorted names, such as ``aten::mul.Tensor``.
    """
    from . import npu

    operators: list[str] = []
    npu.extension.start_recording()
    try:
        yield operators
    finally:
        npu.extension.stop_recording()
        operators += npu.extension.recorded()


def missing(operators: Iterable[str], registered: Iterable[str]) -> list[str]:
    """Those of `operators` that a device with kernels for `registered` does not have.

    Core computes ``index_add_``, say, by ``index_add.out``: where it does, a kernel for that one is enough.

    Args:
        operators: names as :func:`recording` gives them.
        registered: names of the same kind, such as torch_npu's.
    """
    registered = set(registered)
    outs: dict[
        str, list[list[str]]
    ] = {}  # the arguments beside out=, of each overload that has a kernel
    for name in registered:
        arguments = _arguments(name)
        if any(argument.is_out for argument in arguments):
            names = [argument.name for argument in arguments if not argument.is_out]
            outs.setdefault(_base(name), []).append(names)

    def by_out(name: str) -> bool:
        import torch

        composed = torch._C._dispatch_has_kernel_for_dispatch_key(
            name, "CompositeExplicitAutogradNonFunctional"
        )
        return composed and [argument.name for argument in _arguments(name)] in outs.get(
            _base(name).rstrip("_"), []
        )

    return sorted(name for name in set(operators) - registered if not by_out(name))


def _base(name: str) -> str:
    return name.removeprefix("aten::").partition(".")[0]


def _arguments(name: str) -> list:
    """The arguments of an operator of torch's own; none where this torch does not have it."""
    import torch

    packet = getattr(torch.ops.aten, _base(name), None)
    overload = getattr(packet, name.partition(".")[2] or "default", None)
    return [] if overload is None else overload._schema.arguments


def settings() -> dict[str, bool]:
    """What this process set: ``jit_compile``, ``allow_internal_format``, ``matmul.allow_hf32``, ``conv.allow_hf32``."""
    from . import npu

    return dict(npu.settings)


def load() -> None:
    """Give this process the device: ``torch.npu``, ``torch_npu``, the backend ``hccl``. A second call does nothing.

    It must come before the process's first backward pass, even one on the CPU: there torch counts the devices.

    Raises:
        RuntimeError: it cannot be built, or the process has another device of this kind already.
    """
    import torch

    from . import hccl, npu

    if npu.extension is not None:
        return
    spec = importlib.util.spec_from_file_location(_EXTENSION, _extension_file())
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    npu.extension = extension
    torch.utils.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", npu)
    torch.utils.generate_methods_for_privateuse1_backend(
        for_storage=True, unsupported_dtype=[torch.float64]
    )
    hccl.register()
    _print_on_the_host()
    atexit.register(_let_backward_threads_start)
    # while site/torch_npu is being imported its module is there already
    module = sys.modules.get("torch_npu")
    if module is None:
        module = sys.modules["torch_npu"] = types.ModuleType("torch_npu", __doc__)
        module.__spec__ = importlib.machinery.ModuleSpec("torch_npu", loader=None)
    module.__version__ = torch.__version__
    module.npu = npu


def _print_on_the_host() -> None:
    """torch prints a tensor by way of float64, on the tensor's device."""
    from torch import _tensor_str

    to_double = _tensor_str.tensor_totype
    _tensor_str.tensor_totype = lambda tensor: to_double(tensor.cpu() if tensor.is_npu else tensor)


def _let_backward_threads_start() -> None:
    """Give work to each of the threads that torch's first backward pass starts, one a device: it awaits only its own.

    Each takes the interpreter's lock once before it works. One that still waits for it when the interpreter ends
    aborts the process: "terminate called without an active exception".
    """
    from . import npu

    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    if any(name.startswith("pt_autograd_") for name in names):
        for index in range(npu.device_count()):
            npu.extension.backward(index)


def _extension_file() -> Path:
    """The compiled half, built if it is not there."""
    import fcntl

    folder = _build_folder()
    file = folder / f"{_EXTENSION}.so"
    if _built(folder):
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "building", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released however the process ends
        if not _built(folder):
            (folder / "lock").unlink(
                missing_ok=True
            )  # torch's own, left behind by a process that was killed
            # in a process of its own: building loads, and that is for the process that wants the device
            done = subprocess.run(
                [sys.executable, "-c", _BUILD, str(_SOURCE), str(folder)],
                env={**os.environ, "PATH": _path()},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(
                    f"the simulated npu cannot be built:\n{done.stdout}{done.stderr}"
                )
            (folder / "built").touch()
    return file


_BUILD = f"""
import sys
from torch.utils.cpp_extension import load
load({_EXTENSION!r}, [sys.argv[1]], build_directory=sys.argv[2])
"""


def _built(folder: Path) -> bool:
    return (folder / "built").is_file()


def _build_folder() -> Path:
    """A folder of the user's cache for this source, this torch and this Python."""
    import torch

    key = hashlib.sha256(_SOURCE.read_bytes())
    key.update(
        f"{torch.__version__} {torch.__file__} {sys.implementation.cache_tag} {_BUILD}".encode()
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
        cache = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return cache / "fastreid_star" / f"simulated_npu-{key.hexdigest()[:16]}"


def _path() -> str:
    """PATH with this Python's own folder first: pip puts ninja there, and an environment need not be activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
