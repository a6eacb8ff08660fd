import os
import subprocess
import sys
import time
from pathlib import Path

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


def identify(refused):
    if refused:
        raise UserError("this cannot be done")
    return os.getpid()


def test_work_apart():
    first, second = process.apart(identify, False), process.apart(identify, False)
    assert len({first, second, os.getpid()}) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    with pytest.raises(UserError, match="cannot be done"):
        process.apart(identify, True)


MEASURES = """
import os, sys, time
from fastreid_star.benchmark import process

def measure():
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process.apart(measure)
"""


def test_work_apart_ends_with_the_process_that_is_killed(tmp_path):
    program = tmp_path / "measures.py"
    program.write_text(MEASURES)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


def alive(pid):
    """A process that nobody has waited for is there, and has ended."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
