"""Files that are whole or not there."""

import fcntl
import multiprocessing
import os
import re
from pathlib import Path

import pytest

from fastreid_star import files
from fastreid_star.files import drop_cut_line, earlier_path, remove_abandoned, write_whole


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
    temporary, renamed, folder = asked
    assert re.fullmatch(rf"{tmp_path}/x\.{os.getpid()}\.[0-9a-f]{{8}}\.tmp", temporary)
    assert (renamed, folder) == ("renamed", str(tmp_path))


def test_earlier_versions_are_kept_and_files_of_ones_own_stay(tmp_path):
    path = tmp_path / "a.b.pth"
    for name in ("a.b-x.pth", "a.b-60.pth", "a.b-1.txt", "other-9.pth"):
        (tmp_path / name).write_text("a stranger")
    for number in range(5):
        write_whole(path, lambda file, number=number: file.write(b"%d" % number), earlier=2)
    assert [Path(earlier_path(path, age)).read_bytes() for age in range(3)] == [b"4", b"3", b"2"]
    write_whole(path, lambda file: file.write(b"5"))
    assert [Path(earlier_path(path, age)).read_bytes() for age in range(3)] == [b"5", b"3", b"2"], (
        "as they were"
    )
    for name in ("a.b-x.pth", "a.b-60.pth", "a.b-1.txt", "other-9.pth"):
        assert (tmp_path / name).read_text() == "a stranger"


def write_and_stop(path, fails):
    """Stop in the middle of writing: killed, or for ever."""

    def write(file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), 9) if fails else (
            open(f"{path}.ready", "w").close(),
            multiprocessing.Event().wait(),
        )

    write_whole(path, write)


def test_what_a_killed_process_left_is_removed_and_a_living_ones_stays(tmp_path):
    context = multiprocessing.get_context("fork")
    killed, living = (
        context.Process(target=write_and_stop, args=(tmp_path / "x.pth", fails)) for fails in (1, 0)
    )
    for process in (killed, living):
        process.start()
    killed.join()
    while not (tmp_path / "x.pth.ready").exists():
        assert living.is_alive()
    of_strangers = {"x.pth", "x.pth.ready", "x.tmp", "x.pth.12.tmp", "x.pth.12.notes.tmp"}
    for name in of_strangers:
        (tmp_path / name).write_text("not one of ours")
    try:
        (removed,) = remove_abandoned(tmp_path)
        assert removed.startswith(f"x.pth.{killed.pid}.")
        (stays,) = {*os.listdir(tmp_path)} - of_strangers
        assert stays.startswith(f"x.pth.{living.pid}.")
    finally:
        living.kill()
        living.join()
    assert remove_abandoned(tmp_path) == [stays]
    assert {*os.listdir(tmp_path)} == of_strangers


def test_a_file_that_is_cleaned_away_at_its_birth_is_made_again(tmp_path, monkeypatch):
    """Between its making and its locking a temporary file looks abandoned."""
    removed, lock = [], fcntl.flock

    def late(file, operation):
        if not removed:
            monkeypatch.undo()
            removed.extend(remove_abandoned(tmp_path))
        lock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    write_whole(tmp_path / "x", lambda file: file.write(b"new"))
    assert len(removed) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_without_locks_files_are_written_and_nothing_is_cleaned(tmp_path, monkeypatch):
    def none(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    write_whole(tmp_path / "x", lambda file: file.write(b"new"))
    (tmp_path / "x.1.0123abcd.tmp").write_text("whose?")
    assert remove_abandoned(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == ["x", "x.1.0123abcd.tmp"]


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
