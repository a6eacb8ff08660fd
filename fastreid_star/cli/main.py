"""Choose the command, parse its arguments and run it."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence

from fastreid_star.arguments import ConfigArgumentParser, add_import
from fastreid_star.cli.arguments import Action
from fastreid_star.errors import UserError

INSTALL_FASTREID = "pip install --no-deps fastreid==1.4.0"

# name -> (module of this package with the function add_NAME, what the command does)
COMMANDS = {
    "train": ("training", "train a model, or resume a run"),
    "eval": ("training", "evaluate trained weights in both directions"),
    "ablate": ("training", "train several configs over several seeds and print a table"),
    "replay": ("training", "repeat a training step that was not finite and find its cause"),
    "doctor": ("training", "check that this machine, and a run's config and data, are ready"),
    "check": ("data", "check that a dataset and its skeletons are complete and readable"),
    "skeletons": ("data", "estimate the skeleton of every image with a pose network"),
    "convert": ("data", "convert published weights, or a skeleton store"),
    "weights": ("weights", "say what a file of weights holds, and what of it fits a network"),
    "tracklets": ("tracklets", "cut the people of a video out, as tracklets"),
    "features": ("inference", "compute features of a dataset, of folders or of videos"),
    "search": ("inference", "rank a gallery for your own tracklets"),
    "threshold": ("inference", "compute when two tracklets show the same person"),
    "export": ("inference", "export a trained model to ONNX or torch.export"),
    "report": ("reports", "write an HTML report of one or two runs, or of an ablation"),
    "zoo": ("reports", "update a table of trained models from the folders of their runs"),
    "benchmark": ("reports", "measure speed"),
    "configs": ("configs", "list the configs, or explain the keys of one"),
    "demo": ("demo", "train the baseline and STAR on synthetic data, in a few minutes"),
    "run-script": ("", "run an unmodified training script written for fast-reid"),
}
# commands with KEY VALUE pairs and flags in any order
PAIRS = ("train", "eval", "doctor", "demo", "configs")
SCRIPT_USAGE = "usage: fastreid-star run-script SCRIPT.py [ARGUMENTS OF THE SCRIPT]"


def usage() -> str:
    """The text of ``fastreid-star --help``."""
    lines = [f"  {name:11} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fastreid-star COMMAND [ARGUMENTS]",
            "",
            "Video visible-infrared person re-identification with fast-reid.",
            "",
            "commands:",
            *lines,
            "",
            "fastreid-star COMMAND --help explains a command and shows examples.",
            "python -m fastreid_star COMMAND does the same, and",
            "python -m fastreid_star SCRIPT.py runs a training script written for fast-reid.",
        ]
    )


def main(arguments: Sequence[str] | None = None, load: Callable[[], None] | None = None) -> None:
    """Run a command line and exit with its status: 0, 1 for a negative finding, 2 for an error.

    Args:
        arguments: the command and its arguments; None: those of this process.
        load: imports torch, fast-reid and the package; None: they are imported already.
    """
    try:
        try:
            _main(arguments, load)
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(getattr(error.__context__, "code", None) or 141)  # 143: SIGTERM ended a training


def _main(arguments: Sequence[str] | None, load: Callable[[], None] | None) -> None:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if words else 2)
    name, *rest = words
    try:
        check_command(name)
        if {"-h", "--help"} & set(rest[:1] if name == "run-script" else rest):
            print(SCRIPT_USAGE if name == "run-script" else command_parser(name)[0].format_help())
            sys.exit(0)
        if load is not None:
            load()
        from fastreid_star.engine.defaults import run_tool
    except UserError as error:
        sys.exit(_error(str(error)))
    except ImportError as error:
        line = explain_import_error(error)
        if name == "doctor":
            print(f"FAIL  import         {line}\nnot ready: see FAIL above")
            sys.exit(1)
        sys.exit(_error(line))
    status: list[int | None] = []
    run_tool(lambda: status.append(run(*words)))
    sys.exit(status[0])


def run(name: str, *arguments: object) -> int | None:
    """Run a command in this process. It raises what the command raises. For tests and Python code.

    Args:
        name: the command.
        arguments: as on a command line; each is converted to text.

    Returns:
        the exit status; None counts as 0.
    """
    check_command(name)
    words = [str(argument) for argument in arguments]
    if name == "run-script":
        from fastreid_star.engine.script import run_script

        if not words:
            raise UserError(f"the script is missing; {SCRIPT_USAGE}")
        run_script(words[0], words[1:])
        return None
    parser, action = command_parser(name)
    args = parser.parse_args(words) if name in PAIRS else parser.parse_intermixed_args(words)
    return action(args)


def check_command(name: str) -> None:
    """Raise a UserError with the nearest command if there is none of this name."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "fastreid-star --help lists the commands"
        raise UserError(f"there is no command {name!r}: {hint}")


def command_parser(name: str) -> tuple[argparse.ArgumentParser, Action]:
    """The parser of a command, and the function that runs the command with what it has parsed."""
    add = getattr(importlib.import_module(f"fastreid_star.cli.{COMMANDS[name][0]}"), f"add_{name}")
    parser_class = ConfigArgumentParser if name in PAIRS else argparse.ArgumentParser
    parser = parser_class(
        prog=f"fastreid-star {name}",
        description=inspect.cleandoc(add.__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = add(parser)
    add_import(parser)
    return parser, action


def explain_import_error(error: ImportError) -> str:
    """One line that says what is missing and how to install it."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package == "fastreid_star":
        return str(error).splitlines()[0]
    if package == "fastreid":
        return f"fast-reid is not installed: {INSTALL_FASTREID}"
    return (
        f"{package} is not installed in {sys.executable}: activate the environment of the project, "
        "or install fastreid_star there with its dependencies"
    )


def _error(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2
