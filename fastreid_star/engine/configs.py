"""Find, read and merge configs, with every error in one line."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fastreid.config import CfgNode, get_cfg

from fastreid_star.arguments import import_packages, packages_of_environment
from fastreid_star.errors import UserError
from fastreid_star.upgrade import is_removed, upgrade_config

# engine/script.py replaces these two methods while it runs a script
_merge_from_file, _merge_from_list = CfgNode.merge_from_file, CfgNode.merge_from_list


def load_config(path: str = "", opts: Sequence[str] | None = None) -> CfgNode:
    """fast-reid's default config, changed by a file and by options.

    The packages of ``--import`` and those that the file names in IMPORTS are imported first,
    because they may add keys, and are recorded in IMPORTS. A negative SEED is replaced by a new
    one, so that the saved config repeats the run.

    Args:
        path: a YAML file, see :func:`config_path`; empty: no file.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``.

    Returns:
        the config, frozen.

    Raises:
        UserError: the file or a key does not exist, a value has the wrong type, or a package cannot
            be imported.
    """
    if path:
        path = config_path(path)
        with _in_one_line(get_cfg(), path):
            content = read_yaml(path)
            packages = CfgNode._decode_cfg_value(content.get("IMPORTS", []))
        if isinstance(packages, str):
            packages = [packages]
        import_packages(packages if isinstance(packages, list | tuple) else [])
    import_packages(packages_of_environment())
    cfg = get_cfg()  # only now, with the keys of the packages
    if path:
        merge_file(cfg, path)
    merge_options(cfg, opts or [])
    import_packages(cfg.IMPORTS)
    cfg.IMPORTS = list(dict.fromkeys([*cfg.IMPORTS, *packages_of_environment()]))
    cfg.SEED = fresh_seed(cfg)
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)  # a shell leaves the ~ of a YAML file
    cfg.DATASETS.ROOT = os.path.expanduser(cfg.DATASETS.ROOT)
    cfg.freeze()
    return cfg


def config_path(name: str) -> str:
    """The path of a config file, which may be named relative to the project's folder of configs.

    Args:
        name: a path, or a name such as ``Synthetic/STAR_small.yml``.

    Raises:
        UserError: there is no such file. The message contains similar names.
    """
    if not name:
        raise UserError("no config file is given: add --config-file FILE")
    if os.path.isfile(name):
        return name
    shipped, wanted = shipped_configs(), name.removeprefix("configs/")
    if wanted in shipped:
        return str(shipped[wanted])
    near = difflib.get_close_matches(wanted, shipped, n=3)
    hint = f"; similar configs: {', '.join(near)}" if near else ""
    raise UserError(f"config file {name} does not exist{hint}")


def shipped_configs() -> dict[str, Path]:
    """The configs of the project, by name."""
    package = Path(__file__).resolve().parents[1]
    shipped: dict[str, Path] = {}
    for folder in (package / "configs", package.parent / "configs"):  # the clone's come last
        shipped |= {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.yml")}
    return shipped


def merge_file(cfg: CfgNode, cfg_filename: str, allow_unsafe: bool = False) -> None:
    """fast-reid's ``cfg.merge_from_file``, with every error in one line.

    Raises:
        UserError: as :func:`load_config`.
    """
    path = config_path(cfg_filename)
    with _in_one_line(cfg, path):
        if allow_unsafe:
            _merge_from_file(cfg, path, allow_unsafe)
        else:
            cfg.merge_from_other_cfg(CfgNode(upgrade_config(read_yaml(path))))


def read_yaml(path: str) -> dict[str, Any]:
    """The content of a config file on top of that of its ``_BASE_``.

    ``_BASE_`` is a path relative to the file, or the name of a config of the project.
    """
    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    if not isinstance(content, dict):
        raise TypeError(f"{path} has no sections of keys and values")
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    beside = os.path.join(os.path.dirname(path), os.path.expanduser(base))
    merged = read_yaml(beside if os.path.isfile(beside) else config_path(base))
    _update(merged, content)
    return merged


def _update(content: dict[str, Any], changes: dict[str, Any]) -> None:
    """Replace values of nested dicts, in place."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            _update(content[key], value)
        else:
            content[key] = value


def merge_options(cfg: CfgNode, cfg_list: Sequence[str]) -> None:
    """fast-reid's ``cfg.merge_from_list``, with every error in one line.

    A whole number is accepted for a float, and a word for a list, as in DATASETS.NAMES HITSZVCM.
    Removed keys are ignored.

    Raises:
        UserError: as :func:`load_config`.
    """
    if len(cfg_list) % 2:
        raise UserError(f"{cfg_list[-1]} has no value: write KEY VALUE")
    with _in_one_line(cfg, "the command line"):
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            if is_removed(key, value):
                continue
            current, given = _value(cfg, key), CfgNode._decode_cfg_value(value)
            if isinstance(current, float) and type(given) is int:
                _merge_from_list(cfg, [key, float(given)])
            elif isinstance(current, list | tuple) and isinstance(given, str) and given:
                _merge_from_list(cfg, [key, given.split(",")])
            else:
                _merge_from_list(cfg, [key, value])


def fresh_seed(cfg: CfgNode) -> int:
    if cfg.SEED >= 2**31:
        raise UserError(f"SEED is {cfg.SEED}: use a number below {2**31}, or -1 for a new one")
    return cfg.SEED if cfg.SEED >= 0 else secrets.randbelow(2**31)


@contextlib.contextmanager
def _in_one_line(cfg: CfgNode, source: str) -> Iterator[None]:
    """Raise what yacs and YAML raise as a :class:`UserError`."""
    yacs = logging.getLogger("yacs.config")
    previous, yacs.disabled = yacs.disabled, True  # it logs an error before it raises it
    try:
        yield
    except Exception as error:
        # yacs prints both values of a mismatch, which may be whole sections
        text = re.sub(r" with values \(.{200,}\) for ", " for ", str(error), flags=re.DOTALL)
        unknown = re.search(r"Non-existent (?:config )?key: ([^'\"]+)", text)
        if unknown:
            text = f"there is no config key {unknown[1]}{nearest_key(unknown[1], cfg)}"
        elif isinstance(error, TypeError | AttributeError):
            text = "this is not a config of sections, keys and values"
        elif isinstance(error, RecursionError):
            text = "_BASE_ leads back to the file itself, or a value is nested too deeply"
        raise UserError(f"{source}: {' '.join(text.split())[:400]}") from error
    finally:
        yacs.disabled = previous
    for key, value in _items(cfg):
        if value is None and _value(get_cfg(), key) is not None:
            raise UserError(f"{source}: {key} has no value; set one, or leave the key out")


def nearest_key(key: str, cfg: CfgNode) -> str:
    """``; did you mean SOLVER.BASE_LR?``, or nothing if no key is similar."""
    keys = [name for name, _ in _items(cfg)]
    near = difflib.get_close_matches(key.partition("=")[0].upper(), keys, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _items(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys and values, of sections too: ``("SOLVER", ...)``, ``("SOLVER.BASE_LR", 0.1)``."""
    for key, value in node.items():
        yield prefix + key, value
        if isinstance(value, CfgNode):
            yield from _items(value, f"{prefix}{key}.")


def _value(cfg: CfgNode, key: str) -> Any:
    """The value of a key with dots; None if there is no such key."""
    return dict(_items(cfg)).get(key)
