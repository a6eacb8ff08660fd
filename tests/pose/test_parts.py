import errno
import os
import shutil

import numpy as np
import pytest

from fastreid_star.errors import UserError
from fastreid_star.pose.parts import Part, Parts


def part(count, problem=""):
    joints = np.arange(count * 17 * 3, dtype=np.float32).reshape(count, 17, 3)
    return Part(joints, np.full((count, 2), 7, np.int32), [problem] * count)


@pytest.fixture
def parts(tmp_path):
    parts = Parts(tmp_path / "out.parts", frames=10, size=4)
    parts.begin({"model": "m"})
    return parts


def test_rows_cover_all_crops_once(tmp_path):
    for frames, size in ((10, 4), (8, 4), (1, 4), (3, 1)):
        parts = Parts(tmp_path, frames, size)
        assert [row for number in range(len(parts)) for row in parts.rows(number)] == list(
            range(frames)
        )


def test_what_is_written_is_read(parts):
    assert parts.done() == set()
    parts.write(2, part(2, "größer\n日本"))
    parts.write(0, part(4))
    assert parts.done() == {0, 2}
    back = parts.read(2)
    np.testing.assert_array_equal(back.joints, part(2).joints)
    np.testing.assert_array_equal(back.sizes, part(2).sizes)
    assert back.problems == ["größer\n日本"] * 2
    assert parts.read(0).problems == [""] * 4
    assert parts.read(1) is None
    parts.remove()
    assert not parts.folder.exists()


def test_other_files_and_other_numbers_do_not_count(parts):
    for name in ("000001.npz.77.tmp", "x.npz", "000009.npz", "-1.npz"):
        (parts.folder / name).touch()
    assert parts.done() == set()


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "flipped", "locked", "newer", "shape", "text", "pickle"]
)
def test_a_damaged_part_is_none_and_gone(parts, damage):
    parts.write(0, part(4))
    file = parts.folder / "000000.npz"
    content = bytearray(file.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 3] ^= 1
    elif damage in (
        "locked",
        "newer",
    ):  # what the list at the end of a zip file says of its first entry
        entry = content.index(b"PK\x01\x02")
        content[entry + {"locked": 8, "newer": 6}[damage]] ^= 1 if damage == "locked" else 64
    elif damage == "text":
        content[:] = b"no zip"
    file.write_bytes(content)
    if damage == "shape":
        parts.write(0, part(3))
    if damage == "pickle":
        joints = part(4)
        np.savez(
            file, joints=joints.joints, sizes=joints.sizes, problems=np.array([{}] * 4, object)
        )
    assert parts.read(0) is None
    assert not file.exists()
    assert parts.done() == set()


def test_a_part_that_the_disk_does_not_give_is_kept(parts, monkeypatch):
    parts.write(0, part(4))

    def stale(_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", stale)
        with pytest.raises(
            UserError,
            match=r"000000\.npz cannot be read \(Stale file handle\).*what is done is kept",
        ):
            parts.read(0)
    assert parts.read(0) is not None


def test_of_two_that_begin_at_the_same_time_one_sets_the_plan(tmp_path, monkeypatch):
    parts, rename = Parts(tmp_path / "out.parts", 10, 4), os.rename

    def late(*paths):
        monkeypatch.setattr(os, "rename", rename)
        Parts(tmp_path / "out.parts", 10, 4).begin({"model": "of the other"})
        rename(*paths)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(UserError, match="model was of the other, now mine"):
        parts.begin({"model": "mine"})
    assert parts.plan() == {"model": "of the other", "size": 4}
    assert os.listdir(tmp_path) == ["out.parts"]


def test_parts_of_nobody_knows_what_are_not_taken_over(parts):
    parts.write(0, part(4))
    (parts.folder / "plan.json").unlink()
    with pytest.raises(UserError, match=r"plan\.json cannot be read .*delete"):
        Parts(parts.folder, 10, 4).begin({"model": "n"})
    assert parts.is_of({"model": "n"}), "what a removal leaves that was killed"


def test_whose_parts_they_are(parts):
    assert parts.is_of({"model": "m"})
    assert not parts.is_of({"model": "n"})
    (parts.folder / "plan.json").write_text("{")
    assert not parts.is_of({"model": "m"})
    parts.remove()
    assert not parts.is_of({"model": "m"})


def test_what_is_left_of_a_removal_says_what_it_was(parts, monkeypatch):
    parts.write(0, part(4))
    parts.write(1, part(4))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed there
    parts.remove()
    assert os.listdir(parts.folder) == ["plan.json"]


def test_a_plan_is_kept_and_another_refused(parts):
    assert parts.plan() == {"model": "m", "size": 4}
    Parts(parts.folder, 10, 4).begin({"model": "m"})
    with pytest.raises(UserError, match=r"model was m, now n"):
        Parts(parts.folder, 10, 4).begin({"model": "n"})
    with pytest.raises(UserError, match=r"size was 4, now 5"):
        Parts(parts.folder, 10, 5).begin({"model": "m"})
    with pytest.raises(UserError, match=r"extra was None, now 1"):
        Parts(parts.folder, 10, 4).begin({"model": "m", "extra": 1})
    assert parts.plan() == {"model": "m", "size": 4}


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_plan(parts, content):
    (parts.folder / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json .*delete"):
        parts.begin({"model": "m"})


def test_what_cannot_be_written_or_read_says_so(parts, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    parts.write(1, part(4))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            parts.write(0, part(4))
    assert sorted(os.listdir(parts.folder)) == ["000001.npz", "plan.json"], (
        "nothing half-written is left"
    )
    parts.remove()
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        parts.write(0, part(4))
    with pytest.raises(UserError, match="cannot be read"):
        parts.done()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        Parts(tmp_path / "file" / "parts", 10, 4).begin({})
