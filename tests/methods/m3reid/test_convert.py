"""Converted checkpoints give the features, the losses and the gradients of the published program."""

import pytest
import torch

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer, load_trained
from fastreid_star.errors import UserError
from fastreid_star.methods.convert import convert, convert_weights

from ...tiny import REPOSITORY
from .program import CLASSES, Program, losses, normalized

CONFIG = str(REPOSITORY / "configs" / "HITSZ-VCM" / "M3ReID_R50.yml")
OPTIONS = (
    "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.PRETRAIN", "False",
    "MODEL.BACKBONE.NON_LOCAL", "[0,1,2,0]",
    "INPUT.SIZE_TRAIN", "[64,32]", "MODEL.M3REID.ERASING", "0.0", "MODEL.M3REID.AUGMENT", "False",
)  # fmt: skip
CLASS_COUNT = ("MODEL.HEADS.NUM_CLASSES", str(CLASSES))


def config(*more):
    return load_config(CONFIG, [*OPTIONS, *more])


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return Program().scrambled()


def batch(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (5, length, 3, 64, 32), generator=generator).double()
    modality = torch.tensor([2, 1, 1, 2, 1])  # the last clip has no partner
    return {"images": images, "modality": modality, "targets": torch.tensor([0, 0, 1, 1, 2])}


@pytest.fixture(scope="module")
def converted(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m3reid")
    torch.save(program.state_dict(), folder / "theirs.pth")
    lines = []
    ours = str(folder / "ours.pth")
    conversion = convert_weights(str(folder / "theirs.pth"), ours, config(), report=lines.append)
    assert (conversion.dropped, conversion.unknown) == ({}, [])
    assert len(conversion.used) == len(program.state_dict())
    assert lines[0].startswith("M3-ReID: ")
    return load_trained(config(), ours)


@torch.no_grad()
@pytest.mark.parametrize("length", [6, 2])
def test_features_are_the_programs(program, converted, length):
    inputs = batch(length)
    expected = program.eval()(normalized(inputs["images"]).float())
    found = converted.eval()({**inputs, "images": inputs["images"].float()})
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    between = torch.pdist(found)
    assert between.min() > 1e-2, "different clips have different features"
    for modality in (1, 2):  # one stream
        inputs["modality"][:] = modality
        alone = converted({**inputs, "images": inputs["images"].float()})
        torch.testing.assert_close(alone, found, atol=1e-6, rtol=0)


def test_losses_and_gradients_are_the_programs():
    torch.manual_seed(1)
    program = Program().scrambled().double().train()
    model = Trainer.build_model(config(*CLASS_COUNT))
    model.load_state_dict(convert(program.state_dict()).weights)
    model.double().train()
    inputs = batch(2)
    visible = inputs["modality"] == 2
    clips = (inputs["images"] - model.pixel_mean) / model.pixel_std  # these are of float32
    expected = losses(program(clips), inputs["targets"], visible)
    found = model(inputs)
    assert list(found) == list(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, msg=name)
        assert loss.item() > 1e-3
    sum(expected.values()).backward()
    sum(found.values()).backward()
    gradients = {name: p.grad for name, p in program.named_parameters()}
    wanted = convert(gradients).weights
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # all but the shift of the neck
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-9, rtol=1e-6, msg=name)
    statistics = convert(program.state_dict()).weights
    for name, buffer in model.state_dict().items():
        torch.testing.assert_close(buffer, statistics[name], msg=name)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("MODEL.BACKBONE.LAST_STRIDE", "1"), "LAST_STRIDE"),
        (("MODEL.BACKBONE.STREAMS", "2"), "STREAMS"),
        (("MODEL.BACKBONE.PADDED_POOL", "False"), "PADDED_POOL"),
        (("MODEL.BACKBONE.NON_LOCAL", "[0,1,1,0]"), r"non_local\.3\.1"),
    ],
)
def test_a_config_with_other_features_is_refused(program, options, word):
    with pytest.raises(UserError, match=word):
        convert(program.state_dict()).require_fit(config(*options))


def test_what_is_missing_or_not_known_is_named(program):
    state = program.state_dict()
    state["bn_neck.more"] = torch.zeros(1)
    state["NL_5.0.g.weight"] = torch.zeros(1)
    assert convert(state).unknown == ["NL_5.0.g.weight"]
    with pytest.raises(UserError, match=r"bottleneck\.0\.more does not exist"):
        convert(state).require_fit(config())
    del state["bn_neck.more"], state["mvl_attention.view_attention_tw.bias"]
    with pytest.raises(UserError, match=r"view_attention_tw\.bias is missing"):
        convert(state)
