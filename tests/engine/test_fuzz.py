"""Files and options of any content: they are read or refused in one line, at once, and nothing in them is run."""

import contextlib
import gc
import io
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
import yaml
from fastreid.config import get_cfg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastreid_star.engine.checkpoint import Checkpointer, read_checkpoint
from fastreid_star.engine.checks import problems
from fastreid_star.engine.checks_config import value_of
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.job import Job
from fastreid_star.errors import UserError
from fastreid_star.inference import Gallery
from fastreid_star.methods.convert import convert, read_published

from .conftest import REPOSITORY, tiny_config

SECONDS, MEGABYTES = 1.0, 500
CONFIGS = {path.name: path.read_bytes() for path in sorted((REPOSITORY / "configs").rglob("*.yml"))}


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


WORDS = ("<<: ", "&a ", "*a", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!python/name:os.system ",
         "!!set ", "!!omap ", "? ", ": ", "- ", "[", "]", "{", "}", "|\n", "~", ".nan", ".inf", "-.inf", "1e999", "0o9",
         "1:60:60", "_BASE_: ", "_BASE_: own.yml\n", "null", "'", '"', "\t", "\0", "\ufeff", "%YAML 9.9\n",
         "---\n", "...\n", "9" * 5000, "MODEL:\n  ", "SOLVER: ", "COMPUTED_X: 1\n", "1: 2\n", "SEED: ")  # fmt: skip


@st.composite
def patched(draw):
    """The text of a config with pieces of YAML put into it."""
    text = draw(st.sampled_from(list(CONFIGS.values()))).decode()
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.sampled_from(WORDS)) + text[place:]
    return text.encode()


# --- configs --------------------------------------------------------------------------------------------------------


def test_config_files(fuzz, tmp_path):
    """What is read is a config whose values have their types, and the checks have their say about it."""
    for name, content in CONFIGS.items():
        (tmp_path / name).write_bytes(content)
    own = tmp_path / "sub" / "own.yml"
    own.parent.mkdir()
    strategy = st.one_of(
        damaged(list(CONFIGS.values())),
        patched(),
        st.binary(max_size=400),
        st.text().map(str.encode),
    )

    def read(content):
        own.write_bytes(content)
        with quick_and_refused():
            cfg = load_config(str(own))
            assert type(cfg.SOLVER.BASE_LR) is float
            assert isinstance(cfg.MODEL.META_ARCHITECTURE, str)

    fuzz(strategy, read)


def _keys(node, prefix=""):
    for key, value in node.items():
        yield prefix + key
        if hasattr(value, "items"):
            yield from _keys(value, f"{prefix}{key}.")


KEYS = list(_keys(get_cfg()))
VALUES = ("None", "()", "[]", "(" * 300, "-" * 3000 + "1", "[" * 5000, "9" * 5000, "1e999", "nan", "inf", "{1: 2}",
          "{'A': 1}", "'a' * 10", "__import__('os').system('false')", "\0", "b'x'", "{1, 2}", "1j", "True", "...",
          "lambda: 0", "'", "[[]]", "[1, 'a', None, [2]]", "-1", "0", "1.5", "2147483648", "\ud800")  # fmt: skip


def test_options(fuzz):
    keys = st.one_of(
        st.sampled_from(KEYS),
        st.text(max_size=20),
        st.sampled_from(KEYS).map(lambda key: f"{key}.X"),
    )
    values = st.one_of(
        st.sampled_from(VALUES), st.text(max_size=30), st.integers().map(str), st.floats().map(str)
    )
    strategy = st.lists(st.one_of(keys, values), max_size=6) | st.lists(
        st.tuples(keys, values), max_size=3
    ).map(lambda pairs: [part for pair in pairs for part in pair])

    def read(options):
        with quick_and_refused():
            load_config("", options)

    fuzz(strategy, read)


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
    types = {key: type(value_of(defaults, key)) for key in KEYS if key.split(".")[0] in SECTIONS}
    for key in [key for key in types if "SYNTHETIC" in key or types[key] not in OF_A_TYPE]:
        del types[key]
    del types["DATASETS.ROOT"], types["DATASETS.MIN_FRAMES"]
    pair = st.sampled_from(sorted(types)).flatmap(
        lambda k: st.tuples(st.just(k), st.sampled_from(OF_A_TYPE[types[k]]))
    )
    told = []

    def look(pairs):
        with quick_and_refused():
            found = problems(
                Job(tiny_config(tiny_root, tmp_path, *(part for pair in pairs for part in pair)))
            )
            assert not [problem for problem in found if "\n" in problem.text or not problem.text]
            told.append(any(problem.fatal for problem in found))

    fuzz(st.lists(pair, min_size=1, max_size=3), look, 80)
    assert len(told) > 40
    assert 0.1 < sum(told) / len(told) < 0.9


NESTED = "[" * 20_000
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
DICT_LAUGHS = "A0: &a0 {X: 1}\n" + "".join(
    f"A{n}: &a{n} {{{', '.join(f'K{k}: *a{n - 1}' for k in range(9))}}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "its aliases stand for more than 100,000 values"),
        (DICT_LAUGHS, "its aliases stand for more than 100,000 values"),
        (LAUGHS.replace("a11:", "SOLVER:\n  STEPS:"), "its aliases stand for"),
        ("A: &a [*a]\n", "nested too deeply, or in themselves"),
        ("A: &a\n  B: *a\n", "nested too deeply, or in themselves"),
        (NESTED, "nested too deeply"),
        ("A: " + NESTED, "nested too deeply"),
        ("{A: " * 20_000, "nested too deeply"),
        ("".join(" " * n + f"K{n}:\n" for n in range(200)), "nested too deeply"),
        ("_BASE_: own.yml\n", "is in the end based on itself"),
        ("_BASE_: other.yml\n", "is in the end based on itself"),
        ("_BASE_: [1]\n", "sections of keys and values"),
        ("_BASE_: 'a\\0b'\n", "does not exist"),
        (f"_BASE_: '{'9' * 5000}'\n", "does not exist"),
        ("#" * (1 << 21), "larger than 1 MiB"),
        ("SEED: 99999999999999\n", "SEED is 99999999999999"),
        ("SOLVER:\n  BASE_LR:\n", "BASE_LR has no value"),
        ("OUTPUT_DIR: null\n", "OUTPUT_DIR has no value"),
        ("!!int ''", "cannot be read"),
        ("A: !!bool maybe\n", "cannot be read"),
        ("SOLVER: {BASE_LR: 2001-01-01}\n", "SOLVER.BASE_LR|not a valid type|with value"),
    ],
)
def test_bombs_and_traps_in_configs(tmp_path, text, message):
    (tmp_path / "own.yml").write_text(text)
    (tmp_path / "other.yml").write_text("_BASE_: own.yml\n")
    with quick_and_refused(), pytest.raises(UserError, match=message) as caught:
        load_config(str(tmp_path / "own.yml"))
    with quick_and_refused():
        raise caught.value


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch RAN']",
        "!!python/object/new:os.system [touch RAN]",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
    ],
)
def test_no_code_in_a_config_is_run(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yml").write_text(f"OUTPUT_DIR: {tag}\n")
    with pytest.raises(UserError, match="could not determine a constructor"):
        load_config("own.yml")
    with pytest.raises(UserError):
        load_config(
            "",
            [
                "OUTPUT_DIR",
                "__import__('os').system('touch RAN')",
                "SEED",
                "__import__('os').system('touch RAN')",
            ],
        )
    assert os.listdir(tmp_path) == ["own.yml"]


def test_configs_that_are_read_today_are_read(tmp_path):
    """Aliases and merge keys as people use them."""
    text = "SOLVER: &s\n  BASE_LR: 0.5\nINPUT:\n  SIZE_TRAIN: &size [64, 32]\n  SIZE_TEST: *size\n"
    (tmp_path / "own.yml").write_text(text)
    cfg = load_config(str(tmp_path / "own.yml"))
    assert (cfg.SOLVER.BASE_LR, cfg.INPUT.SIZE_TEST) == (0.5, [64, 32])
    for path in (REPOSITORY / "configs").rglob("*.yml"):
        assert yaml.safe_load(path.read_text()) is not None
        load_config(str(path))


# --- checkpoints ----------------------------------------------------------------------------------------------------


def checkpoints(folder):
    """The bytes of small checkpoints: with a hash and without, and in torch's older format."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Checkpointer(model, str(folder), optimizer=optimizer).save("sealed", epoch=3)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    published = {
        "net": {"base_resnet.x": torch.ones(2), "global_bottleneck.weight": torch.ones(2)},
        "mAP": 0.5,
    }
    files = [(folder / "sealed.pth").read_bytes()]
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


def test_a_flipped_bit_of_a_checkpoint_with_a_hash_changes_nothing_that_is_read(fuzz, tmp_path):
    """It is refused, but for bits of the hash's own mark: without one there is nothing to be checked."""
    content = checkpoints(tmp_path)[0]
    path = tmp_path / "x.pth"
    whole = read_checkpoint(str(tmp_path / "sealed.pth"))
    kept = []

    def read(place):
        spoilt = bytearray(content)
        spoilt[place // 8] ^= 1 << place % 8
        path.write_bytes(spoilt)
        try:
            found = read_checkpoint(str(path))
        except UserError:
            return
        kept.append(place)
        assert found["epoch"] == whole["epoch"]
        assert all(
            torch.equal(found["model"][name], value) for name, value in whole["model"].items()
        )

    fuzz(st.integers(0, 8 * len(content) - 1), read)
    assert all(place // 8 >= len(content) - 100 for place in kept)


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


# --- galleries ---


def test_galleries(fuzz, tmp_path):
    made_with = {"weights_sha256": "0", "config": {"MODEL.X": [1, 2]}}
    gallery = Gallery(made_with)
    gallery.add(np.eye(2, 8), ["a", "b"], ["infrared", "visible"], [{}, {"pid": 3}])
    gallery.save(tmp_path / "g")
    path = tmp_path / "g" / "gallery.npz"
    content = path.read_bytes()
    far = content.replace(b"(2, 8)          ", b"(2000000000, 8) ")
    originals = [content, far, pickle.dumps([1, 2, 3])]

    def read(spoilt):
        path.write_bytes(spoilt)
        with quick_and_refused():
            Gallery.load(tmp_path / "g", made_with)

    fuzz(damaged(originals) | st.sampled_from(originals) | st.binary(max_size=100), read)
