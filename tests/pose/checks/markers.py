"""Crops with a colored blob for each joint, and a stand-in for a perfectly trained network, which finds the blobs.

What the network sees is a person: where the picture is mirrored, the right eye looks like a left one. Two more blobs,
west and east, tell it whether it is.
"""

from itertools import product

import numpy as np

from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS

# 19 directions in the space of red, green and blue, at least 15 degrees apart
COLORS = np.array([color for color in product((0, 0.5, 1), repeat=3) if max(color) == 1])
WEST, EAST = 17, 18
BLOB = 1.6  # pixels of the crop

# width, height; odd ones as tracklets have them, and one that is wider than the network's input
SIZES = [(61, 143), (73, 145), (97, 201), (128, 256), (200, 91)]


def plant(width, height, seed=0):
    """A black crop, uint8 [height,width,3] in RGB, with its blobs, and where the joints' are: [17,2]."""
    rng = np.random.default_rng(seed)
    columns = round(np.sqrt(len(COLORS) * width / height))
    rows = -(-len(COLORS) // columns)
    cells = rng.permutation([(x, y) for y in range(rows) for x in range(columns)])
    order = np.argsort(cells[:, 0], kind="stable")
    west, east = order[0], order[-1]
    others = [cell for cell in range(len(cells)) if cell not in (west, east)][:NUM_JOINTS]
    cells = cells[[*others, west, east]]
    points = (cells + 0.5) * [width / columns, height / rows] + rng.uniform(-3, 3, (len(COLORS), 2))
    y, x = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3))
    for (px, py), color in zip(points, COLORS, strict=True):
        image += 255 * color * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * BLOB**2))[..., None]
    return np.round(image.clip(0, 255)).astype(np.uint8), points[:NUM_JOINTS]


def find(image):
    """Where the joints seem to be in a picture, [H,W,3] in RGB, 0 to 255: [17,2]."""
    strength = image.max(axis=2)
    directions = image / np.maximum(np.linalg.norm(image, axis=2, keepdims=True), 1)
    likeness = directions @ (COLORS / np.linalg.norm(COLORS, axis=1, keepdims=True)).T
    color = likeness.argmax(axis=2)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    points = []
    for index in range(len(COLORS)):
        weight = np.where(color == index, (strength - 50).clip(0), 0)
        assert weight.sum() > 0, f"no blob of color {COLORS[index]}"
        points.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    points = np.array(points)
    mirrored = points[WEST, 0] > points[EAST, 0]
    return points[list(LEFT_RIGHT)] if mirrored else points[:NUM_JOINTS]


def odd_crops(count, seed=0):
    """Crops of smooth noise, uint8, of sizes that differ."""
    rng = np.random.default_rng(seed)
    crops = []
    for index in range(count):
        height, width = 97 + 7 * index, 41 + 5 * index
        coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        crops.append(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])
    return crops


def refused(call, *words):
    """Check that a call ends in a UserError of one line with these words."""
    from fastreid_star.errors import UserError

    try:
        call()
    except UserError as error:
        text = str(error)
        assert "\n" not in text, text
        for word in words:
            assert word in text, f"{word!r} is not in: {text}"
        return
    raise AssertionError(f"not refused; expected: {words}")
