"""Show what a network looked at: its weights over clips, its attention on frames, and Grad-CAM.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
localization", ICCV 2017. Here the gradient is not of a class score but of the cosine similarity of
a clip's feature to a fixed feature. This module has all calls of the report to a network, other
than the extraction of features.

Letters: T frames, V joints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from fastreid.config import CfgNode
from markupsafe import Markup
from PIL import Image
from torch import nn

from fastreid_star.coco import BONES, JOINT_NAMES, PARTS
from fastreid_star.data.clips import ClipDataset, collate_clips
from fastreid_star.engine.trainer import Trainer
from fastreid_star.report import plots
from fastreid_star.report.draw import (
    GAP,
    Album,
    Clip,
    Picture,
    draw_attention,
    encode,
    pixels,
    resize,
)

SAMPLE = 500  # clips whose weights are compared with those of the untrained network
CONSTANT = 0.1  # a weight whose spread over clips is below this share of its mean
NAMES = {
    "bone_weights": "The bone weights (1)-(3)",
    "frame_attention": "The attention between frames (4)",
    "frame_gates": "The frame gate (5)",
    "joint_attention": "The joint attention (10)",
    "part_weights": "The gate of the body parts (12)",
    "exponent_weights": "The exponent weights (13)",
}
Weights = Mapping[str, np.ndarray]


def reads_skeletons(model: nn.Module) -> bool:
    """Whether the network has weights to show."""
    return bool(getattr(model, "reads_skeletons", False))


def explain_clips(model: nn.Module, items: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """The network's weights for some clips, see :data:`NAMES`; zeros without skeletons."""
    explain: Any = model.explain
    return {k: v.cpu().double().numpy() for k, v in explain(collate_clips(items)).items()}


def sample_weights(model: nn.Module, dataset: ClipDataset, count: int = SAMPLE) -> Weights:
    """The weights for test clips that have skeletons, evenly chosen if there are more than `count`.

    Returns:
        name -> [clips, ...]
    """
    positions = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int))
    parts = []
    for some in np.array_split(positions, -(-len(positions) // 32)):
        items = [dataset[position] for position in some.tolist()]
        items = [item for item in items if item["has_skeleton"].any()]
        if items:
            parts.append(explain_clips(model, items))
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    )


def untrained(cfg: CfgNode, like: nn.Module) -> nn.Module:
    """A network of the same config with random weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    classes = getattr(like.heads, "weight", None)
    if classes is not None:
        cfg.MODEL.HEADS.NUM_CLASSES = len(classes)
    with torch.random.fork_rng():
        torch.manual_seed(cfg.SEED)
        return Trainer.build_model(cfg).eval()


def constant_weights(weights: Weights) -> list[str]:
    """A sentence for each weight that hardly depends on the clip.

    That is one whose values over clips, from the 5th to the 95th percentile, lie within a tenth of
    their mean, for every joint, part or other component.
    """
    sentences = []
    for name, values in weights.items():
        flat = values.reshape(len(values), -1)
        low, high = np.percentile(flat, (5, 95), axis=0)
        spread = float(((high - low) / np.maximum(flat.mean(0), 1e-12)).max())
        if name in NAMES and spread < CONSTANT:
            sentences.append(
                f"{NAMES[name]} hardly depends on its input: for 90 % of the clips it lies within "
                f"{100 * spread:.1f} % of its mean (the limit for this sentence is "
                f"{100 * CONSTANT:.0f} %)."
            )
    return sentences


def weight_charts(trained: Weights, random: Weights, exponents: Sequence[float]) -> list[Markup]:
    """The weights over clips, beside those of the untrained network, on fixed axes.

    Args:
        trained, random: of :func:`sample_weights`.
        exponents: MODEL.STAR.EXPONENTS.
    """
    joints = [name.replace("_", " ") for name in JOINT_NAMES]
    figures: dict[str, list] = {}  # title -> x label, limit of the axis, names, groups

    def add(title: str, label: str, limit: float, key: str, names: list[str], axis: int) -> None:
        """One weight a name: the mean over an axis of the weights [clips, ...]."""
        if key in trained:
            both = {"trained": trained[key], "untrained": random[key]}
            means = {run: values.mean(axis, keepdims=values.ndim == 2) if axis else values
                     for run, values in both.items()}  # fmt: skip
            figure = figures.setdefault(title, [label, limit, [], []])
            figure[2] += names[: means["trained"].shape[1]]
            figure[3].append(means)

    frames = [f"frame {number}" for number in range(1, 1000)]
    add("Gates", "mean gate", 1, "frame_gates", ["frames (5)"], 1)
    add("Gates", "mean gate", 1, "part_weights", [f"{part} (12)" for part in PARTS], 0)
    add("Exponents (13)", "share", 1, "exponent_weights", [f"p = {p:g}" for p in exponents], 0)
    add("Attention to the frames (4)", "mean share", 1, "frame_attention", frames, 1)
    add("Joint attention (10)", "received, 1 is the average", 2, "joint_attention", joints, 1)
    bones = [f"{joints[start]} – {joints[end]}" for start, end in BONES]
    add("Bones (1)–(3)", "share", 0.25, "bone_weights", bones, 1)
    return [
        plots.ranges(
            {run: np.concatenate([one[run] for one in means], axis=1) for run in means[0]},
            names,
            title=title,
            x_label=label,
            limit=limit,
        )
        for title, (label, limit, names, means) in figures.items()
    ]


def attention(model: nn.Module, album: Album, positions: Mapping[str, int]) -> list[dict]:
    """What the network looked at in some clips.

    Args:
        model: reads skeletons.
        album: the clips.
        positions: role -> position of the tracklet.

    Returns:
        for each clip its role, title, picture with a circle on each joint, and gates of the frames.
    """
    clips = {role: album.clip(position) for role, position in positions.items()}
    seen = explain_clips(model, [clip.item for clip in clips.values()])
    found = []
    for row, (role, clip) in enumerate(clips.items()):
        received = seen["joint_attention"][row] if "joint_attention" in seen else None
        gates = seen["frame_gates"][row].tolist() if "frame_gates" in seen else None
        picture = _marked(clip, received, album)
        found.append({"role": role, "title": clip.title, "picture": picture, "gates": gates})
    return found


def _marked(clip: Clip, received: np.ndarray | None, album: Album) -> Picture:
    """A strip with a circle for the attention [T, V] that each joint received."""
    strip = album.strip(clip)
    if received is None:
        return strip
    height, width = clip.frames.shape[1:3]
    shown = round(album.height * width / height)
    overlay = Markup()
    for number, (joints, values) in enumerate(zip(clip.joints, received, strict=True)):
        size = f'width="{shown}" height="{album.height}" viewBox="-.5 -.5 {width} {height}"'
        circles = draw_attention(joints, values, (height, width))
        overlay += Markup(f'<svg class="rings" x="{number * (shown + GAP)}" {size}>{circles}</svg>')
    alt = f"{strip.alt}, a circle for the attention of each joint"
    return Picture(strip.uri, strip.width, strip.height, alt, overlay)


def similarity_maps(
    model: nn.Module, clip: Clip, feature: torch.Tensor
) -> tuple[np.ndarray, float]:
    """Grad-CAM of the similarity of a clip to the feature of another clip.

    The gradient reaches the frames only; skeletons count as fixed.

    Args:
        model: one of this plugin's networks, in evaluation mode.
        clip: to be explained.
        feature: of the other clip.

    Returns:
        maps [T, H, W] from 0 to 1, on one scale for the whole clip; and the similarity.
    """
    batch = collate_clips([clip.item])
    layer, to_maps = target_layer(model.backbone)
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next(model.parameters()).device
    try:
        # Only the frames need a gradient. None runs back through the LSTM, which cuDNN refuses in
        # evaluation mode.
        for parameter in trainable:
            parameter.requires_grad_(False)
        images = batch["images"].float().to(device).requires_grad_()
        found = model({**batch, "images": images}).flatten()
        target = feature.flatten().to(found)
        similarity = torch.nn.functional.cosine_similarity(found, target, dim=0)
        (gradient,) = torch.autograd.grad(similarity, kept[-1])
    finally:
        handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
    activations = kept[-1].detach()
    if to_maps is not None:
        activations, gradient = to_maps(activations), to_maps(gradient)
    maps = (gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).clamp(min=0)
    size = clip.frames.shape[1:3]
    maps = torch.nn.functional.interpolate(maps.float(), size, mode="bilinear")[:, 0].cpu()
    return (maps / maps.max().clamp(min=1e-12)).numpy(), float(similarity.detach())


def target_layer(
    backbone: Any,
) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor] | None]:
    """The last stage with maps, and a function from its output to ``[N, C, h, w]`` if it needs one.

    The last stage of a transformer keeps only the class token; the third has tokens of all patches.
    """
    if backbone.spatial_dims == (2, 3):
        return backbone.stages[3], None
    patches = backbone.visible_stem.patch_embed
    grid = (patches.num_y, patches.num_x)
    return backbone.stages[2], lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def gradcam(
    model: nn.Module, clip: Clip, feature: torch.Tensor, *, height: int, about: str
) -> tuple[float, Picture]:
    """The similarity, and :func:`similarity_maps` as a strip of frames `height` CSS pixels high."""
    maps, similarity = similarity_maps(model, clip, feature)
    size = round(height * clip.frames.shape[2] / clip.frames.shape[1]), height
    images = [blend(*pair, size) for pair in zip(clip.frames, maps, strict=True)]
    corners = [(number * (size[0] + GAP), 0) for number in range(len(images))]
    alt = f"{len(images)} frames of the {clip.title}, colored by Grad-CAM of {about}"
    return similarity, encode(images, corners, alt=alt)


def blend(frame: np.ndarray, heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A map [H, W] from 0 to 1 in colors over its frame in gray, at a size in CSS pixels."""
    gray = np.asarray(resize(frame, size).convert("L"))
    warm = Image.fromarray(heat.astype(np.float32)).resize(pixels(size), Image.Resampling.BILINEAR)
    share = np.clip(np.asarray(warm), 0, 1)
    weight = 0.6 * np.sqrt(share)[..., None]
    colors = 255 * matplotlib.colormaps["turbo"](share)[..., :3]
    return Image.fromarray(
        np.rint((1 - weight) * gray[..., None] + weight * colors).astype(np.uint8)
    )
