"""The console command: help without torch, flags in any order, and errors of one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastreid_star.cli.main import COMMANDS, command_parser, main, run
from fastreid_star.engine.defaults import argument_parser
from fastreid_star.errors import UserError

REPOSITORY = Path(__file__).parents[2]
CONFIG = str(REPOSITORY / "configs" / "Synthetic" / "STAR_small.yml")

HELP = """
import sys, time
import fastreid_star_command
for arguments in ([], *[[name] for name in NAMES]):
    sys.argv = ["fastreid-star", *arguments, "--help"]
    try:
        fastreid_star_command.main()
    except SystemExit as ended:
        assert not ended.code, arguments
    for name in [name for name in sys.modules if name.split(".")[0] == "fastreid_star"]:
        del sys.modules[name]
heavy = {"torch", "fastreid", "numpy"} & set(sys.modules)
assert not heavy, heavy
print("seconds:", time.process_time())
"""

# stand-ins: what is tested is before torch is used
MISSING = """
import sys, types
for name in ("torch", "torchvision"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
sys.modules["fastreid"] = None
import fastreid_star_command
fastreid_star_command.main()
"""


def python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_every_help_text_appears_without_torch_and_has_an_example():
    done = python(HELP.replace("NAMES", repr(list(COMMANDS))))
    assert done.returncode == 0, done.stderr
    for name, (module, summary) in COMMANDS.items():
        assert summary in done.stdout
        if module:
            assert f"fastreid-star {name} " in done.stdout.replace(
                f"usage: fastreid-star {name}", ""
            )
    assert float(done.stdout.split()[-1]) < 2


def parsed(name, *words):
    return vars(command_parser(name)[0].parse_args(words))


def test_flags_and_pairs_in_any_order():
    first = parsed(
        "train",
        "--config-file",
        CONFIG,
        "--num-devices",
        "2",
        "SOLVER.MAX_EPOCH",
        "3",
        "SEED",
        "-1",
    )
    assert first["opts"] == ["SOLVER.MAX_EPOCH", "3", "SEED", "-1"]
    assert first == parsed(
        "train", "SOLVER.MAX_EPOCH=3", "--num-gpus", "2", "SEED", "-1", "--config-file", CONFIG
    )


def test_eval_is_train_with_eval_only_and_both_are_fast_reids_arguments():
    words = ["--config-file", CONFIG, "MODEL.WEIGHTS", "w.pth"]
    assert command_parser("train")[1] is command_parser("eval")[1]
    assert parsed("eval", *words) == parsed("train", "--eval-only", *words)
    shared = vars(argument_parser("").parse_args(words))
    assert parsed("train", *words) == shared


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(UserError, match="did you mean search"):
        run("serch")


def test_an_error_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config-file", "nowhere.yml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: config file nowhere.yml does not exist\n"


def test_missing_fastreid_is_one_line_with_the_pip_command():
    done = python(MISSING, "train", "--config-file", CONFIG)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: fast-reid is not installed: pip install --no-deps fastreid==1.4.0\n"
    )
    doctor = python(MISSING, "doctor")
    assert doctor.returncode == 1
    assert doctor.stdout.startswith("FAIL  import ")


def test_windows_is_refused_with_the_systems_that_work():
    done = python(
        "import sys; sys.platform = 'win32'; import fastreid_star_command as c; c.main()", "doctor"
    )
    assert "Linux and macOS" in done.stdout


def test_a_tool_outside_of_the_environment_is_one_line():
    command = [sys.executable, "-I", "-S", str(REPOSITORY / "tools" / "train_net.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: fastreid_star is not installed")
    assert done.stderr.count("\n") == 1


def test_a_first_argument_that_ends_in_py_is_a_script(tmp_path, monkeypatch, capsys):
    import runpy

    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])")
    monkeypatch.setattr(sys, "argv", ["fastreid_star", str(script), "--config-file", "x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("fastreid_star", run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.strip() == "['--config-file', 'x']"
