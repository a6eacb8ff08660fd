"""Choose the command, parse its arguments and run it."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence

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
    "features": ("inference", "compute features of a dataset, of folders or of videos"),
    "search": ("inference", "rank a gallery for your own tracklets"),
    "export": ("inference", "export a trained model to ONNX"),
    "report": ("reports", "write an HTML report of one or two runs, or of an ablation"),
    "zoo": ("reports", "update a table of trained models from the folders of their runs"),
    "benchmark": ("reports", "measure speed and memory"),
    "configs": ("configs", "list the configs, or explain the keys of one"),
    "demo": ("demo", "train the baseline and STAR on synthetic data, in a few minutes"),
    "run-script": ("", "run an unmodified training script written for fast-reid"),
}


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
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if arguments else 2)
    try:
        action = parse(arguments)
    except UserError as error:
        sys.exit(_error(str(error)))
    try:
        if load is not None:
            load()
        from fastreid_star.engine.defaults import run_tool
    except ImportError as error:
        line = explain_import_error(error)
        if arguments[0] == "doctor":
            print(f"FAIL  import         {line}\nnot ready: see FAIL above")
            sys.exit(1)
        sys.exit(_error(line))
    status: list[int | None] = []
    run_tool(lambda: status.append(action()))
    sys.exit(status[0])


def run(*arguments: object) -> int | None:
    """Run a command line in this process; what it raises, it raises. For tests and for Python code.

    Returns:
        the exit status.
    """
    return parse([str(argument) for argument in arguments])()


def parse(arguments: Sequence[str]) -> Callable[[], int | None]:
    """Parse a command line. Flags and KEY VALUE pairs may come in any order.

    Returns:
        a function that runs the command and returns its exit status; None counts as 0.

    Raises:
        UserError: there is no such command.
        SystemExit: ``--help``, or an argument that the command does not have.
    """
    name, *rest = arguments
    if name == "run-script":
        return _script(rest)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "fastreid-star --help lists the commands"
        raise UserError(f"there is no command {name!r}: {hint}")
    parser, action = command_parser(name)
    args = parser.parse_intermixed_args(rest)
    return lambda: action(args)


def command_parser(
    name: str,
) -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], int | None]]:
    """The parser of a command, and the function that runs the command."""
    add = getattr(importlib.import_module(f"fastreid_star.cli.{COMMANDS[name][0]}"), f"add_{name}")
    parser = argparse.ArgumentParser(
        prog=f"fastreid-star {name}",
        description=inspect.cleandoc(add.__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser, add(parser)


def explain_import_error(error: ImportError) -> str:
    """One line that says what is missing and how to install it."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package == "fastreid_star":
        return str(error).splitlines()[0]
    if package == "fastreid":
        return f"fast-reid is not installed: {INSTALL_FASTREID}"
    return (
        f"{package} is not installed in {sys.executable}: activate the environment of fastreid_star, "
        "or install fastreid_star there with its dependencies"
    )


def _script(arguments: Sequence[str]) -> Callable[[], None]:
    text = "usage: fastreid-star run-script SCRIPT.py [ARGUMENTS OF THE SCRIPT]"
    if arguments[:1] in (["-h"], ["--help"]):
        print(text)
        sys.exit(0)
    if not arguments:
        raise UserError(f"the script is missing; {text}")

    def action() -> None:
        from fastreid_star.engine.script import run_script

        run_script(arguments[0], list(arguments[1:]))

    return action


def _error(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2
