"""Files and options of any content: they are read or refused in one line, at once, and nothing in them is run."""

import contextlib
import gc
import io
import json
import os
import pickle
import resource
import signal
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from fastreid.config import get_cfg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastreid_star.engine.checkpoint import Checkpointer, read_checkpoint
from fastreid_star.engine.checks import check
from fastreid_star.engine.convert import convert, read_published
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.fingerprint import Fingerprint, flatten
from fastreid_star.engine.gallery_files import read_features, read_index, write_gallery
from fastreid_star.errors import UserError

from .conftest import tiny_config

SECONDS, MEGABYTES = 1.0, 500


@contextlib.contextmanager
def quick_and_refused():
    """Within: nothing but a UserError of one line is raised, in the time and memory that are allowed."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, 10 * SECONDS)  # of a hang there would be no report
    gc.disable()  # what thousands of inputs before left behind is not this one's
    start, message = time.process_time(), ""
    try:
        yield
    except UserError as error:
        message = str(error)
    finally:
        took = time.process_time() - start
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        gc.enable()
    SLOWEST[0] = max(SLOWEST[0], took)
    assert took < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < MEGABYTES * 1024
    assert "\n" not in message
    assert len(message) < 2000


SLOWEST = [0.0]


@pytest.fixture(autouse=True)
def _hangs_end():
    def ended(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGVTALRM, ended)
    SLOWEST[0] = 0.0
    yield
    signal.signal(signal.SIGVTALRM, before)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"slowest input {SLOWEST[0]:.2f} s, process at most {most:.0f} MiB")


@pytest.fixture
def fuzz(amount):
    """``fuzz(strategy, function)``: try 200 inputs, 15 000 with --long, always the same ones."""

    def run(strategy, function, few=200):
        options = settings(
            max_examples=amount(few, 75 * few),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )

        @options
        @given(strategy)
        def tried(value):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(value)

        tried()

    return run


@st.composite
def damaged(draw, originals):
    """The bytes of one of some files with up to eight changes: flips, cuts, copies, insertions, a missing end."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 64))
        how = draw(st.sampled_from(("flip", "byte", "cut", "copy", "insert", "end", "zeros")))
        if how == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and content:
            content[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[place : place + length]
        elif how == "copy":
            content[place:place] = content[place : place + length]
        elif how == "insert":
            content[place:place] = draw(st.binary(max_size=64))
        elif how == "end":
            del content[place:]
        else:
            content[place : place + length] = bytes(length)
    return bytes(content)


# --- configs --------------------------------------------------------------------------------------------------------


def _keys(node, prefix=""):
    for key, value in node.items():
        yield prefix + key
        if hasattr(value, "items"):
            yield from _keys(value, f"{prefix}{key}.")


KEYS = list(_keys(get_cfg()))
OF_A_TYPE = {
    int: ("0", "-1", "1", "3", "100", "10000000000"),
    float: ("0.0", "-0.5", "1.5", "1e999", "1e-30"),
    bool: ("True", "False"),
    str: ("''", "a", "'a b'", "SyntheticVCM"),
    list: (
        "[]",
        "[0]",
        "[1, 2]",
        "[2, 1]",
        "['a', 'b']",
        "[[1], 2]",
        "[None]",
        "[-1, -1]",
        "[0.5, 0.1]",
        "[32, 16]",
    ),
}
OF_A_TYPE[tuple] = (
    *OF_A_TYPE[list],
    "('SyntheticVCM',)",
    "('CrossEntropyLoss',)",
    "('SyntheticVCM', 'Market1501')",
)
SECTIONS = ("SOLVER", "INPUT", "TEST", "DATALOADER", "DATASETS", "MODEL")


def test_checks_of_any_config_end_in_words(fuzz, tiny_root, tmp_path):
    """Whatever a value of its type is: the pass before training lists it, or passes it."""
    defaults = load_config()
    values = flatten(defaults)
    types = {key: type(v) for key, v in values.items() if key.split(".")[0] in SECTIONS}
    for key in [key for key in types if "SYNTHETIC" in key or types[key] not in OF_A_TYPE]:
        del types[key]
    del types["DATASETS.ROOT"], types["DATASETS.MIN_FRAMES"]
    pair = st.sampled_from(sorted(types)).flatmap(
        lambda k: st.tuples(st.just(k), st.sampled_from(OF_A_TYPE[types[k]]))
    )
    told = []

    def look(pairs):
        with quick_and_refused():
            found = check(
                tiny_config(tiny_root, tmp_path, *(part for pair in pairs for part in pair))
            )
            assert not [problem for problem in found if "\n" in problem.text or not problem.text]
            told.append(any(problem.fatal for problem in found))

    fuzz(st.lists(pair, min_size=1, max_size=3), look, 80)
    assert len(told) > 40
    assert 0.1 < sum(told) / len(told) < 0.9


# --- checkpoints ----------------------------------------------------------------------------------------------------


def checkpoints(folder):
    """The bytes of small checkpoints: our own, others', and in torch's older format."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Checkpointer(model, str(folder), optimizer=optimizer).save("own", epoch=3)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    published = {
        "net": {"base_resnet.x": torch.ones(2), "global_bottleneck.weight": torch.ones(2)},
        "mAP": 0.5,
    }
    files = [(folder / "own.pth").read_bytes()]
    for what, new in ((content, True), (content, False), (published, True), (published, False)):
        file = io.BytesIO()
        torch.save(what, file, _use_new_zipfile_serialization=new)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize(
    "reader", [read_checkpoint, lambda path: convert(read_published(path))], ids=["ours", "theirs"]
)
def test_checkpoints(fuzz, tmp_path, reader):
    path = tmp_path / "x.pth"
    strategy = damaged(checkpoints(tmp_path)) | st.binary(max_size=300)

    def read(content):
        path.write_bytes(content)
        with quick_and_refused():
            reader(str(path))

    fuzz(strategy, read)


def test_a_flipped_bit_of_a_checkpoint_changes_nothing_that_is_read(fuzz, tmp_path):
    """It is refused, or it was in the padding."""
    content = checkpoints(tmp_path)[0]
    path = tmp_path / "x.pth"
    whole = read_checkpoint(str(tmp_path / "own.pth"))

    def read(place):
        spoilt = bytearray(content)
        spoilt[place // 8] ^= 1 << place % 8
        path.write_bytes(spoilt)
        try:
            found = read_checkpoint(str(path))
        except UserError:
            return
        assert found["epoch"] == whole["epoch"]
        assert all(
            torch.equal(found["model"][name], value) for name, value in whole["model"].items()
        )

    fuzz(st.integers(0, 8 * len(content) - 1), read)


class Runs:
    """Unpickled, it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "in the optimizer"])
def test_no_code_in_a_checkpoint_is_run(tmp_path, kind):
    mark, path = tmp_path / "RAN", tmp_path / "x.pth"
    trap = Runs(f"touch {mark}")
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps({"model": trap}))
    elif kind == "in the optimizer":
        torch.save({"model": {}, "net": {}, "optimizer": trap}, path)
    else:
        torch.save({"model": trap, "net": trap}, path, _use_new_zipfile_serialization=kind == "zip")
    for reader in (read_checkpoint, read_published):
        with quick_and_refused(), pytest.raises(UserError, match="cannot be read"):
            reader(str(path))
    assert not mark.exists()
    with contextlib.suppress(Exception):  # it is a trap indeed
        torch.load(path, weights_only=False)
    assert mark.exists() or kind == "bare pickle"


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """torch compresses nothing; ten kilobytes that are could unpack to ten gigabytes."""
    path, file = tmp_path / "x.pth", io.BytesIO()
    torch.save({"model": {"w": torch.zeros(4)}, "net": {}}, file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    for reader in (read_checkpoint, read_published):
        with pytest.raises(UserError, match="compressed"):
            reader(str(path))


# --- galleries ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(tmp_path):
    """A small gallery: its folder, and its two files."""
    entries = {"names": ["a", "b"], "modality": [1, 2], "metadata": [{}, {"pid": 3}],
               "fingerprint": {"weights_sha256": "0", "config": {"MODEL.X": [1, 2]}}}  # fmt: skip
    folder = tmp_path / "gallery"
    write_gallery(folder, np.eye(2, 8, dtype=np.float32), entries)
    (features,) = folder.glob("*.npy")
    return folder, folder / "gallery.json", features


def test_gallery_indexes(fuzz, gallery):
    folder, index, _ = gallery
    nested = b'{"version": 1, "names": ' + b"[" * 100_000
    originals = [
        index.read_bytes(),
        json.dumps(json.loads(index.read_text()), indent=1).encode(),
        nested,
    ]

    def read(content):
        index.write_bytes(content)
        with quick_and_refused():
            found = read_index(folder)
            with contextlib.suppress(ValueError):  # which the gallery tells of
                Fingerprint.from_dict(found["fingerprint"])
            read_features(folder, found)

    fuzz(damaged(originals) | st.just(nested) | st.binary(max_size=100), read)


def test_gallery_features(fuzz, gallery):
    folder, _, features = gallery
    content = read_index(folder)
    zipped = io.BytesIO()
    np.savez(zipped, features=np.eye(2))
    header = features.read_bytes()
    far = header.replace(b"(2, 8)", b"(2000000000000, 8)").replace(
        b"(2000000000000, 8)           ", b"(2000000000000, 8)"
    )
    originals = [header, zipped.getvalue(), far, pickle.dumps([1, 2, 3])]

    def read(spoilt):
        features.write_bytes(spoilt)
        with quick_and_refused():
            assert read_features(folder, content).shape == (2, 8)

    fuzz(damaged(originals) | st.sampled_from(originals), read)
