import os

import pytest

from fastreid_star.benchmark import process
from fastreid_star.errors import UserError

MB = 10**6


def test_work_in_a_process_of_its_own_and_its_memory():
    held = process.resident_memory()
    outcome = process.in_own_process(bytearray, 60 * MB)
    assert len(outcome.result) == 60 * MB
    assert 59 * MB < outcome.growth < 160 * MB
    assert outcome.seconds > 0
    del outcome
    assert process.resident_memory() < held + 150 * MB, "it is not this process that has grown"


def test_memory_of_this_process():
    before = process.own_memory(os.getpid())
    block = bytearray(b"x" * (50 * MB))
    assert 45 * MB < process.own_memory(os.getpid()) - before < 200 * MB
    assert process.peak_resident_memory() >= process.resident_memory() > len(block)


def test_no_such_process():
    with pytest.raises(UserError, match="memory is read from /proc/0/status"):
        process.own_memory(0)


class Counter:
    """Counts in the process that has built it, and ends with an error at 3."""

    def __init__(self, path):
        self.path, self.times = path, 0

    def __call__(self):
        self.times += 1
        if self.times == 3:
            raise ArithmeticError("enough")
        self.path.write_text(f"{os.getpid()} {self.times}")


def refuse():
    raise UserError("this cannot be built")


def test_work_over_and_over_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "count"
    work = process.Apart(Counter, path)
    found = []
    for _ in range(2):
        work()
        found.append(path.read_text().split())
    with pytest.raises(ArithmeticError, match="enough"):
        work()
    work.close()
    assert [times for _, times in found] == ["1", "2"]
    assert found[0][0] == found[1][0] != str(os.getpid())
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[0][0]), 0)


def test_work_that_cannot_be_built():
    with pytest.raises(UserError, match="cannot be built"):
        process.Apart(refuse)
