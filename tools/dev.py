#!/usr/bin/env python3
"""Set up, demonstrate and test fastreid_star, with nothing but Python's standard library to start from.

    python tools/dev.py setup    make .venv and install everything into it
    python tools/dev.py demo     set up, then train and evaluate on data the project makes
    python tools/dev.py test     set up, then lint and test; more arguments go to pytest

A torch that the calling Python already has (an Ascend or CUDA image, a conda environment) is kept: .venv then sees
that Python's packages. Otherwise torch 2.13.0 is installed, in whichever build pip offers first; set TORCH_INDEX_URL
to the index of another build. Everything is installed once: the second call takes a moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
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
    try:
        set_up()
    except subprocess.CalledProcessError as error:
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
    inherited = torch_of(sys.executable)
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
    venv.create(VENV, with_pip=True, system_site_packages=inherited is not None, upgrade_deps=False)

    if inherited:
        step(f"keeping torch {inherited}", None)
        torch = inherited
    else:
        index = os.environ.get("TORCH_INDEX_URL")
        step(f"torch {TORCH}", [f"torch=={TORCH}", *(["--index-url", index] if index else [])])
        torch = TORCH
    # torch 2.N goes with torchvision 0.(N + 15); --no-deps, or pip may replace torch
    minor = int(torch.split(".")[1])
    step("torchvision", ["--no-deps", f"torchvision==0.{minor + 15}.*"])
    constraints = VENV / "constraints.txt"
    constraints.write_text(f"torch=={torch}\n")
    step("fastreid_star and what it needs", ["-c", str(constraints), "-e", f"{ROOT}[{EXTRAS}]"])
    step("fastreid", ["--no-deps", FASTREID])
    STAMP.write_text(wanted)
    print(f"set up in {time.monotonic() - start:.0f} s\n", flush=True)


def step(title: str, arguments: list[str] | None) -> None:
    print(f"  {title} ...", end="" if arguments else "\n", flush=True)
    if arguments is None:
        return
    start = time.monotonic()
    subprocess.run(
        [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments], check=True, cwd=ROOT
    )
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def torch_of(python: str) -> str | None:
    """The version of torch that this interpreter has, without importing it; None: none, or it is .venv's own."""
    if Path(python).resolve().is_relative_to(VENV) or Path(sys.prefix).resolve() == VENV:
        return None
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
