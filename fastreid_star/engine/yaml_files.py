"""YAML files that are safe to be read: of a config's size, without loops, and no larger than they look."""

from __future__ import annotations

import os

import yaml

from fastreid_star.errors import UserError

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000  # once every alias is written out: ten lines of them can stand for a billion
DEEPEST = 50
BASE = "_BASE_"


def check_yaml(path: str) -> None:
    """Refuse what could not be read in a moment, in this file and in those it is based on.

    Args:
        path: of a YAML file, whose ``_BASE_`` may name another, as fast-reid reads it.

    Raises:
        UserError: it is no YAML, too large, too deep, or in the end based on itself.
    """
    seen: list[str] = []
    while True:
        real = os.path.realpath(path)
        if real in seen:
            raise UserError(
                f"config file {path} is in the end based on itself, by {BASE}: take that line out"
            )
        seen.append(real)
        content = _read(path)
        base = content.get(BASE) if isinstance(content, dict) else None
        if not isinstance(base, str) or base.startswith(("http://", "https://")):
            return  # fast-reid reads it, or says what is wrong with it
        path = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if "\0" in path or not os.path.isfile(path):
            raise UserError(f"{seen[-1]}: its {BASE}, {base[:200]!r}, does not exist")


def _read(path: str) -> object:
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES >> 20} MiB: it is no config")
        _size(yaml.compose(text, yaml.SafeLoader), {}, 0)
        return yaml.safe_load(text)
    except UserError as error:
        raise UserError(
            f"{path}: {error}" if str(error).startswith("its ") else str(error)
        ) from None
    except RecursionError as error:
        raise UserError(f"{path}: its values are nested too deeply") from error
    except Exception as error:  # a damaged file can raise anything from ValueError to IndexError
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): it is damaged, or no YAML") from error


def _size(node: yaml.Node | None, known: dict[int, int], depth: int) -> int:
    """How many values a node has, with those of every alias in it."""
    if depth > DEEPEST:
        raise UserError("its values are nested too deeply, or in themselves")
    if node is None or id(node) in known:
        return known.get(id(node), 0)
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_size(part, known, depth + 1) for part in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_size(part, known, depth + 1) for pair in node.value for part in pair)
    if size > MOST_VALUES:
        raise UserError(f"its aliases stand for more than {MOST_VALUES:,} values: it is no config")
    known[id(node)] = size
    return size
