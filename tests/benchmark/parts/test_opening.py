import os
from pathlib import Path

import pytest

from fastreid_star.benchmark.parts import opening
from fastreid_star.benchmark.parts.opening import counted_file_calls
from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM


@pytest.mark.parametrize(
    "call",
    [
        lambda path: os.path.exists(path),
        lambda path: os.path.isfile(path),
        lambda path: os.path.getsize(path),
        lambda path: Path(path).is_dir(),
        lambda path: Path(path).parent.joinpath("none").exists(),
        lambda path: os.listdir(os.path.dirname(path)),
        lambda path: os.access(path, os.R_OK),
        lambda path: open(path).close(),
        lambda path: Path(path).read_text(),
    ],
)
def test_whatever_asks_the_file_system_is_counted(tmp_path, call):
    path = tmp_path / "file"
    path.write_text("text")
    with counted_file_calls() as count:
        for _ in range(10):
            call(str(path))
        assert 10 <= count() <= 30
    before = count()
    call(str(path))
    assert count() == before, "afterwards nothing is counted"


def test_opening_at_the_true_size_looks_at_no_frame(options, here):
    here(opening)
    figures = {figure.name: figure for figure in opening.figures(options)}
    calls = figures["dataset_open_file_calls"]
    assert (
        calls.limit == 232_481 + 230_739 + 15 + 24
    )  # frames, and names that belong to no tracklet
    assert 5 <= calls.value < 100
    assert figures["dataset_open_seconds"].ratio > 1
    assert figures["dataset_open_memory_mb"].value == 1
    data = HITSZVCM(str(options.folder / "open"))
    assert (len(data.train), len(data.query), len(data.gallery)) == (9751, 4584, 5099)
    # no frame is there: had one been looked for, it would have been missed
    assert not any(files for _, _, files in os.walk(options.folder / "open" / "HITSZ-VCM" / "Test"))
