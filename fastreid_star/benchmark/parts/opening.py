"""Opening HITSZ-VCM at its true size: time, memory, and how often the file system is asked."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.parts.true_size import write_info_files_at_true_size
from fastreid_star.benchmark.process import MB, in_own_process
from fastreid_star.benchmark.timing import in_turns
from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM, INFO_FILES
from fastreid_star.structures import Modality

# every way in which Python's standard library asks for, lists or opens a file goes through one of these
_CALLS = ("stat", "lstat", "access", "scandir", "listdir", "open")


def figures(options: Options) -> Iterator[Figure]:
    """Opening HITSZ-VCM's lists at their true size: time, memory, and how often the file system is asked."""
    root = options.folder / "open"
    write_info_files_at_true_size(root / "HITSZ-VCM")
    make_folders(root)
    yield from measure(root, options)


def make_folders(root: Path) -> None:
    """The folders that the lists name, without frames in them: the dataset looks for some of the folders."""
    folders = set()
    for split in ("train", "test"):
        for name in (root / "HITSZ-VCM" / "info" / f"{split}_name.txt").read_text().split():
            folders.add(
                (split.capitalize(), name[: name.index("T")])
            )  # 0001M2D3 of 0001M2D3T1F1.jpg
    for split, text in folders:
        pid, rest = text.split("M")
        modality, camera = rest.split("D")
        folder = root / "HITSZ-VCM" / split / pid / Modality(int(modality)).folder / f"D{camera}"
        folder.mkdir(parents=True, exist_ok=True)


def measure(root: Path, options: Options) -> Iterator[Figure]:
    """The figures of a ``HITSZ-VCM`` below `root`."""
    files = [root / "HITSZ-VCM" / "info" / name for name in INFO_FILES]
    sides = {
        "open": lambda: HITSZVCM(str(root)),
        "read": lambda: [path.read_text().split() for path in files],
    }
    times = in_turns(sides, repeats=options.rounds, title=options.title("open"))
    yield Figure.against(
        "dataset_open_seconds",
        times["open"].best,
        "s",
        times["read"].best,
        f"reading the five files and splitting them at white space; {times['open']}",
    )
    names, growth = (
        in_own_process(function, str(root)) for function in (count_names, open_dataset)
    )
    yield Figure.against(
        "dataset_open_memory_mb",
        growth.growth / MB,
        "MB",
        names.growth / MB,
        "the same lists as words; growth of a process of its own at its peak",
    )
    with counted_file_calls() as count:
        HITSZVCM(str(root))
    yield Figure.against(
        "dataset_open_file_calls",
        count(),
        "calls",
        names.result,
        "one for each frame that the lists name",
    )


def open_dataset(root: str) -> None:
    """Open the dataset; what a process of its own does."""
    HITSZVCM(root)


def count_names(root: str) -> int:
    """Read the lists as words; how many frames they name."""
    info = Path(root) / "HITSZ-VCM" / "info"
    words = {name: (info / name).read_text().split() for name in INFO_FILES}
    return len(words["train_name.txt"]) + len(words["test_name.txt"])


@contextmanager
def counted_file_calls() -> Iterator[Callable[[], int]]:
    """Count how often Python asks the file system for something; the function that is given tells."""
    calls = 0

    def counting(function: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            return function(*args, **kwargs)

        return call

    patches = [mock.patch.object(os, name, counting(getattr(os, name))) for name in _CALLS]
    patches += [
        mock.patch.object(builtins, "open", counting(open)),
        mock.patch.object(io, "open", counting(io.open)),
    ]
    for patch in patches:
        patch.start()
    try:
        yield lambda: calls
    finally:
        for patch in reversed(patches):
            patch.stop()
