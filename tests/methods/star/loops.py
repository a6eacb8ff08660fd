"""The GAT-GeM head (8)-(13), written from the paper in plain loops."""

import torch

from fastreid_star.coco import BONES, PARTS


def loop_gat_layer(state, name, heads, x, ok, near):
    """Equation (10), a node at a time."""
    weight, bias = state[f"{name}.lin.weight"], state[f"{name}.bias"]
    out = []
    for i in range(len(x)):
        parts = []
        for h, (w, a_s, a_d) in enumerate(
            zip(
                weight.chunk(heads),
                state[f"{name}.att_src"][0, 0],
                state[f"{name}.att_dst"][0, 0],
                strict=True,
            )
        ):
            sources = [i] + [j for j in near[i] if ok[j]]
            e = torch.stack([a_d @ (w @ x[i]) + a_s @ (w @ x[j]) for j in sources])
            alpha = torch.softmax(torch.where(e > 0, e, 0.2 * e), 0)
            total = sum(a * (w @ x[j]) for a, j in zip(alpha, sources, strict=True))
            parts.append(total + bias.chunk(heads)[h])
        out.append(torch.cat(parts))
    out = torch.stack(out)
    return torch.where(out > 0, out, torch.exp(out) - 1)


def loop_norm(state, name, x):
    scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def loop_nodes(state, skeleton, ok, graph):
    """Equations (8)-(10) of one clip: h' ``[T, V, 12]``."""
    length = len(skeleton)
    joints = skeleton.clone()
    points = skeleton[ok][:, :2]
    if graph == "normalized":
        scale = (points - points.mean(0)).square().sum(1).mean().sqrt()
        joints[..., :2] = (skeleton[..., :2] - points.mean(0)) / scale
    elif graph == "standardized":
        own = [frame[seen][:, :2] for frame, seen in zip(skeleton, ok, strict=True) if seen.any()]
        around = torch.cat([xy - xy.mean(0) for xy in own])
        scale = around.square().sum(1).mean().sqrt()
        joints[..., :2] = (skeleton[..., :2] - points.mean(0)) / scale
        for t in range(length):
            row = loop_norm(state, "node_norm", joints[t].flatten()).view(17, 3)
            joints[t] = row * skeleton[t, :, 2:]
    joints = torch.where(ok[..., None], joints, torch.zeros_like(joints)).flatten(0, 1)
    near = {i: [] for i in range(17 * length)}
    for t in range(1 if graph == "release" else length):
        for i, j in BONES:
            near[17 * t + i].append(17 * t + j)
            near[17 * t + j].append(17 * t + i)
    for i in range(17 * (length - 1)):
        near[i].append(i + 17)
        near[i + 17].append(i)
    h = loop_gat_layer(state, "gat.conv1", 2, joints, ok.flatten(), near)
    h = loop_gat_layer(state, "gat.conv2", 1, h, ok.flatten(), near)
    if "gat.norm.weight" in state:
        h = loop_norm(state, "gat.norm", h)
    return h.view(length, 17, -1) * ok[..., None]


def loop_gem(frames, p):
    """Equation (11), with the clamp and the root's 1e-12."""
    return (sum(x.clamp(min=1e-6) ** p for x in frames) / len(frames) + 1e-12) ** (1 / p)


def loop_aggregate(model, frames, skeleton, ok, edge_state):
    """Equations (11)-(13) of one clip, part by part and exponent by exponent."""
    state = model.state_dict()
    nodes = loop_nodes(state, skeleton, ok, model.graph)
    pooled = [loop_gem(frames, p) for p in model.exponents]
    if model.guide == "release":
        flat, width = nodes.flatten(), frames.shape[1]
        bins = [  # adaptive average pooling
            flat[len(flat) * d // width : -(-len(flat) * (d + 1) // width)].mean()
            for d in range(width)
        ]
        guide = loop_norm(state, "guide_norm", torch.cat([edge_state, torch.stack(bins)]))
        logits = [
            w @ guide + b
            for w, b in zip(
                state["guide_layer.weight"].chunk(len(pooled)),
                state["guide_layer.bias"].chunk(len(pooled)),
                strict=True,
            )
        ]
        weights = torch.softmax(torch.stack(logits), 0)
        return sum(w * g for w, g in zip(weights, pooled, strict=True))
    if model.guide == "parts":
        added = []
        for t in range(len(nodes)):
            if not ok[t].any():
                continue
            tokens, seen = torch.zeros(len(PARTS), nodes.shape[2]).double(), []
            for p, joints in enumerate(PARTS.values()):
                rows = [nodes[t, i] for i in joints if ok[t, i]]
                if rows:
                    tokens[p] = sum(rows) / len(rows)
                    seen.append(p)
            tokens = loop_norm(state, "token_norm", tokens.flatten()).view(len(PARTS), -1)
            total = sum(state["gate_weight"][p] @ tokens[p] + state["gate_bias"][p] for p in seen)
            added.append(total.clamp(min=0))
        return sum(pooled) / len(pooled) + sum(added) / len(added)
    tokens = []
    for joints in PARTS.values():
        rows = [nodes[t, i] for t in range(len(nodes)) for i in joints if ok[t, i]]
        tokens.append(sum(rows) / len(rows))
    tokens = loop_norm(state, "token_norm", torch.cat(tokens)).view(len(PARTS), -1)
    logits = torch.stack(
        [
            torch.stack(
                [
                    state["gate_weight"][k, p] @ tokens[p] + state["gate_bias"][k, p]
                    for p in range(len(PARTS))
                ]
            )
            for k in range(len(pooled))
        ]
    )
    total = 0
    for k, g in enumerate(pooled):
        for p in range(len(PARTS)):
            total = total + g / (1 + torch.exp(-logits[k, p]))
    return 2 * total / (len(pooled) * len(PARTS))
