#!/usr/bin/env python3
"""Set up, demonstrate and test fastreid_star, starting from Python's standard library only.

    python tools/dev.py setup    create .venv and install the project with what training needs
    python tools/dev.py demo     set up, then train and evaluate on synthetic data
    python tools/dev.py test     set up with developer tools, then lint, check types and test;
                                 more arguments are passed to pytest
    python tools/dev.py pose     create .venv-pose, the environment of mmpose and ViTPose
    python tools/dev.py oldest   create .venv-oldest with the oldest packages that setup.py allows,
                                 then train, resume, evaluate, report and export there

If the calling Python has a torch (an Ascend or CUDA image, conda, a virtual environment), .venv
uses it and sees the packages of that Python. Otherwise torch 2.13.0 is installed: the CPU build if
there is no GPU and pip offers one, else the default build; set TORCH_INDEX_URL to the index of
another build. Everything is installed once: later calls take a moment.

.venv-pose is created in the same way. It holds the project, transformers (ViTPose) and mmpose 1.3.2
(HRNet, RTMPose). mmpose needs older packages than the project does, and a C compiler with Python's
headers for one of them, so they have an environment of their own. MoveNet, the
default of the extraction of skeletons, does not need it; the tests of the two are skipped without.

.venv-oldest gets torch 2.4.0 and, of every other package, the release that setup.py names as its
lower bound. Call `oldest` with the oldest Python that you have: `python3.10 tools/dev.py oldest`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
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
OLDEST_TORCH = "2.4.0"
# one thread per test process: the processes share the cores
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
FASTREID = "fastreid==1.4.0"  # pins torch 1.13: only --no-deps lets it in


class Environment:
    """A virtual environment in the folder of the project.

    Args:
        name: name of its folder.
        extras: extras of setup.py, from the smallest set of packages to the largest.
        more: titles, and the arguments of pip that install further packages, in order.
        torch: the release of torch that is installed if none is inherited.
    """

    def __init__(
        self,
        name: str,
        *,
        extras: Sequence[str],
        more: Mapping[str, Sequence[str]],
        torch: str = TORCH,
    ):
        self.folder = ROOT / name
        self.torch = torch
        self.extras = extras
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


VENV = Environment(".venv", extras=("", "export", "dev"), more={})
POSE = Environment(
    ".venv-pose",
    extras=("pose",),
    more={
        # what mmpose, mmengine and mmcv need at run time and the project does not; setuptools for
        # its pkg_resources, setuptools and Cython to build xtcocotools
        "what mmpose needs": (
            *("addict", "json_tricks", "munkres", "packaging", "pyyaml", "rich", "six"),
            *("termcolor", "yapf", "setuptools<80", "wheel", "cython>=3"),
        ),
        # --no-deps: they require opencv-python, which conflicts with the headless one, and chumpy,
        # which no longer builds and is not used. mmcv-lite is mmcv without compiled operators, of
        # which there are no builds for current versions of torch.
        "mmpose": ("--no-deps", "mmpose==1.3.2", "mmengine==0.10.7", "mmcv-lite==2.1.0"),
        # its wheels do not load beside NumPy 2; no isolation: build with the one installed
        "xtcocotools, from source": (
            *("--no-deps", "--no-binary", "xtcocotools"),
            *("--no-build-isolation", "xtcocotools==1.14.3"),
        ),
    },
)
OLDEST = Environment(
    ".venv-oldest",
    extras=("export",),
    more={"pytest": ("pytest>=8", "hypothesis>=6.90")},
    torch=OLDEST_TORCH,
)


def main() -> int:
    commands = {
        "setup": (VENV, "export", lambda _: 0),
        "demo": (VENV, "", demo),
        "test": (VENV, "dev", test),
        "pose": (POSE, "pose", pose),
        "oldest": (OLDEST, "export", oldest),
    }
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(__doc__)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 - tell users of an older Python why it fails
        print(f"Python 3.10 or later is needed; this is {sys.version.split()[0]}")
        return 2
    if Path(sys.prefix).resolve() in (venv.folder.resolve() for venv in (VENV, POSE, OLDEST)):
        # called from an activated environment of this project: use the Python that it was made from
        os.execv(sys._base_executable, [sys._base_executable, *sys.argv])
    venv, extra, command = commands[sys.argv[1]]
    try:
        set_up(venv, extra)
    except subprocess.CalledProcessError as error:
        if error.output:
            print(error.output.decode(errors="replace"))
        failed = " ".join(map(str, error.cmd))
        print(f"\nset-up stopped: `{failed}` failed; fix what it says above and call this again")
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the same command continues from here")
        return 130
    return command(sys.argv[2:])


def demo(args: list[str]) -> int:
    """Become the demo, so that Ctrl-C and other signals reach it alone."""
    os.chdir(ROOT)
    os.execv(VENV.python, [str(VENV.python), "-u", "-m", "fastreid_star", "demo", *args])


def test(args: list[str]) -> int:
    workers = str(min(os.cpu_count() or 1, 8))
    for step in (
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        # torch's type annotations change from release to release
        *([["-m", "mypy"]] if is_tested_torch(VENV.python) else []),
        ["-m", "pytest", "-n", workers, "--durations=10", *args],
    ):
        print(f"\n$ python {' '.join(step)}", flush=True)
        status = subprocess.call([VENV.python, *step], cwd=ROOT, env=ONE_THREAD)
        if status:
            return status
    return 0


def pose(args: list[str]) -> int:
    print(f"the pose estimators' Python: {POSE.python}")
    return 0


def oldest(args: list[str]) -> int:
    """Say what is installed, and run the commands once with it."""
    for step in (
        ["-m", "pip", "list", "--disable-pip-version-check"],
        ["-m", "pytest", "--durations=10", "tests/oldest.py", *args],
    ):
        print(f"\n$ python {' '.join(step)}", flush=True)
        status = subprocess.call([OLDEST.python, *step], cwd=ROOT, env=ONE_THREAD)
        if status:
            return status
    return 0


def set_up(venv: Environment, extra: str) -> None:
    """Create an environment and fill it, unless its stamp says that this was done already.

    Args:
        venv: the environment.
        extra: which of its extras is needed; one that has a larger one keeps it.
    """
    inherited = None if venv is OLDEST else version_of_torch(sys.executable)
    metadata = (ROOT / "setup.py").read_text(encoding="utf-8")
    more = [argument for arguments in venv.more.values() for argument in arguments]
    parts = [metadata, venv.torch, FASTREID, *more, sys.version, str(inherited), str(ROOT)]
    wanted = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    found, _, level = (venv.stamp.read_text() if venv.stamp.is_file() else "").partition(" ")
    if found and level in venv.extras:
        extra = max(extra, level, key=venv.extras.index)
    if (found, level) == (wanted, extra):
        return
    start = time.monotonic()
    print(f"setting up {venv.folder} with Python {sys.version.split()[0]}", flush=True)
    if venv.folder.exists() and not is_of_this_python(venv, inherited is not None):
        shutil.rmtree(venv.folder)
    venv.stamp.unlink(missing_ok=True)
    if not venv.folder.exists():  # one that is in use cannot be created again, only filled
        create(venv.folder, with_pip=True, system_site_packages=inherited is not None)
    if inherited:
        see_packages_of_this_python(venv)
        print(f"  keeping torch {inherited}", flush=True)
    else:
        install_torch(venv)
    torch = version_of_torch(venv.python)
    if torch is None or (inherited and torch != inherited):
        sys.exit(
            f"{venv.folder} sees torch {torch}, not {inherited or venv.torch}: delete the folder "
            "and call this again"
        )
    # torch 2.N goes with torchvision 0.(N + 15); --no-deps, or pip may replace torch
    minor = int(torch.split(".")[1])
    venv.install("torchvision", ["--no-deps", f"torchvision==0.{minor + 15}.*", *index_of_torch()])
    constraints = venv.folder / "constraints.txt"
    bounds = lower_bounds(metadata) if venv is OLDEST else []
    constraints.write_text("\n".join([f"torch=={torch}", *bounds, ""]))
    kept = ["-c", str(constraints)]
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    venv.install("fastreid_star and what it needs", [*kept, "-e", target])
    for title, arguments in venv.more.items():
        venv.install(title, [*kept, *arguments])
    # last: when fastreid is installed, pip warns about every other package
    venv.install("fastreid", ["--no-deps", FASTREID])
    venv.stamp.write_text(f"{wanted} {extra}")
    print(f"set up in {time.monotonic() - start:.0f} s\n", flush=True)


def lower_bounds(metadata: str) -> list[str]:
    """Constraints of pip that admit only the lower bounds in setup.py: numpy>=1.24 as ==1.24.*."""
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)"', metadata)
    return [f"{name}=={version}.*" for name, version in bounds if name != "torch"]


def is_of_this_python(venv: Environment, inherits: bool) -> bool:
    """Whether an environment is complete, and created as it would be created now."""
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
    """Install the environment's release of torch; without a GPU its CPU build, if pip finds one."""
    has_gpu = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
    if not has_gpu and not index_of_torch():
        command = [
            venv.python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            f"torch=={venv.torch}+cpu",
        ]
        print(f"  torch {venv.torch}, CPU build ...", end="", flush=True)
        start = time.monotonic()
        if subprocess.run(command, capture_output=True, cwd=ROOT, check=False).returncode == 0:
            print(f" {time.monotonic() - start:.0f} s", flush=True)
            return
        print(
            " not found; set TORCH_INDEX_URL to an index that has it to save gigabytes",
            flush=True,
        )
    venv.install(f"torch {venv.torch}", [f"torch=={venv.torch}", *index_of_torch()])


def index_of_torch() -> list[str]:
    index = os.environ.get("TORCH_INDEX_URL")
    return ["--index-url", index] if index else []


def version_of_torch(python: str | Path) -> str | None:
    """The version of torch that an interpreter has, read without importing it."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def is_tested_torch(python: str | Path) -> bool:
    """Whether an interpreter has the tested release of torch, in any build."""
    return (version_of_torch(python) or "").partition("+")[0] == TORCH


def see_packages_of_this_python(venv: Environment) -> None:
    """Add the packages of a calling virtual environment; venv inherits those of its base only."""
    if sys.prefix != sys.base_prefix:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        inner = subprocess.run(
            [venv.python, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (Path(inner) / "calling_python.pth").write_text("\n".join(sorted(outer)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
