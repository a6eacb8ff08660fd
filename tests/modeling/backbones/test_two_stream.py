import copy

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.backbones import build_backbone
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones import (
    BackboneSplit,
    TwoStreamBackbone,
    build_two_stream,
    register_split,
)
from fastreid_star.modeling.backbones import two_stream as two_stream_module

SIZE = (64, 32)

FAMILIES = {
    "resnet": ("build_resnet_backbone", "18x", {}),
    "resnet50-ibn-se-nl": (
        "build_resnet_backbone",
        "50x",
        {"WITH_IBN": True, "WITH_SE": True, "WITH_NL": True},
    ),
    "resnext-ibn-nl": ("build_resnext_backbone", "50x", {"WITH_IBN": True, "WITH_NL": True}),
    "resnest": ("build_resnest_backbone", "50x", {}),
    "osnet": ("build_osnet_backbone", "x0_25", {"WITH_IBN": True}),
    "mobilenet-v2": ("build_mobilenetv2_backbone", "0.1x", {}),
    "mobilenet-v3-large": ("build_mobilenetv3_backbone", "Large", {}),
    "mobilenet-v3-small": ("build_mobilenetv3_backbone", "Small", {}),
    "shufflenet-v2": ("build_shufflenetv2_backbone", "0.5x", {}),
    "repvgg": ("build_repvgg_backbone", "A0", {}),
    "regnet-x": ("build_regnet_backbone", "200x", {}),
    "regnet-y": ("build_regnet_backbone", "200y", {}),
    "efficientnet": ("build_effnet_backbone", "b0", {}),
    "vit": ("build_vit_backbone", "small", {}),
}

# channels and size of the maps after stages 2 and 3, where the attack strikes, in a 64x32 image
ATTACKED = {
    "resnet": [(128, 8, 4), (256, 4, 2)],
    "resnet50-ibn-se-nl": [(512, 8, 4), (1024, 4, 2)],
    "resnext-ibn-nl": [(512, 8, 4), (1024, 4, 2)],
    "resnest": [(512, 8, 4), (1024, 4, 2)],
    "osnet": [(96, 4, 2), (128, 4, 2)],
    "mobilenet-v2": [(4, 8, 4), (12, 4, 2)],
    "mobilenet-v3-large": [(40, 8, 4), (112, 4, 2)],
    "mobilenet-v3-small": [(24, 8, 4), (48, 4, 2)],
    "shufflenet-v2": [(48, 8, 4), (96, 4, 2)],
    "repvgg": [(96, 8, 4), (192, 4, 2)],
    "regnet-x": [(56, 8, 4), (152, 4, 2)],
    "regnet-y": [(56, 8, 4), (152, 4, 2)],
    "efficientnet": [(40, 8, 4), (112, 4, 2)],
    "vit": [(9, 768), (9, 768)],
}


def config(family="resnet", feat_dim=0):
    name, depth, options = FAMILIES[family]
    cfg = get_cfg()
    cfg.INPUT.SIZE_TRAIN = list(SIZE)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.DEPTH = depth
    cfg.MODEL.BACKBONE.FEAT_DIM = feat_dim
    cfg.MODEL.BACKBONE.update(options)
    return cfg


def scramble(network, seed=0):
    """Move every weight, scale and shift: no layer is an identity by initialization then."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.1 if parameter.dim() == 1 else 0.1 * parameter.std()
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def calibrate(network):
    """Fill the running statistics from a batch, for sane values in evaluation."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, *SIZE))
    return network


@pytest.fixture
def two_stream():
    """A small network whose two stems differ."""
    torch.manual_seed(0)
    network = TwoStreamBackbone(build_backbone(config("osnet")), SIZE).eval()
    scramble(network.infrared_stem)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_the_original_bit_for_bit(family):
    torch.manual_seed(0)
    original = calibrate(scramble(build_backbone(config(family)))).eval()
    network = TwoStreamBackbone(copy.deepcopy(original), SIZE).eval()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = original(images)
        assert expected.isfinite().all()
        for visible in (True, False):
            assert torch.equal(network(images, torch.tensor([visible] * 2)), expected)
        middle = network.low(network.stem(images, torch.tensor([True, True])))
        attacked = [tuple(middle.shape[1:]), tuple(network.stage3(middle).shape[1:])]
    assert network.feature_width == expected.shape[1]
    assert attacked == ATTACKED[family]
    # nothing left behind, nothing twice: the other stem is a copy
    own = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in network.infrared_stem.parameters()
    )
    assert own == sum(p.numel() for p in original.parameters())


@pytest.mark.parametrize("is_visible", ["110", "001", "10110", "01101", "111", "000"])
def test_each_row_passes_its_own_stem_and_comes_back_in_place(two_stream, is_visible):
    is_visible = torch.tensor([flag == "1" for flag in is_visible])
    images = torch.randn(len(is_visible), 3, *SIZE)
    with torch.no_grad():
        visible, infrared = two_stream.visible_stem(images), two_stream.infrared_stem(images)
        assert not torch.allclose(visible, infrared, atol=1e-2)
        expected = torch.where(is_visible.view(-1, 1, 1, 1), visible, infrared)
        assert torch.allclose(two_stream.stem(images, is_visible), expected, atol=1e-5)
        assert torch.allclose(two_stream.stem(images, is_visible.float()), expected, atol=1e-5)


def test_leaves_no_trace():
    backbone = calibrate(build_backbone(config()))
    backbone.layer1.eval()
    before = copy.deepcopy(backbone.state_dict())
    modes = [module.training for module in backbone.modules()]
    state = torch.get_rng_state()
    network = TwoStreamBackbone(backbone, SIZE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert [module.training for module in backbone.modules()] == modes
    assert all(p.grad is None for p in network.parameters())


def test_wrong_feat_dim():
    with pytest.raises(UserError) as error:
        build_two_stream(config("resnet", feat_dim=2048))
    assert "FEAT_DIM is 2048" in str(error.value)
    assert "set it to 512" in str(error.value)


def test_pretrained_weights_that_cannot_be_had(monkeypatch):
    def offline(cfg):
        raise OSError("no route\nto host")

    monkeypatch.setattr(two_stream_module, "build_backbone", offline)
    cfg = config()
    cfg.MODEL.BACKBONE.PRETRAIN = True
    with pytest.raises(
        UserError,
        match=r"resnet_backbone 18x cannot be had \(no route to host\): .*PRETRAIN_PATH",
    ):
        build_two_stream(cfg)


def test_a_backbone_of_your_own():
    class Tiny(nn.Sequential):
        pass

    @register_split(Tiny)
    def split_tiny(net):
        return BackboneSplit(stem=net[0], stages=[net[1], net[2], net[3], net[4]])

    net = Tiny(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(5)))
    assert TwoStreamBackbone(net, (8, 8)).feature_width == 4


def test_a_wrong_split_is_noticed():
    class Forgetful(nn.Sequential):
        pass

    @register_split(Forgetful)
    def split_forgetful(net):
        return BackboneSplit(stem=net[0], stages=[net[1], net[2], net[3], nn.Identity()])

    with pytest.raises(ValueError, match="must have four"):
        BackboneSplit(stem=nn.Identity(), stages=[nn.Identity()] * 5)
    with pytest.raises(UserError, match="split of Forgetful does not compute"):
        TwoStreamBackbone(Forgetful(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))), (8, 8))


def test_pretrained_weights_fill_both_stems(tmp_path):
    state = calibrate(scramble(build_backbone(config()), seed=7)).state_dict()
    torch.save(state, tmp_path / "imagenet.pth")
    cfg = config()
    cfg.MODEL.BACKBONE.PRETRAIN = True
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = str(tmp_path / "imagenet.pth")
    network = build_two_stream(cfg)
    for stem in (network.visible_stem, network.infrared_stem):
        assert torch.equal(stem[0].weight, state["conv1.weight"])
        assert torch.equal(stem[1].running_mean, state["bn1.running_mean"])
    assert torch.equal(network.stages[3][1].conv2.weight, state["layer4.1.conv2.weight"])


def test_one_stream_is_the_backbone_for_both_modalities():
    original = calibrate(scramble(build_backbone(config()))).eval()
    cfg = config()
    cfg.MODEL.BACKBONE.STREAMS = 1
    network = build_two_stream(cfg).eval()
    network.visible_stem.load_state_dict(two_stream_names(original, "visible_stem."))
    network.stages.load_state_dict(two_stream_names(original, "stages."))
    images = torch.randn(3, 3, *SIZE)
    for is_visible in (torch.tensor([True, False, True]), torch.tensor([1.0, 0.0, 1.0])):
        torch.testing.assert_close(network(images, is_visible), original(images))
    assert network.state_dict().keys() < build_two_stream(config()).state_dict().keys()


def two_stream_names(backbone, prefix):
    state = TwoStreamBackbone(copy.deepcopy(backbone), SIZE).state_dict()
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


@torch.no_grad()
def test_non_local_blocks_follow_the_last_blocks_of_a_stage():
    cfg = config()
    cfg.MODEL.BACKBONE.NON_LOCAL = [0, 1, 2, 0]
    network = scramble(build_two_stream(cfg)).eval()
    is_visible, images = torch.ones(6, dtype=torch.bool), torch.randn(6, 3, *SIZE)
    x = network.visible_stem(images)
    x = network.stages[1](network.stages[0](x))
    x = network.non_local["2"][0](x, 3)
    torch.testing.assert_close(network.low(network.stem(images, is_visible), 3), x)
    for block, follow in zip(network.stages[2], network.non_local["3"], strict=True):
        x = follow(block(x), 3)
    found = network(images, is_visible, 3)
    torch.testing.assert_close(found, network.stages[3](x))
    assert not torch.allclose(found, network(images, is_visible)), "frames of a clip see each other"


@pytest.mark.parametrize(
    ("family", "streams", "non_local", "word"),
    [
        ("resnet", 3, [], "STREAMS is 3"),
        ("resnet", 2, [0, 0, 3, 0], r"\[2, 2, 2, 2\]"),
        ("resnet", 2, [1], "four stages"),
        ("vit", 2, [0, 1, 0, 0], "maps"),
    ],
)
def test_streams_and_non_local_blocks_that_do_not_fit(family, streams, non_local, word):
    cfg = config(family)
    cfg.MODEL.BACKBONE.STREAMS, cfg.MODEL.BACKBONE.NON_LOCAL = streams, non_local
    with pytest.raises(UserError, match=word):
        build_two_stream(cfg)
