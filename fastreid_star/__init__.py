"""Video visible-infrared person re-identification with fast-reid: STAR and its baseline SAD.

Importing this package makes fastreid 1.4.0 work with current torch, adds config keys to fast-reid's
defaults and registers its datasets, meta-architectures and heads.
"""

from fastreid_star import compat

compat.apply()

from fastreid.config import defaults as _defaults  # noqa: E402

from fastreid_star import data, modeling  # noqa: E402, F401  (they register themselves)
from fastreid_star.config import add_plugin_config  # noqa: E402
from fastreid_star.methods import add_method_configs  # noqa: E402


def add_star_config(cfg):
    """Add all config keys of the plugin and of its methods to a fast-reid config, in place."""
    add_plugin_config(cfg)
    add_method_configs(cfg)
    return cfg


if "FRAME_CORRECTOR" not in _defaults._C.MODEL:  # importlib.reload
    add_star_config(_defaults._C)

__version__ = "0.2.0.dev0"
__all__ = ["__version__", "add_star_config"]
