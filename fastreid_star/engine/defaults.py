"""The first and the last steps of every command: the output folder, the log, the exit status."""

from __future__ import annotations

import argparse
import io
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable

import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.logger import setup_logger

from fastreid_star.arguments import argument_parser
from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import versions
from fastreid_star.engine.checks import require
from fastreid_star.engine.checks.machine import why_unwritable
from fastreid_star.engine.configs import fresh_seed, load_config
from fastreid_star.engine.failures import explain, in_one_line
from fastreid_star.engine.launch import leave_error
from fastreid_star.errors import UserError

__all__ = ["argument_parser", "default_setup", "load_config", "run_tool", "setup"]
logger = logging.getLogger(__name__)
LOGGERS = ("fastreid", "fastreid_star")


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
            stream = getattr(handler, "stream", None)
            if stream is sys.stdout:
                handler.setLevel(logging.INFO)
            elif isinstance(stream, io.TextIOWrapper) and not stream.closed:
                # log.txt, which has another encoding on Windows; an earlier run's may be closed
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.getLogger("fastreid.engine.train_loop").addFilter(_without_traceback)
    chosen = devices.choose_device(cfg.MODEL.DEVICE, comm.get_local_rank())
    found = versions()
    command = ["fastreid-star"] if sys.argv[0].endswith("__main__.py") else sys.argv[:1]
    logger.info(f"Command line: {shlex.join([*command, *sys.argv[1:]])}")
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
        logger.debug(f"Ended by an error: {error}")  # for log.txt, if it is open
        if not leave_error(str(error)):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        line = "interrupted; finished files are kept, and a training continues with --resume"
        print(line, file=sys.stderr)
        sys.exit(130)
