"""Arguments, configs by name, packages of the user, and errors in one line."""

import io
import os
import sys

import pytest
import torch
from fastreid.config import get_cfg

from fastreid_star.arguments import import_packages
from fastreid_star.engine.configs import config_path
from fastreid_star.engine.defaults import argument_parser, load_config, run_tool
from fastreid_star.engine.failures import building
from fastreid_star.errors import UserError

PACKAGE = """
from fastreid.config import CfgNode, defaults
defaults._C.{name} = CfgNode()
defaults._C.{name}.WIDTH = 3
"""


def assert_one_line(caught):
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "--config-file a.yml --num-gpus 2 --resume SOLVER.BASE_LR 0.1 SEED -1",
        "SOLVER.BASE_LR 0.1 SEED -1 --resume --config-file a.yml --num-devices 2",
        "SOLVER.BASE_LR=0.1 --num-devices=2 --resume SEED=-1 --config-file a.yml",
        "--resume SOLVER.BASE_LR 0.1 --num-dev 2 --config-file=a.yml SEED -1",
    ],
)
def test_flags_and_options_in_any_order(line):
    args = argument_parser("x").parse_args(line.split())
    assert (args.config_file, args.num_devices, args.resume) == ("a.yml", 2, True)
    assert args.opts == ["SOLVER.BASE_LR", "0.1", "SEED", "-1"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["SOLVER.MAX_EPOCH"], "no value"),
        (["SOLVER.MAX_EPOCH", "--resume"], "no value"),
        (["--resume", "runs/a"], "OUTPUT_DIR runs/a"),
        (["solver.base_lr", "1"], "SOLVER.BASE_LR"),
        (["SOLVER.STEPS", "[40,", "70]"], "quote"),
    ],
)
def test_words_that_are_neither_flags_nor_options(words, hint):
    with pytest.raises(UserError) as caught:
        argument_parser("x").parse_args(["--config-file", "a.yml", *words])
    assert hint in str(caught.value)
    assert_one_line(caught)


# --- configs -------------------------------------------------------------------------------------


def test_file_and_options(tmp_path):
    (tmp_path / "base.yml").write_text("SOLVER:\n  BASE_LR: 0.5\n  MAX_EPOCH: 7\n")
    (tmp_path / "own.yml").write_text("_BASE_: base.yml\nSOLVER:\n  MAX_EPOCH: 9\nSEED: 3\n")
    options = ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.GAMMA", "1", "DATASETS.NAMES", "A,B"]
    options += ["OUTPUT_DIR", "'1'"]
    cfg = load_config(str(tmp_path / "own.yml"), options)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.IMS_PER_BATCH) == (0.5, 9, 8)
    assert (cfg.SEED, cfg.DATASETS.NAMES, cfg.OUTPUT_DIR) == (3, ("A", "B"), "1")
    assert type(cfg.SOLVER.GAMMA) is float
    assert cfg.is_frozen()


def test_a_config_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = config_path("Synthetic/STAR_small.yml")
    assert os.path.isfile(path)
    assert config_path("configs/Synthetic/STAR_small.yml") == path
    (tmp_path / "Synthetic").mkdir()
    (tmp_path / "Synthetic" / "STAR_small.yml").write_text("SEED: 3\n")
    assert load_config("Synthetic/STAR_small.yml").SEED == 3  # a path comes first
    with pytest.raises(UserError, match=r"STAR_smal\.yml.*Synthetic/STAR_small\.yml"):
        config_path("Synthetic/STAR_smal.yml")


def test_a_negative_seed_is_replaced_by_a_new_one():
    seeds = {load_config("", ["SEED", "-1"]).SEED for _ in range(4)}
    assert len(seeds) == 4
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SOLVER:\n  BASE_LT: 1.0\n", "SOLVER.BASE_LR"),
        ("SOLVER:\n  MAX_EPOCH: many\n", "MAX_EPOCH"),
        ("SOLVER:\n  MAX_EPOCH: null\n", "no value"),
        ("SOLVER: [\n", "own.yml"),
        ("SOLVER: !!python/name:os.system\n", "own.yml"),
        ("_BASE_: none.yml\n", "none.yml"),
        ("_BASE_: own.yml\n", "_BASE_"),
        ("", "sections"),
        ("- 1\n- 2\n", "sections"),
        ("MODEL: 3\n", "MODEL"),
        ("IMPORTS: 3\n", "IMPORTS"),
        ("\0", "own.yml"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, text, words):
    (tmp_path / "own.yml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(tmp_path / "own.yml"))
    assert words in str(caught.value)
    assert_one_line(caught)


def test_a_tilde_that_no_shell_has_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "a.yml").write_text("DATASETS:\n  ROOT: ~/datasets\nOUTPUT_DIR: ~/logs\n")
    cfg = load_config(str(tmp_path / "a.yml"))
    assert (cfg.DATASETS.ROOT, cfg.OUTPUT_DIR) == ("/home/me/datasets", "/home/me/logs")


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["SOLVER.BASE_LT", "1"], "SOLVER.BASE_LR"),
        (["SEEED", "1"], "SEED"),
        (["MODEL.NOPE.X", "1"], "MODEL.NOPE.X"),
        (["SOLVER.MAX_EPOCH"], "no value"),
        (["SOLVER.MAX_EPOCH", "x"], "MAX_EPOCH"),
        (["SOLVER.MAX_EPOCH", "None"], "no value"),
        (["SOLVER.MAX_EPOCH", "(" * 300], "MAX_EPOCH"),
        (["SEED", "4294967296"], "SEED"),
    ],
)
def test_bad_options_are_one_clear_line(opts, words):
    with pytest.raises(UserError) as caught:
        load_config("", opts)
    assert words in str(caught.value)
    assert_one_line(caught)


# --- packages of the user


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package in the working directory that adds a config key; gone after the test."""
    name = f"user_package_{request.node.name.rpartition('_')[2]}"
    (tmp_path / f"{name}.py").write_text(PACKAGE.format(name=name.upper()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("FASTREID_STAR_IMPORT", "")
    yield name
    sys.modules.pop(name, None)
    from fastreid.config import defaults

    defaults._C.pop(name.upper(), None)


def test_an_imported_package_may_add_keys(package):
    key = f"{package.upper()}.WIDTH"
    args = argument_parser("x").parse_args(["--config-file", "", key, "5", "--import", package])
    cfg = load_config("", args.opts)
    assert cfg[package.upper()].WIDTH == 5
    assert [package] == cfg.IMPORTS
    assert os.environ["FASTREID_STAR_IMPORT"] == package  # for other processes


def test_a_saved_config_imports_its_packages_again(package, tmp_path):
    (tmp_path / "run.yml").write_text(f"IMPORTS: [{package}]\n{package.upper()}: {{WIDTH: 7}}\n")
    cfg = load_config(str(tmp_path / "run.yml"))
    assert cfg[package.upper()].WIDTH == 7
    assert [package] == cfg.IMPORTS


def test_a_package_that_cannot_be_imported_is_one_clear_line(package, tmp_path):
    (tmp_path / f"{package}.py").write_text("import os\nraise KeyError('two\\nlines')")
    for name, says in (
        (package, rf"KeyError: .*{package}\.py, line 2"),
        ("no_such_package", "add"),
    ):
        with pytest.raises(UserError, match=rf"cannot import {name}.*{says}") as caught:
            argument_parser("x").parse_args(["--config-file", "", "--import", name])
        assert_one_line(caught)


def test_a_bug_in_the_users_model_is_a_traceback_and_a_wrong_value_is_one_line(
    package, tmp_path, monkeypatch
):
    (tmp_path / f"{package}.py").write_text(
        "import torch\ndef build():\n    torch.nn.ReLU().gone\n"
    )
    import_packages([package])
    with pytest.raises(AttributeError, match="gone"), building("MODEL"):
        sys.modules[package].build()
    with pytest.raises(UserError, match="MODEL: a value is not supported"), building("MODEL"):
        torch.nn.ReLU().gone  # noqa: B018


# --- the end of a command


def test_a_tool_prints_the_line_and_ends_with_2(capsys, caplog):
    def main():
        raise UserError("the dataset does not exist: set DATASETS.ROOT")

    with caplog.at_level("DEBUG", "fastreid_star"), pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == 2
    (record,) = caplog.records
    assert record.levelname == "DEBUG", "the terminal has the line already"
    assert record.message.startswith("Ended by an error: the dataset does not exist")
    assert capsys.readouterr().err == "error: the dataset does not exist: set DATASETS.ROOT\n"


def test_a_name_that_is_not_text_is_printed(monkeypatch):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    run_tool(lambda: print("run \udcff é"))
    assert written.getvalue() == "run \\udcff é\n".encode()


def test_several_problems_are_numbered_and_each_is_listed_once():
    assert str(UserError.of(["one"])) == "one"
    assert str(UserError.of(["one", "two", "one"])) == "2 problems:\n1. one\n2. two"


def test_every_key_of_the_plugin_is_in_fastreids_defaults():
    cfg = get_cfg()
    assert (cfg.MODEL.DEVICE, cfg.INPUT.CLIP.LENGTH, cfg.DATASETS.MIN_FRAMES) == ("auto", 12, 12)
