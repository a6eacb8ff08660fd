"""Readers of files that others have made, fed with damaged ones: a UserError of one line, or sound data, and soon.

An input is a valid file with a few changes, or any bytes. ``--long`` reads 70,000 of them; ``-s`` shows the worst.
"""

import json
import multiprocessing
import random
import re
import resource
import time
from pathlib import PurePosixPath

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from fastreid_star.data.datasets import HITSZVCM, BUPTCampus
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.data.skeletons_hdf5 import write_hdf5_store
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

SECONDS, BYTES = 1.0, 500 << 20

NASTY = [
    *(
        b"",
        b" ",
        b"\t",
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"\x1c",
        b"\x7f",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
    *(
        b"-1",
        b"0",
        b"00",
        b"+3",
        b"1_0",
        b"1e3",
        b"NaN",
        b"null",
        b"true",
        b"2147483648",
        b"9223372036854775808",
    ),
    *(
        b"9" * 5000,
        "٣".encode(),
        "²".encode(),
        "\u2028".encode(),
        "\u00a0".encode(),
        b"\xed\xa0\x80",
    ),
    *(
        b"..",
        b"../",
        b"/",
        b"/etc/passwd",
        b"C:\\",
        b"..\\",
        b"./",
        b"%s",
        b"{0}",
        b"\\u0000",
        b"\\ud800",
    ),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"x" * 100_000,
        b"(" * 300,
    ),
]

CHANGES = ["byte", "cut", "drop", "repeat", "insert", "token", "token", "swap", "line", "all"]


def damaged(data, rng):
    """A file with some changes: of a byte, of a stretch, of a word or number, of lines, or of all of it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind, nasty, a, b = (
            rng.choice(CHANGES),
            rng.choice(NASTY),
            rng.randrange(1 << 20),
            rng.randrange(1 << 20),
        )
        size = max(1, len(data))
        start, length = a % size, b % 64
        if kind == "byte":
            data = data[:start] + bytes([b % 256]) + data[start + 1 :]
        elif kind == "cut":
            data = data[:start]
        elif kind == "drop":
            data = data[:start] + data[start + length :]
        elif kind == "repeat":
            data = data[: start + length] + data[start:]
        elif kind == "insert":
            data = data[:start] + nasty + data[start:]
        elif kind in ("token", "swap"):
            found = [match.span() for match in re.finditer(rb"\w+", data)] or [(0, 0)]
            (first, last), (other, end) = found[a % len(found)], found[b % len(found)]
            data = data[:first] + (nasty if kind == "token" else data[other:end]) + data[last:]
        elif kind == "line":
            lines = data.split(b"\n")
            lines.insert(
                a % len(lines), lines.pop(b % len(lines)) if b % 2 else lines[b % len(lines)]
            )
            data = b"\n".join(lines)
        else:
            data = rng.randbytes(b % 41)
    return data


def put(file, data):
    """As a new file: what a reader has mapped into memory stays, and a disk need not flush what was there."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


class Fuzz:
    """Runs a reader on many inputs, each within the limits, and remembers the worst."""

    def __init__(self, count):
        self.count, self.refused, self.taken, self.slowest = count, 0, 0, 0.0
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __call__(self, read):
        """Call ``read(rng)`` so often; of a failure hypothesis tells the rng."""
        # hypothesis remembers what it tried: in one go of tens of thousands that would be most of the memory
        for start in range(0, self.count, 1000):

            @seed(start)
            @settings(
                max_examples=min(1000, self.count - start),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(st.randoms(use_true_random=True))
            def run(rng):
                self.once(lambda: read(rng))

            run()
        assert self.refused > self.count / 20
        assert self.taken, "not everything is refused"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
        print(
            f"\n{self.count} inputs: {self.refused} refused, {self.taken} taken, slowest {self.slowest * 1e3:.0f} ms, "
            f"the process grew by {grown >> 10} MB"
        )

    def once(self, read):
        begun = time.process_time()
        try:
            read()
        except UserError as error:
            self.refused += 1
            message = str(error)
        else:
            self.taken += 1
            message = "one line"
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
        seconds = time.process_time() - begun
        self.slowest = max(self.slowest, seconds)
        assert seconds < SECONDS


def limit_memory():
    """From here on the process may take so much more than it has: what is beyond ends in a MemoryError."""
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + BYTES
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    return limits


@pytest.fixture(autouse=True)
def _little_memory():
    limits = limit_memory()
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def check_dataset(data):
    """What any reader of lists promises of what it lets through."""
    everything = [*data.train, *data.query, *data.gallery]
    assert data.train
    assert data.query
    assert data.gallery
    for tracklet in everything:
        assert len(tracklet) >= 1
        assert 0 <= tracklet.pid < 10**9
        assert 0 <= tracklet.camid < 10**9
        assert tracklet.modality in Modality
        for frame in tracklet.frames:
            path = PurePosixPath(frame)
            assert not path.is_absolute()
            assert ".." not in path.parts
            assert not {*"\\\0\n:"} & {*frame}


def test_info_files_of_hitsz_vcm(make_vcm, amount):
    root = make_vcm(images=False, lengths=(3, 2))
    files = {file: file.read_bytes() for file in sorted((root / "HITSZ-VCM" / "info").iterdir())}

    def read(rng):
        file = rng.choice(list(files))
        put(file, damaged(files[file], rng))
        try:
            check_dataset(HITSZVCM(root, min_frames=1, check_frames=False))
        finally:
            put(file, files[file])

    Fuzz(amount(150, 20_000))(read)


def test_lists_of_bupt_campus(tmp_path, amount):
    folder = tmp_path / "BUPTCampus"
    folder.mkdir()
    paths, lists = {}, {"train.txt": [], "query.txt": [], "gallery.txt": []}
    for pid in (1, 2, 3):
        for modality in ("RGB", "IR"):
            place = f"{pid}/{modality}/LS3"
            paths.setdefault(str(pid), {})[modality] = {
                "LS3": {"1": [f"{place}/{pid}_{n}.jpg" for n in range(3)]}
            }
            if pid == 1:
                lists["train.txt"] = ["1 RGB/IR LS3 1"]
            else:
                lists["query.txt" if pid == 2 else "gallery.txt"].append(f"{pid} {modality} LS3 1")
    (folder / "data_paths.json").write_text(json.dumps(paths))
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    files = {file: file.read_bytes() for file in sorted(folder.iterdir())}

    def read(rng):
        file = rng.choice(list(files))
        put(file, damaged(files[file], rng))
        try:
            check_dataset(BUPTCampus(tmp_path, check_frames=False))
        finally:
            put(file, files[file])

    Fuzz(amount(150, 20_000))(read)


# --- skeleton stores ---------------------------------------------------------------------------------------------

KEYS = [f"000{pid}/ir/D4/{frame}" for pid in (1, 2) for frame in (1, 2, 3)]
ASKED = [*KEYS, "0009/ir/D1/1", "0001/ir", "", "..", "/", "a\0b", "0001/ir/D4/1/2", "\udcff"]


@pytest.fixture
def joints():
    values = np.random.default_rng(0).normal(0, 50, (len(KEYS), 17, 3)).astype(np.float32)
    values[3, 2, 1] = np.nan
    return values


def read_store(path):
    """All that a store is asked for, and what it promises. Not `meta` of an HDF5 file, see below."""
    store = SkeletonStore.open(path)
    joints, present = store.read(ASKED)
    assert joints.shape == (len(ASKED), 17, 3)
    assert joints.dtype == np.float32
    assert np.isfinite(joints).all()
    assert not joints[~present].any()
    keys = store.keys()
    assert len(keys) == len(store)
    for key in keys:
        assert key in store
        assert not key.startswith("/")
        assert ".." not in key.split("/")
        assert "\0" not in key
    assert store.raw(keys).shape == (len(keys), 17, 3)
    store.close()


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required")
def test_flat_store(tmp_path, joints, amount):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints, {"model": "none"})
    files = {file: file.read_bytes() for file in sorted(folder.iterdir())}

    def read(rng):
        file = rng.choice(list(files))
        data = files[file]
        # of the array the header is what can be wrong: any other bytes are numbers
        head = min(len(data), rng.choice((128, len(data))))
        put(file, damaged(data[:head], rng) + data[head:])
        try:
            read_store(folder)
            assert isinstance(SkeletonStore.open(folder).meta, dict)
        finally:
            put(file, data)

    Fuzz(amount(200, 15_000))(read)


def damaged_hdf5(data, rng):
    """Changes where the file says something, which is in one byte of five."""
    data = bytearray(data)
    told = [place for place, byte in enumerate(data) if byte]
    if rng.random() < 0.05:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.choice(told) if rng.random() < 0.8 else rng.randrange(len(data))
        size = rng.choice((1, 1, 2, 4, 8, 32))
        source = rng.choice(told)
        new = rng.choice(
            (b"\xff" * size, bytes(size), rng.randbytes(size), bytes(data[source : source + size]))
        )
        data[place : place + size] = new[: len(data) - place]
    return bytes(data)


def read_damaged_hdf5(connection, folder, sources, first, last):
    """Tell of each input before it is read, at the end how it went."""
    limit_memory()
    sources = [source.read_bytes() for source in sources]
    fuzz, path = Fuzz(last - first), folder / "damaged.h5"
    try:
        for number in range(first, last):
            connection.send(number)
            put(path, damaged_hdf5(sources[number % len(sources)], random.Random(number)))
            fuzz.once(lambda: read_store(path))
        connection.send((fuzz.refused, fuzz.taken, fuzz.slowest))
    except BaseException as error:
        connection.send(error)


def test_hdf5_store(tmp_path, joints, amount):
    """In a process of its own, which HDF5's library could end.

    It does not, nor does it take long, as long as no text attribute of a damaged file is read: there it may loop for
    ever. So `meta`, which converting a file asks for and training does not, is left out.
    """
    write_hdf5_store(tmp_path / "ours.h5", KEYS, joints, {"model": "none"})
    with h5py.File(tmp_path / "authors.h5", "w") as file:
        for key, values in zip(KEYS, joints, strict=True):
            file[key] = values.astype(np.float64)
    with h5py.File(tmp_path / "blocks.h5", "w") as file:
        for key, values in zip(KEYS, joints, strict=True):
            file.create_dataset(key, data=values, chunks=(17, 3), compression="gzip", shuffle=True)
    sources = [tmp_path / name for name in ("ours.h5", "authors.h5", "blocks.h5")]
    for source in sources:
        read_store(source)
    context, count = multiprocessing.get_context("fork"), amount(150, 15_000)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=read_damaged_hdf5, args=(theirs, tmp_path, sources, 0, count))
    child.start()
    theirs.close()
    number, told = -1, -1
    try:
        while isinstance(told, int):
            number = told
            assert ours.poll(60), f"input {number} takes for ever"
            told = ours.recv()
    except EOFError:
        child.join()
        pytest.fail(f"input {number} ended the process: {child.exitcode}")
    finally:
        child.kill()
        child.join()
    if isinstance(told, BaseException):
        raise AssertionError(f"input {number}") from told
    refused, taken, slowest = told
    print(f"\n{count} inputs: {refused} refused, {taken} taken, slowest {slowest * 1e3:.0f} ms")
    assert refused > count / 20
    assert taken > count / 20


def test_the_limits_bind():
    """A reader that takes much memory or time would be found."""
    with pytest.raises(MemoryError):
        bytearray(2 * BYTES)
    fuzz, begun = Fuzz(1), time.process_time()
    with pytest.raises(AssertionError):
        fuzz.once(
            lambda: [None for _ in iter(lambda: time.process_time() - begun < 1.1 * SECONDS, False)]
        )
    with pytest.raises(UnicodeDecodeError):
        fuzz.once(b"\xff".decode)
