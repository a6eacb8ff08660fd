"""An example method to copy: a layer, a loss and a model. Load it with ``--import``."""

from .losses import CenterLoss
from .model import AttentionReID

__all__ = ["AttentionReID", "CenterLoss"]
