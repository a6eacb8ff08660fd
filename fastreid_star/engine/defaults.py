"""The first steps of every command: arguments, the config, the output folder and the log."""

from __future__ import annotations

import argparse
import io
import logging
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Callable

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.utils import comm
from fastreid.utils.logger import setup_logger

from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import versions
from fastreid_star.engine.checks.data import require
from fastreid_star.engine.checks.machine import why_unwritable
from fastreid_star.engine.configs import (
    IMPORT_VARIABLE,
    fresh_seed,
    import_packages,
    load_config,
    nearest_key,
    packages_of_environment,
)
from fastreid_star.engine.failures import explain, in_one_line
from fastreid_star.engine.launch import leave_error
from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)
LOGGERS = ("fastreid", "fastreid_star")
_KEY = re.compile(r"[A-Z]\w*(\.\w+)+")


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
                raise UserError(
                    f"{word} is neither a flag nor a config key{nearest_key(word, get_cfg())}; "
                    "write KEY VALUE or KEY=VALUE, and quote values that contain blanks"
                )
        return namespace, rest

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Separate flags and their values from config options."""
        flags: list[str] = []
        opts: list[str] = []
        names = set(get_cfg())
        while words:
            word = words.pop(0)
            key, equals, value = word.partition("=")
            is_key = key in names or _KEY.fullmatch(key)
            if word.startswith("-"):
                flags.append(word)
                actions = {a for s, a in self._option_string_actions.items() if s.startswith(word)}
                if len(actions) == 1 and actions.pop().nargs is None and words:
                    flags.append(words.pop(0))
            elif flags[-1:] == ["--resume"] and not is_key:
                raise UserError(
                    "--resume takes no path: it continues from the last checkpoint in OUTPUT_DIR; "
                    "write --resume OUTPUT_DIR "
                    f"{os.path.dirname(word) if os.path.isfile(word) else word}"
                )
            elif is_key and equals:
                opts += [key, value]
            elif is_key:
                if not words or words[0] in self._option_string_actions:
                    raise UserError(f"{key} has no value: write {key} VALUE or {key}=VALUE")
                opts += [key, words.pop(0)]
            else:
                flags.append(word)
        return flags, opts


class _Import(argparse.Action):
    """Import a package when its flag is parsed, which is before any config is read."""

    def __call__(self, parser, namespace, values, option_string=None):
        import_packages([values])
        packages = dict.fromkeys([*packages_of_environment(), values])
        os.environ[IMPORT_VARIABLE] = ",".join(packages)


def argument_parser(description: str, *, for_script: bool = False) -> ConfigArgumentParser:
    """fast-reid's arguments of a training script, with ``--num-devices`` for every kind of device.

    Args:
        description: the first line of ``--help``.
        for_script: the arguments that scripts written for fast-reid expect: the number of devices
            is in ``num_gpus``, and ``--config-file`` is optional.
    """
    parser = ConfigArgumentParser(description=description)
    add = parser.add_argument
    add(
        "--config-file",
        required=not for_script,
        default="",
        metavar="FILE",
        help="a YAML file, or a config of the project, such as Synthetic/STAR_small.yml",
    )
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add(
        "--allow-changed",
        action="store_true",
        help="resume or evaluate although the config differs from the checkpoint's",
    )
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS without training")
    add(
        "--num-devices",
        "--num-gpus",
        dest="num_gpus" if for_script else "num_devices",
        type=int,
        default=1,
        metavar="N",
        help="devices, and processes, of this machine",
    )
    add("--num-machines", type=int, default=1, metavar="N", help="number of machines")
    add("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    add("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of the first machine")
    add_import_flag(parser)
    return parser


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--import PACKAGE``, which may be repeated."""
    parser.add_argument(
        "--import",
        action=_Import,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        metavar="PACKAGE",
        help="a package of yours that adds models, losses or datasets; may be repeated",
    )


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, then call :func:`default_setup`.

    Raises:
        UserError: the config is wrong, or OUTPUT_DIR cannot be written; on every rank.
    """
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    return cfg


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Make OUTPUT_DIR and start the log there; fast-reid's function of this name.

    The terminal shows a few lines, and ``log.txt`` contains the whole config as well. The trainer
    saves config.yaml after all checks have passed.

    Args:
        cfg: a complete config. All processes get the SEED of the main process.
        args: ``eval_only`` is read if it is there.

    Raises:
        UserError: OUTPUT_DIR cannot be written, or MODEL.DEVICE cannot be used; on every rank.
    """
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.SEED = comm.all_gather(fresh_seed(cfg))[0]  # each process draws its own for a negative one
    if frozen:
        cfg.freeze()
    training = not getattr(args, "eval_only", False)
    problem = None
    if comm.is_main_process():
        problem = why_unwritable(cfg.OUTPUT_DIR)
    problem = comm.all_gather(problem)[0]
    if problem:
        require(cfg, training=training)  # raises an error with all problems if there are more
        raise UserError(problem)
    # A log on a full disk loses lines; without this Python prints a traceback for each of them.
    logging.raiseExceptions = False
    for name in LOGGERS:
        log = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
        for handler in log.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.INFO)
    logging.getLogger("fastreid.engine.train_loop").addFilter(_without_traceback)
    chosen = devices.choose_device(cfg.MODEL.DEVICE, comm.get_local_rank())
    found = versions()
    logger.info(f"Command line: {shlex.join(sys.argv)}")
    logger.info(
        f"Python {platform.python_version()}, torch {torch.__version__}, fastreid "
        f"{found['fastreid']}, fastreid-star {found['fastreid-star']}; {comm.get_world_size()} "
        f"process(es) on {devices.describe(chosen)}"
    )
    logger.info(f"Output folder: {os.path.abspath(cfg.OUTPUT_DIR)}; seed {cfg.SEED}")
    logger.debug(f"Config:\n{cfg}")


def _without_traceback(record: logging.LogRecord) -> bool:
    """A log filter: tracebacks of errors that one line explains are written to log.txt only."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        line = str(error) if isinstance(error, UserError) else explain(error)
        if line is not None:
            logger.debug("Traceback of the error:", exc_info=record.exc_info)
            record.msg, record.args, record.exc_info = f"Training ended: {line}", (), None
    return True


def run_tool(main: Callable[[], object]) -> None:
    """Run the main function of a command; an error that the user can fix ends it in one line.

    The status is 2 for such an error, a :class:`UserError` or a failure of the machine such as a
    full disk, and 130 for Ctrl-C. One of several processes leaves the line to their launcher.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may contain any bytes
    try:
        with in_one_line():
            main()
    except UserError as error:
        if not leave_error(str(error)):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if not leave_error("interrupted", traceback=True):
            line = "interrupted; finished files are kept, and a training continues with --resume"
            print(line, file=sys.stderr)
        sys.exit(130)
    except Exception:
        if not leave_error(traceback.format_exc(), traceback=True):
            raise
        sys.exit(1)
