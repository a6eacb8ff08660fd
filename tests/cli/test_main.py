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
            text = done.stdout.replace(f"usage: fastreid-star {name}", "")
            assert f"fastreid-star {name} " in text
    assert float(done.stdout.split()[-1]) < 2


def parsed(name, line):
    return vars(command_parser(name)[0].parse_args(line.split()))


def test_flags_and_pairs_in_any_order():
    first = parsed("train", "--config-file x.yml --num-devices 2 SOLVER.MAX_EPOCH 3 SEED -1")
    assert first["opts"] == ["SOLVER.MAX_EPOCH", "3", "SEED", "-1"]
    line = "SOLVER.MAX_EPOCH=3 --num-gpus 2 SEED -1 --config-file x.yml"
    assert first == parsed("train", line)


@pytest.mark.parametrize("folder", ["RUN1", "logs/run", "Run.1"])
def test_resume_takes_no_path(folder):
    line = f"--config-file x.yml --resume {folder}"
    with pytest.raises(UserError, match=f"--resume takes no path: .*OUTPUT_DIR {folder}"):
        parsed("train", line)
    for pairs in ("OUTPUT_DIR RUN1", "SEED 1", "OUTPUT_DIR=RUN1", "SOLVER.MAX_EPOCH 3"):
        assert parsed("train", f"--config-file x.yml --resume {pairs}")["resume"]


def test_eval_is_train_with_eval_only_and_both_are_fast_reids_arguments():
    line = "--config-file x.yml MODEL.WEIGHTS w.pth"
    assert command_parser("train")[1] is command_parser("eval")[1]
    assert parsed("eval", line) == parsed("train", f"--eval-only {line}")
    assert parsed("train", line) == vars(argument_parser("").parse_args(line.split()))


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


def test_a_tool_outside_of_the_environment_is_one_line():
    command = [sys.executable, "-I", "-S", str(REPOSITORY / "tools" / "train_net.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: fastreid_star is not installed")
    assert done.stderr.count("\n") == 1


def test_a_first_argument_that_ends_in_py_is_a_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])")
    command = [sys.executable, "-m", "fastreid_star", str(script), "--config-file", "x"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "['--config-file', 'x']\n", done.stderr
