"""The arguments of training commands, and packages of the user; it imports no torch.

So the help text of a command appears at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterable
from traceback import walk_tb

from fastreid_star.errors import UserError

IMPORT_VARIABLE = "FASTREID_STAR_IMPORT"
IMPORTED: set[str] = set()  # the packages of the user that this process has imported
_KEY = re.compile(r"(?!.*\.ya?ml$)[A-Z][A-Z0-9_]*(\.\w+)*")  # not a file such as STAR.yml
_WITHOUT_DOT = {"CUDNN_BENCHMARK", "IMPORTS", "OUTPUT_DIR", "SEED", "TRACKERS"}


class ConfigArgumentParser(argparse.ArgumentParser):
    """An argument parser with flags and config options in any order.

    Options are written ``KEY VALUE`` or ``KEY=VALUE`` and parsed to ``args.opts`` as ``[KEY, VALUE,
    KEY, VALUE, ...]``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_argument_group(
            "config options",
            "KEY VALUE or KEY=VALUE before or behind the flags; lists as SOLVER.STEPS '[40, 70]'",
        )

    def parse_known_args(self, args=None, namespace=None):
        """argparse's function of this name.

        Raises:
            UserError: a key without a value, or a word that is neither a flag nor a config option.
        """
        flags, opts = self._split(list(sys.argv[1:] if args is None else args))
        namespace, rest = super().parse_known_args(flags, namespace)
        namespace.opts = opts
        for word in rest:
            if not word.startswith("-"):
                key = word.partition("=")[0].upper()
                hint = f"; did you mean {key}?" if "." in word and _KEY.fullmatch(key) else ""
                raise UserError(
                    f"{word} is neither a flag nor a config key{hint}; write KEY VALUE or "
                    "KEY=VALUE, and quote values that contain blanks"
                )
        return namespace, rest

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Separate flags and their values from config options."""
        flags: list[str] = []
        opts: list[str] = []
        previous = ""
        while words:
            word = words.pop(0)
            key, equals, value = word.partition("=")
            after_resume = previous == "--resume"
            is_name = not equals and "." not in key and key not in _WITHOUT_DOT  # such as RUN1
            previous = word
            if word.startswith("-"):
                flags.append(word)
                actions = {a for s, a in self._option_string_actions.items() if s.startswith(word)}
                if len(actions) == 1 and actions.pop().nargs is None and words:
                    flags.append(words.pop(0))
            elif after_resume and (not _KEY.fullmatch(key) or is_name):
                raise UserError(
                    "--resume takes no path: it continues from the last checkpoint in "
                    f"OUTPUT_DIR; write --resume OUTPUT_DIR {word}"
                )
            elif not _KEY.fullmatch(key):
                flags.append(word)
            elif equals:
                opts += [key, value]
            elif not words or words[0] in self._option_string_actions:
                raise UserError(f"{key} has no value: write {key} VALUE or {key}=VALUE")
            else:
                opts += [key, words.pop(0)]
        return flags, opts


def argument_parser(description: str, *, for_script: bool = False) -> ConfigArgumentParser:
    """fast-reid's arguments of a training script, with ``--num-devices`` for every kind of device.

    Args:
        description: the first line of ``--help``.
        for_script: the arguments that scripts written for fast-reid expect: the number of devices
            is in ``num_gpus``, and ``--config-file`` is optional.
    """
    parser = ConfigArgumentParser(description=description)
    add_resume(parser)
    add_training(parser, for_script=for_script)
    add_import(parser)
    return parser


def add_resume(parser: argparse.ArgumentParser) -> None:
    """``--resume`` and ``--eval-only``."""
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="the same as fastreid-star eval")


def add_training(parser: argparse.ArgumentParser, *, for_script: bool = False) -> None:
    """The other arguments of a training or an evaluation, see :func:`argument_parser`."""
    add = parser.add_argument
    add(
        "--config-file",
        required=not for_script,
        default="",
        metavar="FILE",
        help="a YAML file, or the name of a shipped config; fastreid-star configs lists them",
    )
    add(
        "--allow-changed",
        action="store_true",
        help="resume or evaluate although the config differs from the checkpoint's",
    )
    add(
        "--num-devices",
        "--num-gpus",
        dest="num_gpus" if for_script else "num_devices",
        type=int,
        default=1,
        metavar="N",
        help="devices per machine; each gets one process",
    )
    add("--num-machines", type=int, default=1, metavar="N", help="machines in all")
    add("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    add("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of the first machine")


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add ``--import PACKAGE``, which may be repeated."""
    parser.add_argument(
        "--import",
        action=_Import,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        metavar="PACKAGE",
        help="a package of yours that adds models, losses or datasets; may be repeated",
    )


class _Import(argparse.Action):
    """Import a package when its flag is parsed, which is before any config is read."""

    def __call__(self, parser, namespace, values, option_string=None):
        import_packages([values])
        packages = dict.fromkeys([*packages_of_environment(), values])
        os.environ[IMPORT_VARIABLE] = ",".join(packages)  # for other processes


def import_packages(names: Iterable[str]) -> None:
    """Import packages of the user. The current directory is searched too.

    Raises:
        UserError: a package cannot be imported.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--import {name}: give the name of a package, not a path")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except Exception as error:  # the user's own code can raise any error
            top = name.partition(".")[0]
            if isinstance(error, ModuleNotFoundError) and error.name == top:
                raise UserError(
                    f"cannot import {name}, a package of --import or IMPORTS: start in the folder "
                    "that contains it, or add that folder to PYTHONPATH"
                ) from error
            own = [
                f"{frame.f_code.co_filename}, line {line}"
                for frame, line in walk_tb(error.__traceback__)
                if frame.f_globals.get("__name__", "").partition(".")[0] == top
            ]
            reason = " ".join(str(error).split())[:400]
            raise UserError(
                f"cannot import {name}: {type(error).__name__}: {reason}"
                + (f" ({own[-1]})" if own else "")
            ) from error
        IMPORTED.add(name)


def packages_of_environment() -> list[str]:
    """The packages that another process has imported with ``--import``."""
    return [name.strip() for name in os.environ.get(IMPORT_VARIABLE, "").split(",") if name.strip()]
