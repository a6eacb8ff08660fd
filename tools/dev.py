#!/usr/bin/env python3
"""Set up, demonstrate and test fastreid_star, with nothing but Python's standard library to start from.

    python tools/dev.py setup    make .venv and install everything into it
    python tools/dev.py demo     set up, then train and evaluate on data the project makes
    python tools/dev.py test     set up, then lint and test; more arguments go to pytest

A torch that the calling Python already has (an Ascend or CUDA image, conda, a virtual environment) is kept: .venv then
sees that Python's packages. Otherwise torch 2.13.0 is installed: the CPU build where there is no GPU and pip offers
one, else the build pip offers first; set TORCH_INDEX_URL to the index of another. Everything is installed once: the
second call takes a moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "fastreid-star.stamp"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

TORCH = "2.13.0"
FASTREID = "fastreid==1.4.0"  # pins torch 1.13: only --no-deps lets it in
EXTRAS = "dev"


def main() -> int:
    commands = {"setup": lambda _: 0, "demo": demo, "test": test}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(__doc__)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever has an older one should read why
        print(f"Python 3.10 or later is needed; this is {sys.version.split()[0]}")
        return 2
    if Path(sys.prefix).resolve() == VENV.resolve():  # called from the activated .venv: what it was made from decides
        return subprocess.call([sys._base_executable, *sys.argv])
    try:
        set_up()
    except subprocess.CalledProcessError as error:
        if error.output:
            print(error.output.decode(errors="replace"))
        command = " ".join(map(str, error.cmd))
        print(f"\nset-up stopped: `{command}` failed; mend what it says above and call this again")
        return 1
    return commands[sys.argv[1]](sys.argv[2:])


def demo(args: list[str]) -> int:
    return subprocess.call([PYTHON, "-u", ROOT / "tools" / "demo.py", *args], cwd=ROOT)


def test(args: list[str]) -> int:
    workers = str(min(os.cpu_count() or 1, 8))
    # one thread a test process: the workers share the cores
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for step in (
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "pytest", "-n", workers, "--durations=10", *args],
    ):
        print(f"\n$ python {' '.join(step)}", flush=True)
        status = subprocess.call([PYTHON, *step], cwd=ROOT, env=env)
        if status:
            return status
    return 0


def set_up() -> None:
    """Make .venv and fill it, unless a stamp says that this very set-up is there already."""
    inherited = version_of_torch(sys.executable)
    metadata = (ROOT / "setup.py").read_text(encoding="utf-8")
    parts = [metadata, TORCH, FASTREID, EXTRAS, sys.version, str(inherited), str(ROOT)]
    wanted = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    start = time.monotonic()
    print(f"setting up {VENV} with Python {sys.version.split()[0]}", flush=True)
    if VENV.exists() and not PYTHON.exists():
        shutil.rmtree(VENV)
    STAMP.unlink(missing_ok=True)
    venv.create(VENV, with_pip=True, system_site_packages=inherited is not None)
    if inherited:
        see_packages_of_this_python()
        print(f"  keeping torch {inherited}", flush=True)
    else:
        install_torch()
    torch = version_of_torch(PYTHON)
    if torch is None or (inherited and torch != inherited):
        sys.exit(f"{VENV} sees torch {torch}, not {inherited or TORCH}: delete the folder and call this again")
    # torch 2.N goes with torchvision 0.(N + 15); --no-deps, or pip may replace torch
    minor = int(torch.split(".")[1])
    step("torchvision", ["--no-deps", f"torchvision==0.{minor + 15}.*", *index_of_torch()])
    constraints = VENV / "constraints.txt"
    constraints.write_text(f"torch=={torch}\n")
    step("fastreid_star and what it needs", ["-c", str(constraints), "-e", f"{ROOT}[{EXTRAS}]"])
    step("fastreid", ["--no-deps", FASTREID])
    STAMP.write_text(wanted)
    print(f"set up in {time.monotonic() - start:.0f} s\n", flush=True)


def step(title: str, arguments: list[str]) -> None:
    print(f"  {title} ...", end="", flush=True)
    start = time.monotonic()
    subprocess.run(
        [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments], check=True, cwd=ROOT
    )
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def install_torch() -> None:
    """torch of the tested version; without a GPU its CPU build, if pip knows one."""
    has_gpu = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
    if not has_gpu and not index_of_torch():
        command = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"torch=={TORCH}+cpu"]
        print(f"  torch {TORCH}, CPU build ...", end="", flush=True)
        start = time.monotonic()
        if subprocess.run(command, capture_output=True, cwd=ROOT, check=False).returncode == 0:
            print(f" {time.monotonic() - start:.0f} s", flush=True)
            return
        print(" pip knows none; set TORCH_INDEX_URL to an index that does, to save gigabytes", flush=True)
    step(f"torch {TORCH}", [f"torch=={TORCH}", *index_of_torch()])


def index_of_torch() -> list[str]:
    index = os.environ.get("TORCH_INDEX_URL")
    return ["--index-url", index] if index else []


def version_of_torch(python: str | Path) -> str | None:
    """The version of torch that an interpreter has, found without importing it."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def see_packages_of_this_python() -> None:
    """Where the calling Python is a virtual environment itself, .venv inherits only from what that was made of."""
    if sys.prefix != sys.base_prefix:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        inner = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (Path(inner) / "calling_python.pth").write_text("\n".join(sorted(outer)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
