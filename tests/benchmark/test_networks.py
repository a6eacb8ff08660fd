import pytest
import torch

from fastreid_star.benchmark.networks import BARE, CONFIGS, Setting, TrainingStep, bare_batch, batch
from fastreid_star.benchmark.options import Work
from fastreid_star.benchmark.parts.step import flops


def convolutions(step):
    return {name: count for name, count in flops(step).items() if "convolution" in name}


@pytest.mark.parametrize("network", CONFIGS)
def test_the_bare_backbone_does_a_steps_convolutions_and_nothing_else(options, network):
    """The limit is honest: what is left out is what is not the backbone's."""
    bare = flops(TrainingStep(BARE, options.work, options))
    assert set(bare) == {"aten.convolution", "aten.convolution_backward"}
    assert convolutions(TrainingStep(network, options.work, options)) == bare


def test_a_step_without_the_attack_does_fewer(options):
    """So the test above can fail: the attack is the second pass of the high stages."""
    step = TrainingStep("sad", options.work, options)
    step.model.loss_names = ("CrossEntropyLoss", "TripletLoss")
    bare = flops(TrainingStep(BARE, options.work, options))
    assert convolutions(step)["aten.convolution"] < bare["aten.convolution"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_formats(options, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    setting = Setting(channels_last=channels_last)
    assert bare_batch(options.work, setting)["images"].is_contiguous(memory_format=layout)
    for network in (BARE, "star"):
        weights = TrainingStep(network, options.work, options, setting).model.backbone.parameters()
        wide = [p for p in weights if p.dim() == 4 and min(p.shape[1:]) > 1]
        assert wide
        assert all(p.is_contiguous(memory_format=layout) for p in wide)


def test_a_step_trains_and_leaves_no_gradient(options):
    for network in (BARE, "star"):
        step = TrainingStep(network, options.work, options, Setting(amp="bfloat16"))
        before = [p.detach().clone() for p in step.model.parameters()]
        step()
        step()
        moved = [
            not torch.equal(p, old) for p, old in zip(step.model.parameters(), before, strict=True)
        ]
        assert sum(moved) > 0.9 * len(moved)
        assert all(p.grad is None for p in step.model.parameters())


def test_batches_are_the_loaders(options):
    """Visible clips first, two identities in each half."""
    made = batch(Work("tiny", 8, 3, (32, 16)))
    assert made["images"].shape == (8, 3, 3, 32, 16)
    assert made["images"].dtype == torch.uint8
    assert made["modality"].tolist() == [2] * 4 + [1] * 4
    assert made["targets"].tolist() == [0, 0, 1, 1] * 2
    assert made["skeletons"][..., 0].max() < 16
    assert 16 < made["skeletons"][..., 1].max() < 32


def test_names_of_settings():
    assert str(Setting()) == "float32"
    assert str(Setting(True, "bfloat16")) == "bfloat16_channels_last"
    assert str(Setting(True, None, compiled=True)) == "float32_channels_last_compiled"
