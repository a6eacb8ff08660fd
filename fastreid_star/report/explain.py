"""Show what a network looked at: its weights over clips, its attention on frames, and Grad-CAM.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
localization", ICCV 2017. Here the gradient is not of a class score but of the similarity of a
clip's feature to a fixed feature, by which the network ranks. This module has all calls of the
report to a network, other than the extraction of features.

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
from fastreid_star.evaluation.similarity import pair_similarity
from fastreid_star.report import plots
from fastreid_star.report.draw import Album, Clip, Picture, draw_attention, filmstrip

SAMPLE = 500  # clips whose weights are compared with those of the untrained network
CONSTANT = 0.1  # a weight whose spread over clips is below this share of its mean
NAMES = {
    "bone_weights": "The bone weights (1)-(3)",
    "frame_attention": "The attention between frames (4)",
    "frame_updates": "The correction of the frames (7)",
    "joint_attention": "The joint attention (10)",
    "part_weights": "The weights of the body parts (13)",
    "exponent_weights": "The exponent weights (13)",
}
Weights = Mapping[str, np.ndarray]


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

    That is one whose values over clips, from the 5th to the 95th percentile, span less than a tenth
    of their mean, for every joint, part or other component.
    """
    sentences = []
    for name, values in weights.items():
        flat = values.reshape(len(values), -1)
        low, high = np.percentile(flat, (5, 95), axis=0)
        spread = float(((high - low) / np.maximum(flat.mean(0), 1e-12)).max())
        if name in NAMES and spread < CONSTANT:
            sentences.append(
                f"{NAMES[name]}: hardly any dependence on the input. Over 90 % of the clips the "
                f"values vary by {100 * spread:.1f} % of their mean. (A warning: less than "
                f"{100 * CONSTANT:.0f} %.)"
            )
    return sentences


def weight_charts(trained: Weights, random: Weights, exponents: Sequence[float]) -> list[Markup]:
    """The weights over clips, beside those of the untrained network, on fixed axes.

    Args:
        trained, random: of :func:`sample_weights`.
        exponents: MODEL.STAR.EXPONENTS.
    """
    joints = [name.replace("_", " ") for name in JOINT_NAMES]
    bones = [f"{joints[start]} – {joints[end]}" for start, end in BONES]
    powers = [f"p = {p:g}" for p in exponents]
    frames = [f"frame {number}" for number in range(1, 1000)]
    charts = []
    for key, title, label, limit, names in (
        ("frame_updates", "Correction of the frames (7)", "share of the feature", 1, frames),
        ("part_weights", "Body parts (13)", "weight", 1, list(PARTS)),
        ("exponent_weights", "Exponents (13)", "share", 1, powers),
        ("frame_attention", "Attention to the frames (4)", "share", 1, frames),
        ("joint_attention", "Joint attention (10)", "received, 1 is the average", 2, joints),
        ("bone_weights", "Bones (1)–(3)", "share", 0.25, bones),
    ):
        if key in trained:
            groups = {"trained": trained[key], "untrained": random[key]}
            # [clips, T, weights]: the mean over the frames
            groups = {run: v.mean(1) if v.ndim == 3 else v for run, v in groups.items()}
            names = names[: groups["trained"].shape[1]]
            charts.append(plots.ranges(groups, names, title=title, x_label=label, limit=limit))
    return charts


def attention(model: nn.Module, album: Album, positions: Mapping[str, int]) -> list[dict]:
    """What the network looked at in some clips.

    Args:
        model: reads skeletons.
        album: the clips.
        positions: role -> position of the tracklet.

    Returns:
        for each clip its role, title, picture with a circle on each joint, and correction of the
        frames.
    """
    clips = {role: album.clip(position) for role, position in positions.items()}
    seen = explain_clips(model, [clip.item for clip in clips.values()])
    found = []
    for row, (role, clip) in enumerate(clips.items()):
        circles, alt = None, f"{len(clip.frames)} frames of the {clip.title}"
        if "joint_attention" in seen:
            alt += ", a circle for the attention of each joint"
            shape, received = clip.frames.shape[1:3], seen["joint_attention"][row]
            circles = [
                draw_attention(*each, shape) for each in zip(clip.joints, received, strict=True)
            ]
        strip = filmstrip(list(clip.frames), circles, height=album.height, alt=alt, style="rings")
        updates = seen["frame_updates"][row].tolist() if "frame_updates" in seen else None
        found.append({"role": role, "title": clip.title, "picture": strip, "updates": updates})
    return found


def similarity_maps(
    model: nn.Module, clip: Clip, feature: torch.Tensor
) -> tuple[np.ndarray, float]:
    """Grad-CAM of the similarity of a clip to the feature of another clip.

    The gradient reaches the frames only; skeletons count as fixed.

    Args:
        model: one of this plugin's networks, in evaluation mode. Its weights must not require
            gradients: none may run back through the LSTM, which cuDNN refuses in evaluation mode.
        clip: to be explained.
        feature: of the other clip.

    Returns:
        maps [T, H, W] from 0 to 1, on one scale for the whole clip; and the similarity.
    """
    evaluated: Any = getattr(model, "evaluated", model)  # an averaged network, say
    layer, to_maps = target_layer(evaluated.backbone)
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        batch = collate_clips([clip.item])
        images = batch["images"].float().to(next(model.parameters()).device).requires_grad_()
        found = model({**batch, "images": images})[0]
        similarity = pair_similarity(found, feature.to(found))
        (gradient,) = torch.autograd.grad(similarity, kept[-1])
    finally:
        handle.remove()
    activations = to_maps(kept[-1].detach())
    weights = to_maps(gradient).mean((2, 3), keepdim=True)
    maps = (weights * activations).sum(1, keepdim=True).clamp(min=0)
    size = clip.frames.shape[1:3]
    maps = torch.nn.functional.interpolate(maps.float(), size, mode="bilinear")[:, 0].cpu()
    return (maps / maps.max().clamp(min=1e-12)).numpy(), float(similarity.detach())


def has_gradcam(model: Any) -> bool:
    """Whether the frames pass the model's backbone. A stream of its own may read them instead."""
    return hasattr(model.backbone, "spatial_dims")


def target_layer(
    backbone: Any,
) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """The last stage with maps, and a function from its output to maps ``[N, C, h, w]``.

    The last stage of a transformer keeps only the class token; the third has tokens of all patches.
    """
    if backbone.spatial_dims == (2, 3):
        follow = backbone.non_local["4"] if "4" in backbone.non_local else backbone.stages[3:]
        return follow[-1], lambda maps: maps
    patches = backbone.visible_stem.patch_embed
    grid = (patches.num_y, patches.num_x)
    return backbone.stages[2], lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def gradcam(
    model: nn.Module, clip: Clip, feature: torch.Tensor, *, height: int, about: str
) -> tuple[float, Picture]:
    """The similarity, and :func:`similarity_maps` as a strip of frames `height` CSS pixels high."""
    maps, similarity = similarity_maps(model, clip, feature)
    frames = [blend(*pair) for pair in zip(clip.frames, maps, strict=True)]
    alt = f"{len(frames)} frames of the {clip.title}, colored by Grad-CAM of {about}"
    return similarity, filmstrip(frames, height=height, alt=alt)


def silhouettes(model: Any, clip: Clip, *, height: int) -> Picture:
    """The learned silhouettes over the frames of a clip: the person red, the support's rim blue.

    Args:
        model: has `silhouettes`, see :class:`fastreid_star.methods.dinogrl.DinoGRL`.
        clip: to be shown.
        height: of a frame in CSS pixels.
    """
    person, support = (found[0] for found in model.silhouettes(collate_clips([clip.item])))
    heat = torch.maximum(person.float(), 0.15 * support.float())[:, None]
    size = clip.frames.shape[1:3]
    maps = torch.nn.functional.interpolate(heat, size, mode="nearest")[:, 0].cpu().numpy()
    frames = [blend(*pair) for pair in zip(clip.frames, maps, strict=True)]
    alt = f"{len(frames)} frames of the {clip.title}, with the learned silhouettes"
    return filmstrip(frames, height=height, alt=alt)


def blend(frame: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map [H, W] from 0 to 1 in colors over its frame [H, W, 3] in gray."""
    gray = np.asarray(Image.fromarray(frame).convert("L"))[..., None]
    weight = 0.6 * np.sqrt(heat)[..., None]
    colors = 255 * matplotlib.colormaps["turbo"](heat)[..., :3]
    return np.rint((1 - weight) * gray + weight * colors).astype(np.uint8)
