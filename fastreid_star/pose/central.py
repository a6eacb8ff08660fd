"""Several people in one crop: which of them a joint is taken from.

A top-down network answers a crop with one map of scores for each joint, and its decoder takes the highest peak, be it
of a passer-by who is cut off at the crop's edge. Here the peak is chosen by its score times a window that falls off
from the middle of the crop to its sides,

    score * exp(-((x - middle) / (FALL_OFF * width of the crop))^2 / 2),

1 in the middle and 0.61 at the edges: of two similar peaks the more central one is taken, one that is 1.65 times as
high is taken wherever it is. People stand beside each other, so there is no window along y. Where the chosen peak is
not the highest, what is positive elsewhere in the map is set to 0; the library's own decoder then finds the chosen one
and refines it as ever. A map whose highest peak is the chosen one is not touched at all: a crop of one person gives the
joints that the library gives, to the last digit.

Peaks count as two where each is the highest within REACH of the map's width, an eighth. A network's peaks are 2 cells
of 48 wide (their standard deviation); what lies closer together is one. A SimCC network scores x and y apart, and
nothing says which peak of y goes with which of x: there x is chosen so, and y is left as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

FALL_OFF = 0.5
REACH = 1 / 8
RULE = f"highest score * exp(-((x - middle) / ({FALL_OFF} * crop width))^2 / 2)"


def keep_central_peaks(maps: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Maps in which the central confident peak is the highest.

    Args:
        maps: [N,K,h,w], scores; SimCC's for x as [N,K,1,w].
        widths: [N], the share of the map's width that each crop takes; its middle is the map's.

    Returns:
        [N,K,h,w]: `maps`, with what is positive set to 0 away from the chosen peak where that is not the highest.
    """
    height, width = maps.shape[-2:]
    reach = max(1, round(REACH * width))
    down = min(reach, height - 1)
    columns = torch.arange(width, device=maps.device)
    rows = torch.arange(height, device=maps.device)
    distance = (columns - (width - 1) / 2) / (FALL_OFF * width * widths.to(maps)[:, None])
    window = torch.exp(-(distance**2) / 2)[:, None, None, :]

    around = F.max_pool2d(maps, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    around = F.max_pool2d(around, (2 * down + 1, 1), stride=1, padding=(down, 0))
    weighted = torch.where(maps == around, maps, 0).clamp(min=0) * window

    highest = maps.flatten(2).argmax(2, keepdim=True)
    chosen = weighted.flatten(2).argmax(2, keepdim=True)
    better = weighted.flatten(2).gather(2, chosen) > weighted.flatten(2).gather(2, highest)

    def off(center: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return (positions - center).abs() > reach

    x, y = chosen % width, torch.div(chosen, width, rounding_mode="floor")
    other = off(x, highest % width) | off(y, torch.div(highest, width, rounding_mode="floor"))
    elsewhere = off(x, columns)[:, :, None, :] | off(y, rows)[:, :, :, None]
    blanked = (better & other)[..., None] & elsewhere
    return torch.where(blanked, maps.clamp(max=0), maps)
