import errno
import os

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
        assert [row for number in range(len(parts)) for row in parts.rows(number)] == list(range(frames))


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


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "shape", "text", "pickle"])
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
    elif damage == "text":
        content[:] = b"no zip"
    file.write_bytes(content)
    if damage == "shape":
        parts.write(0, part(3))
    if damage == "pickle":
        joints = part(4)
        np.savez(file, joints=joints.joints, sizes=joints.sizes, problems=np.array([{}] * 4, object))
    assert parts.read(0) is None
    assert not file.exists()
    assert parts.done() == set()


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
    assert sorted(os.listdir(parts.folder)) == ["000001.npz", "plan.json"], "nothing half-written is left"
    parts.remove()
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        parts.write(0, part(4))
    with pytest.raises(UserError, match="cannot be read"):
        parts.done()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        Parts(tmp_path / "file" / "parts", 10, 4).begin({})
