"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from fastreid_star.files import drop_cut_line, earlier_path, insert, write_whole


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model_last.pth"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(str(path), fail, earlier=1)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model_last.pth"]


def test_what_a_killed_process_left_is_replaced_by_the_next_write(tmp_path):
    path = tmp_path / "model_last.pth"
    path.write_bytes(b"old")
    (tmp_path / "model_last.pth.tmp").write_bytes(b"half of a longer one")
    write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model_last.pth"]


def test_the_content_and_then_the_rename_are_on_disk(tmp_path, monkeypatch):
    """A power cut after the call must not bring back the old content."""
    asked = []
    fsync, replace = os.fsync, os.replace

    def seen(descriptor):
        asked.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "replace", lambda *names: (asked.append("renamed"), replace(*names)))
    write_whole(tmp_path / "x", lambda file: file.write(b"new"))
    assert asked == [str(tmp_path / "x.tmp"), "renamed", str(tmp_path)]


def test_earlier_versions_are_kept_and_files_of_ones_own_stay(tmp_path):
    path = tmp_path / "a.b.pth"
    own = ("a.b-x.pth", "a.b-60.pth", "a.b-1.txt", "other-9.pth")
    for name in own:
        (tmp_path / name).write_text("a stranger")
    for number in range(5):
        write_whole(path, lambda file, number=number: file.write(b"%d" % number), earlier=2)
    assert [Path(earlier_path(path, age)).read_bytes() for age in range(3)] == [b"4", b"3", b"2"]
    write_whole(path, lambda file: file.write(b"5"))
    assert [Path(earlier_path(path, age)).read_bytes() for age in range(3)] == [b"5", b"3", b"2"]
    assert {(tmp_path / name).read_text() for name in own} == {"a stranger"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"1\n2\n", b"1\n2\n"), (b"1\n2", b"1\n"), (b"1", b""), (b"", b""), (b"1\n\n", b"1\n\n")],
)
def test_a_line_without_an_end_is_dropped(tmp_path, content, expected):
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    drop_cut_line(path)
    assert path.read_bytes() == expected
    drop_cut_line(tmp_path / "none")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_inserting_keeps_the_ends_of_lines(tmp_path, end):
    page = tmp_path / "page.md"
    lines = ["above", "<!-- runs: begin -->", "old", "<!-- runs: end -->", "below", ""]
    page.write_bytes(end.join(lines).encode())
    new = [*lines[:2], "", "| a |", "| b |", "", *lines[3:]]
    assert insert(page, "runs", "| a |\n| b |") == end.join(new)
