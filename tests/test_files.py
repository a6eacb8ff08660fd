"""Files that are whole or not there."""

import os

import pytest

from fastreid_star.files import write_whole


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model_last.pth"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(str(path), fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model_last.pth"]


def test_a_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "model_last.pth"
    path.write_bytes(b"old")
    write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model_last.pth"]
