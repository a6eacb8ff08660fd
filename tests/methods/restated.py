"""Equations that several methods share, written down once more, in plain torch."""

import torch


def norm(x, p, name, training):
    """BatchNorm of rows without a shift."""
    mean, var = (x.mean(0), x.var(0, unbiased=False)) if training else (
        p[f"{name}.running_mean"], p[f"{name}.running_var"])  # fmt: skip
    return (x - mean) / (var + 1e-5).sqrt() * p[f"{name}.weight"]


def lstm(p, name, frames):
    """Two layers of cells, one step after the other, over ``[B, T, D]``: the last output."""
    steps = [frames[:, i] for i in range(frames.shape[1])]
    for layer in (0, 1):
        wi, wh, bi, bh = (
            p[f"{name}.{n}_l{layer}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = torch.zeros_like(steps[0])
        outputs = []
        for step in steps:
            i, f, g, o = (step @ wi.T + bi + h @ wh.T + bh).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        steps = outputs
    return steps[-1]


def gate(p, position, context, frame):
    name = f"gates.gates.{position}"
    mixed = context @ p[f"{name}.context.weight"].T + p[f"{name}.context.bias"] + frame
    hidden = (mixed / 2 @ p[f"{name}.squeeze.weight"].T).clamp(min=0)
    return (hidden @ p[f"{name}.excite.weight"].T).sigmoid()


def cross_entropy(logits, labels):
    rows = [row[n] - row.exp().sum().log() for row, n in zip(logits, labels, strict=True)]
    return -sum(rows) / len(rows)


def batch_hard(x, labels):
    total = 0
    for a in range(len(x)):
        d = [((x[a] - y).square().sum() + (0 if b != a else 1)).sqrt() for b, y in enumerate(x)]
        positive = max(d[b] for b in range(len(x)) if labels[b] == labels[a] and b != a)
        negative = min(d[b] for b in range(len(x)) if labels[b] != labels[a])
        total = total + (0.3 + positive - negative).clamp(min=0)
    return total / len(x)


def unusual(model):
    """Nothing at a special value: norms, and classifiers that are all but 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    with torch.no_grad():
        model.heads.weight.mul_(20)
    return model


def assert_same_step(model, twin, found, expected, *, relative):
    """Losses are equal and at work, and so are the gradients of both copies of a model.

    Args:
        model, twin: the copies that gave the losses.
        found, expected: losses by name, in order.
        relative: of the largest gradient of a parameter.
    """
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)
        assert value > 1e-3, f"{name} is at work"
    sum(found.values()).backward()
    sum(expected.values()).backward()
    wanted = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = wanted[name].grad.abs().max()
            difference = (parameter.grad - wanted[name].grad).abs().max()
            assert difference < 1e-9 + relative * scale, name
        else:
            assert parameter.grad is None, name
