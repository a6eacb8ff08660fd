"""MPANet has no config keys of its own: its losses and the keys of all methods select its parts."""

from fastreid.config import CfgNode as CN

TRAINING_KEYS: tuple[str, ...] = ()


def add_config(cfg: CN) -> None:
    """Add nothing."""
