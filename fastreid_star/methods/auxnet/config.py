"""AuxNet has no config keys of its own: DATASETS.AUXILIARY and a loss select the auxiliary set."""

from fastreid.config import CfgNode as CN

TRAINING_KEYS: tuple[str, ...] = ()


def add_config(cfg: CN) -> None:
    """Add nothing."""
