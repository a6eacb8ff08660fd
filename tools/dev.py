#!/usr/bin/env python3
"""Set up, demonstrate and test fastreid_star, with nothing but Python's standard library to start from.

    python tools/dev.py setup    make .venv and install everything into it
    python tools/dev.py demo     set up, then train and evaluate on data the project makes
    python tools/dev.py test     set up, then lint, check types and test; more arguments go to pytest
    python tools/dev.py pose     make .venv-pose, the environment of the pose estimators

A torch that the calling Python already has (an Ascend or CUDA image, conda, a virtual environment) is kept: .venv then
sees that Python's packages. Otherwise torch 2.13.0 is installed: the CPU build where there is no GPU and pip offers
one, else the build pip offers first; set TORCH_INDEX_URL to the index of another. Everything is installed once: the
second call takes a moment.

.venv-pose is made in the same way and holds the project too, with transformers (ViTPose) and mmpose 1.3.2 (HRNet,
RTMPose). mmpose wants packages older than the project's, and a C compiler with Python's headers for one of them, which
is why it stands apart: nothing but skeleton extraction needs it. Tests of the pose estimators are skipped without it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from venv import create

ROOT = Path(__file__).resolve().parent.parent

TORCH = "2.13.0"
FASTREID = "fastreid==1.4.0"  # pins torch 1.13: only --no-deps lets it in


class Environment:
    """A virtual environment of the project's own, below its root.

    Args:
        name: of its folder.
        extra: of setup.py, installed with the project.
        more: titles and pip's arguments of what it holds beside that, in order.
    """

    def __init__(self, name: str, *, extra: str, more: Mapping[str, Sequence[str]]):
        self.folder = ROOT / name
        self.extra = extra
        self.more = more
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = self.folder / "fastreid-star.stamp"

    def install(self, title: str, arguments: Iterable[str]) -> None:
        print(f"  {title} ...", end="", flush=True)
        start = time.monotonic()
        command = [
            self.python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            *arguments,
        ]
        subprocess.run(command, check=True, cwd=ROOT)
        print(f" {time.monotonic() - start:.0f} s", flush=True)


VENV = Environment(
    ".venv",
    extra="dev",
    # it asks for an opencv-python beside the headless one, which would take its place
    more={"grad-cam": ("--no-deps", "grad-cam==1.5.7", "ttach")},
)
POSE = Environment(
    ".venv-pose",
    extra="pose",
    more={
        # what mmpose, mmengine and mmcv need at run time and the project does not; setuptools for its pkg_resources,
        # setuptools and Cython to build xtcocotools
        "what mmpose needs": (
            *(
                "addict",
                "json_tricks",
                "munkres",
                "packaging",
                "pyyaml",
                "rich",
                "six",
                "termcolor",
                "yapf",
            ),
            *("setuptools<80", "wheel", "cython>=3"),
        ),
        # --no-deps: they ask for an opencv-python beside the headless one, and for chumpy, which no longer builds and
        # is not used. mmcv-lite is mmcv without compiled operators: nobody builds those for today's torch.
        "mmpose": ("--no-deps", "mmpose==1.3.2", "mmengine==0.10.7", "mmcv-lite==2.1.0"),
        # its wheels do not load beside numpy 2; without isolation it is built against the numpy it will be used with
        "xtcocotools, from source": (
            *(
                "--no-deps",
                "--no-binary",
                "xtcocotools",
                "--no-build-isolation",
                "xtcocotools==1.14.3",
            ),
        ),
    },
)


def main() -> int:
    commands = {"setup": lambda _: 0, "demo": demo, "test": test, "pose": pose}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(__doc__)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever has an older one should read why
        print(f"Python 3.10 or later is needed; this is {sys.version.split()[0]}")
        return 2
    if Path(sys.prefix).resolve() in (VENV.folder.resolve(), POSE.folder.resolve()):
        # called from an activated environment of ours: what it was made from decides
        return subprocess.call([sys._base_executable, *sys.argv])
    try:
        set_up(POSE if sys.argv[1] == "pose" else VENV)
    except subprocess.CalledProcessError as error:
        if error.output:
            print(error.output.decode(errors="replace"))
        command = " ".join(map(str, error.cmd))
        print(f"\nset-up stopped: `{command}` failed; mend what it says above and call this again")
        return 1
    return commands[sys.argv[1]](sys.argv[2:])


def demo(args: list[str]) -> int:
    return subprocess.call([VENV.python, "-u", ROOT / "tools" / "demo.py", *args], cwd=ROOT)


def test(args: list[str]) -> int:
    workers = str(min(os.cpu_count() or 1, 8))
    # one thread a test process: the workers share the cores
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for step in (
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        # what torch says of its types changes from release to release
        *([["-m", "mypy"]] if is_tested_torch(VENV.python) else []),
        ["-m", "pytest", "-n", workers, "--durations=10", *args],
    ):
        print(f"\n$ python {' '.join(step)}", flush=True)
        status = subprocess.call([VENV.python, *step], cwd=ROOT, env=env)
        if status:
            return status
    return 0


def pose(args: list[str]) -> int:
    print(f"the pose estimators' Python: {POSE.python}")
    return 0


def set_up(venv: Environment) -> None:
    """Make an environment and fill it, unless a stamp says that this very set-up is there already."""
    inherited = version_of_torch(sys.executable)
    metadata = (ROOT / "setup.py").read_text(encoding="utf-8")
    more = [argument for arguments in venv.more.values() for argument in arguments]
    parts = [metadata, TORCH, FASTREID, venv.extra, *more, sys.version, str(inherited), str(ROOT)]
    wanted = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if venv.stamp.is_file() and venv.stamp.read_text() == wanted:
        return
    start = time.monotonic()
    print(f"setting up {venv.folder} with Python {sys.version.split()[0]}", flush=True)
    if venv.folder.exists() and not is_of_this_python(venv, inherited is not None):
        shutil.rmtree(venv.folder)
    venv.stamp.unlink(missing_ok=True)
    if not venv.folder.exists():  # one that is in use cannot be made anew, only filled
        create(venv.folder, with_pip=True, system_site_packages=inherited is not None)
    if inherited:
        see_packages_of_this_python(venv)
        print(f"  keeping torch {inherited}", flush=True)
    else:
        install_torch(venv)
    torch = version_of_torch(venv.python)
    if torch is None or (inherited and torch != inherited):
        sys.exit(
            f"{venv.folder} sees torch {torch}, not {inherited or TORCH}: delete the folder and call this again"
        )
    # torch 2.N goes with torchvision 0.(N + 15); --no-deps, or pip may replace torch
    minor = int(torch.split(".")[1])
    venv.install("torchvision", ["--no-deps", f"torchvision==0.{minor + 15}.*", *index_of_torch()])
    constraints = venv.folder / "constraints.txt"
    constraints.write_text(f"torch=={torch}\n")
    kept = ["-c", str(constraints)]
    venv.install("fastreid_star and what it needs", [*kept, "-e", f"{ROOT}[{venv.extra}]"])
    for title, arguments in venv.more.items():
        venv.install(title, [*kept, *arguments])
    venv.install(
        "fastreid", ["--no-deps", FASTREID]
    )  # last: beside it pip complains of whatever is installed
    venv.stamp.write_text(wanted)
    print(f"set up in {time.monotonic() - start:.0f} s\n", flush=True)


def is_of_this_python(venv: Environment, inherits: bool) -> bool:
    """Whether an environment is whole, and made as it would be made now."""
    file = venv.folder / "pyvenv.cfg"
    if not (file.is_file() and venv.python.exists()):
        return False
    settings = dict(line.split(" = ", 1) for line in file.read_text().splitlines() if " = " in line)
    wanted = {
        "version": platform.python_version(),
        "include-system-site-packages": str(inherits).lower(),
    }
    has_pip = (
        subprocess.run(
            [venv.python, "-m", "pip", "--version"], capture_output=True, check=False
        ).returncode
        == 0
    )
    return has_pip and wanted.items() <= settings.items()


def install_torch(venv: Environment) -> None:
    """torch of the tested version; without a GPU its CPU build, if pip knows one."""
    has_gpu = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
    if not has_gpu and not index_of_torch():
        command = [
            venv.python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            f"torch=={TORCH}+cpu",
        ]
        print(f"  torch {TORCH}, CPU build ...", end="", flush=True)
        start = time.monotonic()
        if subprocess.run(command, capture_output=True, cwd=ROOT, check=False).returncode == 0:
            print(f" {time.monotonic() - start:.0f} s", flush=True)
            return
        print(
            " pip knows none; set TORCH_INDEX_URL to an index that does, to save gigabytes",
            flush=True,
        )
    venv.install(f"torch {TORCH}", [f"torch=={TORCH}", *index_of_torch()])


def index_of_torch() -> list[str]:
    index = os.environ.get("TORCH_INDEX_URL")
    return ["--index-url", index] if index else []


def version_of_torch(python: str | Path) -> str | None:
    """The version of torch that an interpreter has, found without importing it."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def is_tested_torch(python: str | Path) -> bool:
    """Whether an interpreter has the release of torch that the project is developed with, in any build."""
    return (version_of_torch(python) or "").partition("+")[0] == TORCH


def see_packages_of_this_python(venv: Environment) -> None:
    """Where the calling Python is a virtual environment itself, ours inherits only from what that was made of."""
    if sys.prefix != sys.base_prefix:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        inner = subprocess.run(
            [venv.python, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (Path(inner) / "calling_python.pth").write_text("\n".join(sorted(outer)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
