"""From a command line to a config: what is wrong is said in one line."""

import io
import sys

import pytest
from fastreid.config import get_cfg

from fastreid_star.engine.defaults import argument_parser, load_config, run_tool
from fastreid_star.errors import UserError


def test_file_and_options(tmp_path):
    (tmp_path / "base.yml").write_text("SOLVER:\n  BASE_LR: 0.5\n  MAX_EPOCH: 7\n")
    (tmp_path / "own.yml").write_text("_BASE_: base.yml\nSOLVER:\n  MAX_EPOCH: 9\nSEED: 3\n")
    cfg = load_config(str(tmp_path / "own.yml"), ["SOLVER.IMS_PER_BATCH", "8"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED) == (
        0.5,
        9,
        8,
        3,
    )
    assert cfg.is_frozen()


def test_a_negative_seed_becomes_a_fresh_one_that_the_config_keeps():
    seeds = {load_config("", ["SEED", "-1"]).SEED for _ in range(4)}
    assert len(seeds) == 4
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "SOLVER:\n  BASE_LT: 1.0\n",
            r"no config key SOLVER\.BASE_LT; did you mean SOLVER\.BASE_LR\?",
        ),
        ("SOLVER:\n  MAX_EPOCH: many\n", r"MAX_EPOCH"),
        ("SOLVER: [\n", "own.yml"),
        ("_BASE_: none.yml\n", r"none\.yml"),
        ("", "sections of keys and values are expected"),
        ("- 1\n- 2\n", "sections of keys and values are expected"),
        ("MODEL: 3\n", "MODEL"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "own.yml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(tmp_path / "own.yml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASE_LT", "1"], r"the command line: there is no config key SOLVER\.BASE_LT"),
        (["MODEL.NOPE.X", "1"], r"there is no config key"),
        (["SOLVER.MAX_EPOCH"], "has no value"),
        (["-" * 5000], r"-{300}.* \.\.\. has no value"),
        (["SOLVER.MAX_EPOCH", "x"], "MAX_EPOCH"),
        (
            ["SOLVER.MAX_EPOCH", "None"],
            r"SOLVER\.MAX_EPOCH has no value; give one, or leave the key out",
        ),
        (["SEED", "4294967296"], r"SEED is 4294967296: give one below 2147483648, or -1"),
    ],
)
def test_bad_options_are_one_clear_line(opts, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("", opts)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yml does not exist"):
        load_config("nowhere.yml")


def test_arguments_are_fastreids():
    args = argument_parser("x").parse_args(
        ["--config-file", "a.yml", "--num-gpus", "2", "--resume", "A.B", "1"]
    )
    assert (args.config_file, args.num_devices, args.resume, args.opts) == (
        "a.yml",
        2,
        True,
        ["A.B", "1"],
    )


def test_a_tool_prints_the_line_and_ends_with_2(capsys):
    def main():
        raise UserError("the dataset is not there: set DATASETS.ROOT")

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: the dataset is not there: set DATASETS.ROOT\n"


def test_a_name_that_is_no_text_is_printed_all_the_same(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    )
    run_tool(lambda: print("run \udcff é"))
    assert written.getvalue() == "run \\udcff é\n".encode()


def test_several_problems_are_numbered_and_each_is_told_once():
    assert str(UserError.of(["one"])) == "one"
    assert str(UserError.of(["one", "two", "one"])) == "2 problems:\n1. one\n2. two"


def test_every_key_of_the_plugin_is_in_fastreids_defaults():
    cfg = get_cfg()
    assert cfg.MODEL.DEVICE == "auto"
    assert cfg.INPUT.CLIP.LENGTH == 12
    assert cfg.DATASETS.MIN_FRAMES == 12
