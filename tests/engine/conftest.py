"""Small disks, for tests of what happens when they are full, and one complete run."""

import contextlib
import shutil
import subprocess

import pytest

from .runs import WholeRun


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of some size, ``disk("300k")``; where that is not allowed, the test is skipped."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Write until nothing fits any more."""
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.fixture(scope="session")
def whole_run(tiny_root, tmp_path_factory):
    """An uninterrupted run, not to be written into."""
    return WholeRun(tiny_root, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(whole_run, tmp_path):
    """A folder with the complete run in it."""
    shutil.copytree(whole_run.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path
