"""The methods, one folder each, with the same file names in each.

``model.py`` holds the meta-architecture, ``layers.py`` and ``heads.py`` its parts, ``losses.py``
its losses, ``config.py`` its config keys, ``convert.py`` reads published weights, ``README.md``
explains it. ``example`` is a folder to copy; it is loaded by ``--import
fastreid_star.methods.example`` only.
"""

from fastreid.config import CfgNode

from fastreid_star.methods import (
    auxnet,
    ddag,
    dinogrl,
    iban,
    lba,
    m3reid,
    mitml,
    mpanet,
    sad,
    sgiel,
    star,
    vcd,
)

METHODS = (sad, star, dinogrl, mitml, iban, auxnet, m3reid, ddag, mpanet, lba, sgiel, vcd)


def add_method_configs(cfg: CfgNode) -> None:
    """Add the config keys of all methods to a fast-reid config, in place."""
    for method in METHODS:
        method.add_config(cfg)


def training_keys() -> tuple[str, ...]:
    """The config keys of all methods that do not change the features of a trained model."""
    return tuple(key for method in METHODS for key in method.TRAINING_KEYS)
