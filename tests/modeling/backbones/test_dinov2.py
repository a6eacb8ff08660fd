"""DINOv2's transformer, its weights in two layouts, and the frozen extractor."""

import math

import pytest
import torch

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones.dinov2 import Dinov2, resize_positions
from fastreid_star.modeling.backbones.dinov2_weights import read_dinov2
from fastreid_star.modeling.backbones.two_stream import build_two_stream
from fastreid_star.modeling.layers.frozen_tokens import FrozenTokens
from fastreid_star.report.explain import target_layer

from ...tiny import tiny_config


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resize_line(values, count):
    """One axis of the original's bicubic resize with the factor (count + 0.1) / M, by hand."""
    side, scale = len(values), (count + 0.1) / len(values)
    rows = []
    for i in range(count):
        center = (i + 0.5) / scale - 0.5
        first = math.floor(center)
        picked = [(first + k, cubic(center - (first + k))) for k in range(-1, 3)]
        rows.append(sum(w * values[min(max(j, 0), side - 1)] for j, w in picked))
    return torch.stack(rows)


def test_the_position_embedding_is_resized_as_in_the_original():
    maps = torch.randn(37, 37, 3, dtype=torch.float64)
    expected = resize_line(maps, 32)  # rows
    expected = resize_line(expected.transpose(0, 1), 16).transpose(0, 1)
    found = resize_positions(maps.reshape(-1, 3), (32, 16))
    torch.testing.assert_close(found, expected.reshape(-1, 3), rtol=0, atol=1e-12)


def test_the_trained_grid_keeps_its_position_embedding():
    positions = torch.randn(16, 3)
    assert resize_positions(positions, (4, 4)) is positions


def restated(state, images, grid, depth, heads):
    """The transformer in float64, one head and one token at a time where that is clearer."""
    s = {name: value.double() for name, value in state.items()}

    def norm(x, name):
        centered = x - x.mean(-1, keepdim=True)
        x = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * s[f"{name}.weight"] + s[f"{name}.bias"]

    def linear(x, name):
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    patch = s["patch_embed.proj.weight"].shape[-1]
    tokens = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            piece = images[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
            weight = s["patch_embed.proj.weight"].flatten(1)
            tokens.append(piece.flatten(1) @ weight.T + s["patch_embed.proj.bias"])
    x = torch.stack(tokens, 1) + resize_positions(s["pos_embed"][0, 1:], grid)
    first = (s["cls_token"] + s["pos_embed"][:, :1]).expand(len(images), -1, -1)
    x = torch.cat([first, x], 1)
    outputs = []
    for i in range(depth):
        name = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        width = q.shape[-1] // heads
        found = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / width**0.5).softmax(-1)
            found.append(weights @ v[..., part])
        x = x + s[f"{name}.ls1.gamma"] * linear(torch.cat(found, -1), f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + s[f"{name}.ls2.gamma"] * linear(hidden, f"{name}.mlp.fc2")
        outputs.append(x)
    return norm(x, "norm")[:, 1:], [each[:, 1:] for each in outputs]


@pytest.fixture
def network():
    net = Dinov2(width=128, depth=8, patch=3, side=5, grid=(4, 2))
    for name, value in net.named_parameters():
        torch.nn.init.normal_(value, 1.0 if "norm" in name or "gamma" in name else 0.0, 0.1)
    return net


def test_tokens_equal_a_restatement(network):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(3, 3, 12, 6, dtype=torch.float64)
    last, outputs = restated(state, images, (4, 2), depth=8, heads=2)
    tokens = FrozenTokens(network.double())(images)
    assert tokens.last.shape == (3, 128, 4, 2)
    torch.testing.assert_close(tokens.last.flatten(2).transpose(1, 2), last, rtol=0, atol=1e-8)
    joined = torch.cat([outputs[1], outputs[3], outputs[5], outputs[7]], -1)
    centered = joined - joined.mean(-1, keepdim=True)
    joined = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(tokens.blocks.flatten(2).transpose(1, 2), joined, rtol=0, atol=1e-8)


def test_chunks_do_not_change_tokens(network):
    tokens = FrozenTokens(network)
    images = torch.randn(70, 3, 9, 9)  # resized to the grid; more than two chunks
    whole = tokens(images)
    for one in (0, 33, 69):
        torch.testing.assert_close(tokens(images[one : one + 1]).last[0], whole.last[one])


def as_transformers(state, version):
    """The same weights as transformers names them."""
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    found = {"embeddings.mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    attention = "attention.attention." if version == 4 else "attention."
    projections = ("query", "key", "value") if version == 4 else ("q_proj", "k_proj", "v_proj")
    output = "attention.output.dense" if version == 4 else "attention.o_proj"
    for name, value in state.items():
        name = names.get(name, name)
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("blocks.", "encoder.layer.").replace(".ls", ".layer_scale")
        name = name.replace(".gamma", ".lambda1").replace("attn.proj", output)
        name = "layernorm" + name[4:] if name.startswith("norm.") else name
        if "attn.qkv" in name:
            for part, projection in zip(value.chunk(3), projections, strict=True):
                found[name.replace("attn.qkv", attention + projection)] = part
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("version", [4, 5])
def test_weights_of_transformers_are_read(network, version, tmp_path):
    torch.save(as_transformers(network.state_dict(), version), tmp_path / "pytorch_model.bin")
    found = read_dinov2(str(tmp_path))
    assert found.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value), name


def test_the_original_file_is_read(network, tmp_path):
    state = {"mask_token": torch.zeros(1, 128), **network.state_dict()}
    torch.save(state, tmp_path / "dinov2.pth")
    tokens = FrozenTokens.build(str(tmp_path / "dinov2.pth"), (4, 2))
    images = torch.randn(1, 3, 12, 6)
    assert torch.equal(tokens(images).last, FrozenTokens(network)(images).last)


def test_vits14_has_the_published_names_and_sizes():
    net = Dinov2.of_size("vits14", (32, 16))
    state = {**net.state_dict(), "mask_token": torch.zeros(1, 384)}
    assert len(state) == 175
    assert sum(value.numel() for value in state.values()) == 22_056_576


def test_weights_that_do_not_fit_are_refused(network, tmp_path):
    state = network.state_dict()
    with pytest.raises(UserError, match="registers"):
        Dinov2.of_weights({**state, "register_tokens": torch.zeros(1, 4, 128)}, (4, 2))
    with pytest.raises(UserError, match="no weights"):
        Dinov2.of_weights({"conv1.weight": torch.zeros(1)}, (4, 2))
    with pytest.raises(UserError, match="no weights"):
        Dinov2.of_weights({**state, "pos_embed": torch.zeros(5)}, (4, 2))
    for block in ("blocks.9999999999.norm1.weight", "blocks.x", "blocks."):
        with pytest.raises(UserError, match="do not fit a DINOv2"):
            Dinov2.of_weights({**state, block: torch.zeros(1)}, (4, 2))
    torch.save({7: torch.zeros(1)}, tmp_path / "numbers.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_dinov2(str(tmp_path / "numbers.pth"))
    with pytest.raises(UserError, match="do not exist"):
        FrozenTokens.build("vits15", (4, 2))
    with pytest.raises(UserError, match="contains neither"):
        read_dinov2(str(tmp_path))


def test_frozen_weights_are_no_parameters_but_move_with_the_module(network):
    tokens = torch.nn.Sequential(FrozenTokens(network)).train()
    assert list(tokens.parameters()) == []
    assert list(tokens.state_dict()) == ["0.checksum"]
    assert not tokens[0].network.training
    tokens.double()
    assert tokens[0].network.norm.weight.dtype == torch.float64


def test_a_checkpoint_of_other_frozen_weights_is_refused(network):
    tokens = FrozenTokens(network)
    state = tokens.state_dict()
    FrozenTokens(network).load_state_dict(state)
    with torch.no_grad():
        network.norm.bias[0] += 1e-3
    with pytest.raises(UserError, match="other weights of DINOv2"):
        FrozenTokens(network).load_state_dict(state)


def test_random_weights_are_always_the_same():
    torch.manual_seed(1)
    first, drawn = FrozenTokens.build("tiny", (4, 2)), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first.checksum, FrozenTokens.build("tiny", (4, 2)).checksum)


def backbone_config(tmp_path, *more):
    names = ("MODEL.BACKBONE.NAME", "build_dinov2_backbone", "MODEL.BACKBONE.DEPTH", "tiny")
    return tiny_config(tmp_path, tmp_path, *names, *more)


def test_it_is_a_backbone_of_two_streams(tmp_path):
    backbone = build_two_stream(backbone_config(tmp_path))
    assert backbone.feature_width == 64
    images = torch.randn(2, 3, 32, 16)
    maps = backbone(images, torch.tensor([True, False]))
    assert maps.shape == (2, 64, 8, 4)
    maps.mean().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_the_backbone_reads_pretrained_weights(tmp_path):
    net = Dinov2.of_size("tiny", (8, 4))
    torch.save(net.state_dict(), tmp_path / "tiny.pth")
    path = ("MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH")
    backbone = build_two_stream(backbone_config(tmp_path, *path, tmp_path / "tiny.pth"))
    images = torch.randn(1, 3, 32, 16)
    torch.testing.assert_close(backbone(images, torch.tensor([False])), net(images))
    with pytest.raises(UserError, match="needs a file"):
        build_two_stream(backbone_config(tmp_path, *path[:2]))


def test_the_style_attack_trains_on_its_tokens(tmp_path):
    torch.manual_seed(0)
    classes = "MODEL.HEADS.NUM_CLASSES", "3"
    model = Trainer.build_model(backbone_config(tmp_path, *classes)).train()
    batch = {
        "images": torch.randint(0, 256, (4, 2, 3, 32, 16)).float(),
        "modality": torch.tensor([1, 2, 1, 2]),
        "targets": torch.tensor([0, 0, 1, 1]),
    }
    losses = model(batch)
    assert "loss_cls_attack" in losses
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters())
    layer, to_maps = target_layer(model.backbone)
    assert layer is model.backbone.stages[2]
    assert to_maps(torch.zeros(8, 33, 64)).shape == (8, 64, 8, 4)
