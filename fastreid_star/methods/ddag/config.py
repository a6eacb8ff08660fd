"""DDAG has no config keys of its own: its losses and the keys that all methods share select all."""

from fastreid.config import CfgNode as CN

TRAINING_KEYS: tuple[str, ...] = ()


def add_config(cfg: CN) -> None:
    """Add nothing."""
