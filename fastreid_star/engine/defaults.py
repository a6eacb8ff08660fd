"""From a command line to a frozen config and an output folder with a log: what every tool does first."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import platform
import re
import secrets
import shlex
import sys
from collections.abc import Callable

import torch
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.utils import comm
from fastreid.utils.logger import setup_logger

from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import versions
from fastreid_star.engine.checks import check
from fastreid_star.engine.checks_machine import why_unwritable
from fastreid_star.engine.faults import explain, in_one_line
from fastreid_star.engine.yaml_files import check_yaml
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

logger = logging.getLogger(__name__)
LOGGERS = ("fastreid", "fastreid_star")

# kept, because scripts find the two functions below under these names: see fastreid_star/engine/script.py
_merge_from_file, _merge_from_list = CfgNode.merge_from_file, CfgNode.merge_from_list


def argument_parser(description: str, *, for_script: bool = False) -> argparse.ArgumentParser:
    """fast-reid's arguments of a training script, with ``--num-devices`` for any kind of device.

    Args:
        description: what ``--help`` begins with.
        for_script: as scripts written for fast-reid expect it: the number of devices is ``num_gpus``, and
            ``--config-file`` may be left out.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config-file", required=not for_script, default="", metavar="FILE", help="a YAML file"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and stop")
    parser.add_argument(
        "--num-devices",
        "--num-gpus",
        dest="num_gpus" if for_script else "num_devices",
        type=int,
        default=1,
        metavar="N",
        help="devices, and processes, per machine",
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines in all")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="R", help="this machine's number, from 0"
    )
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of the first machine"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and values to change",
    )
    return parser


def load_config(path: str = "", opts: list[str] | None = None) -> CfgNode:
    """fast-reid's defaults, the file, then the options.

    A negative SEED is replaced by a fresh one, so that the config saved beside a run can repeat it.

    Args:
        path: a YAML file; empty: none.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``.

    Raises:
        UserError: no such file, no such key (with the nearest that exists), or a value of the wrong type.
    """
    cfg = get_cfg()
    if path:
        merge_file(cfg, path)
    merge_options(cfg, opts or [])
    cfg.SEED = _seed(cfg)
    cfg.freeze()
    return cfg


def merge_file(cfg: CfgNode, cfg_filename: str, allow_unsafe: bool = False) -> None:
    """fast-reid's ``cfg.merge_from_file``, with what is wrong said in one line.

    Raises:
        UserError: as :func:`load_config`.
    """
    if not cfg_filename:
        raise UserError("there is no config file: add --config-file FILE")
    if not os.path.isfile(cfg_filename):
        raise UserError(f"config file {cfg_filename} does not exist")
    if not allow_unsafe:
        check_yaml(cfg_filename)
    _merge(cfg, lambda: _merge_from_file(cfg, cfg_filename, allow_unsafe), cfg_filename)


def merge_options(cfg: CfgNode, cfg_list: list[str]) -> None:
    """fast-reid's ``cfg.merge_from_list``, with what is wrong said in one line.

    Raises:
        UserError: as :func:`load_config`.
    """
    if len(cfg_list) % 2:
        raise UserError(
            f"config options come in pairs, KEY VALUE; {_shortened(repr(cfg_list[-1]))} has no value"
        )
    _merge(cfg, lambda: _merge_from_list(cfg, cfg_list), "the command line")


def _seed(cfg: CfgNode) -> int:
    if cfg.SEED >= 2**31:
        raise UserError(f"SEED is {cfg.SEED}: give one below {2**31}, or -1 for a fresh one")
    return cfg.SEED if cfg.SEED >= 0 else secrets.randbelow(2**31)


def _merge(cfg: CfgNode, merge: Callable[[], None], source: str) -> None:
    previous = logging.root.manager.disable
    logging.disable(
        logging.CRITICAL
    )  # yacs logs an error before it raises it; the UserError says it once
    try:
        merge()
    except (KeyError, AssertionError) as error:
        text = str(error.args[0]) if error.args else str(error)
        if "Non-existent" not in text:
            raise UserError(f"{source}: {_shortened(text)}") from error
        key = _shortened(text.rsplit(": ", 1)[-1].strip("'\""))
        near = difflib.get_close_matches(key, _all_keys(cfg), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{source}: there is no config key {key}{hint}") from error
    except (ValueError, OSError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        if len(text) > 300:  # yacs prints both values, which may be whole sections
            text = re.sub(r" with values \(.*\) for ", " for ", text)
        raise UserError(f"{source}: {_shortened(text)}") from error
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{source}: sections of keys and values are expected ({_shortened(str(error))})"
        ) from error
    except (RecursionError, MemoryError) as error:  # of Python's own reader of values
        raise UserError(f"{source}: a value is nested too deeply to be read") from error
    finally:
        logging.disable(previous)
    defaults = get_cfg()
    empty = [
        key
        for key in _all_keys(cfg)
        if _value(cfg, key) is None and _value(defaults, key) is not None
    ]
    if empty:
        raise UserError(f"{source}: {empty[0]} has no value; give one, or leave the key out")


def _value(node: CfgNode | None, key: str) -> object:
    """The value of a key with dots, None where there is none."""
    for name in key.split("."):
        node = node.get(name) if isinstance(node, CfgNode) else None
    return node


def _shortened(text: str) -> str:
    """One line of at most 400 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:400]} ..."


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, and do what :func:`default_setup` does.

    Raises:
        UserError: the config is wrong, or OUTPUT_DIR cannot be written; on every rank.
    """
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    return cfg


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Make OUTPUT_DIR, open the log there and save the config beside it; fast-reid's function of that name.

    The terminal gets a few lines, ``log.txt`` the whole config as well. An evaluation leaves the saved config alone.

    Args:
        cfg: a complete config; all processes get the SEED of the main one, a fresh one where it is negative.
        args: ``eval_only`` is read, where it is there.

    Raises:
        UserError: OUTPUT_DIR cannot be written, or MODEL.DEVICE cannot be used; on every rank.
    """
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.SEED = comm.all_gather(_seed(cfg))[0]  # a negative one is drawn anew in each process
    if frozen:
        cfg.freeze()
    training = not getattr(args, "eval_only", False)
    problem = None
    if comm.is_main_process():
        problem = why_unwritable(cfg.OUTPUT_DIR)
        if problem is None and training:  # what a run was trained with stays beside its weights
            try:
                write_whole(
                    os.path.join(cfg.OUTPUT_DIR, "config.yaml"),
                    lambda file: file.write(cfg.dump().encode()),
                )
            except OSError as error:
                problem = (
                    f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written: {error.strerror or error}"
                )
    problem = comm.all_gather(problem)[0]
    if problem:
        check(cfg, training=training)  # says what else is wrong, where something is
        raise UserError(problem)
    for name in LOGGERS:
        for handler in setup_logger(
            cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name
        ).handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.INFO)
            else:
                handler.handleError = _say_once(handler)
    logging.getLogger("fastreid.engine.train_loop").addFilter(_in_one_line)
    chosen = devices.choose_device(cfg.MODEL.DEVICE, comm.get_local_rank())
    logger.info(f"Command line: {shlex.join(sys.argv)}")
    found = versions()
    logger.info(
        f"Python {platform.python_version()}, torch {torch.__version__}, fastreid {found['fastreid']}, "
        f"fastreid-star {found['fastreid-star']}; {comm.get_world_size()} process(es) on {devices.describe(chosen)}"
    )
    logger.info(f"Output folder: {os.path.abspath(cfg.OUTPUT_DIR)}; seed {cfg.SEED}")
    logger.debug(f"Config:\n{cfg}")


def _say_once(handler: logging.Handler) -> Callable[[logging.LogRecord], None]:
    """For a log file on a disk that fails: a line on standard error, where Python's own is a traceback a record.

    The file is tried again with every record: what could not be written is written once there is room.
    """
    told = False

    def handle(record: logging.LogRecord) -> None:
        nonlocal told
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logging.Handler.handleError(handler, record)
        elif not told:
            told = True
            print(
                f"log.txt cannot be written ({error.strerror or error}): the run goes on",
                file=sys.stderr,
            )

    return handle


def _in_one_line(record: logging.LogRecord) -> bool:
    """A filter: of an error that is told in one line, the traceback goes to log.txt only."""
    error = record.exc_info[1] if record.exc_info else None
    line = (
        str(error)
        if isinstance(error, UserError)
        else explain(error)
        if error is not None
        else None
    )
    if line is not None:
        logger.debug("The error's traceback:", exc_info=record.exc_info)
        record.msg, record.args, record.exc_info = f"Training ended: {line}", (), None
    return True


def run_tool(main: Callable[[], None]) -> None:
    """Run a command line tool: a :class:`UserError` ends it with its one line and status 2, without a traceback.

    So does a fault of the machine, such as a full disk; see :mod:`fastreid_star.engine.faults`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        with in_one_line():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted; what was finished is kept, and a training run goes on with --resume",
            file=sys.stderr,
        )
        sys.exit(130)
