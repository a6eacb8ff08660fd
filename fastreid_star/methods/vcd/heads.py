"""The head of a branch of VCD: an observation, and a representation of it.

Shapes: B clips, D feature width, d width of a representation, C identities.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import nn

from fastreid_star.modeling.heads import ClipHead

HIDDEN, REPRESENTATION = (1000, 500), 512


@REID_HEADS_REGISTRY.register()
class BranchHead(ClipHead):
    """A neck and a classifier with a bias, then an information bottleneck with its own classifier.

    Nothing is sampled: the bottleneck is a network of linear layers.

    Args:
        kwargs: see :class:`ClipHead`.
    """

    @configurable
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        classes, width = self.weight.shape
        self.bias = nn.Parameter(torch.zeros(classes))
        widths = (width, *HIDDEN)
        hidden = [
            layer
            for inputs, outputs in itertools.pairwise(widths)
            for layer in (nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
        ]
        self.compress = nn.Sequential(*hidden, nn.Linear(widths[-1], REPRESENTATION))
        self.classify_compressed = nn.Sequential(
            nn.Linear(REPRESENTATION, REPRESENTATION // 2),
            nn.BatchNorm1d(REPRESENTATION // 2),
            nn.LeakyReLU(0.1),
            nn.Dropout(0.5),
            nn.Linear(REPRESENTATION // 2, classes),
        )
        linear = [layer for layer in self.compress if isinstance(layer, nn.Linear)]
        last = [layer for layer in self.classify_compressed if isinstance(layer, nn.Linear)]
        for layer in (*linear, *last):
            nn.init.zeros_(layer.bias)
        for layer in linear:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        for layer in last:
            nn.init.normal_(layer.weight, std=0.001)

    def observe(self, features: torch.Tensor) -> torch.Tensor:
        """Pooled features ``[B, D]`` to observations v ``[B, D]``, after the neck."""
        return self.bottleneck(features[..., None, None])[..., 0, 0]

    def outputs(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """What training needs of pooled features ``[B, D]``.

        Returns:
            `observations` v ``[B, D]`` and `observation_logits` ``[B, C]``, `representations` z
            ``[B, d]`` and `representation_logits` ``[B, C]``.
        """
        seen = self.observe(features)
        kept = self.compress(seen)
        return {
            "observations": seen,
            "observation_logits": F.linear(seen, self.weight, self.bias),
            "representations": kept,
            "representation_logits": self.classify_compressed(kept),
        }
