"""AuxNet: its losses and features against a restatement, its batches, and whole runs."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_star.data.build import build_clip_test_loader, build_clip_train_loader
from fastreid_star.data.datasets import BUPTCampus
from fastreid_star.data.tracklets import TrackletInput
from fastreid_star.engine.checks import require
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.inference import StarPredictor
from fastreid_star.inference.export import export_onnx
from fastreid_star.methods.auxnet import AuxNet, auxiliary_weight
from fastreid_star.methods.convert import convert
from fastreid_star.weights import read_file

from ...data.datasets.test_bupt_campus import write_bupt
from ...tiny import interrupted_after_first_epoch, tiny_options

SMALL = "Synthetic/AuxNet_small.yml"
AUXILIARY = (
    *("MODEL.LOSSES.NAME", "('CrossEntropyLoss','TripletLoss','AuxiliaryTripletLoss')"),
    *("DATASETS.AUXILIARY", "('SyntheticVCM',)"),
)


TINY_DATA = (
    *("DATASETS.SYNTHETIC.BACKGROUND", "False", "DATASETS.SYNTHETIC.OCCLUSION", "0.0"),
    *("DATASETS.SYNTHETIC.BLUR", "0.3"),
)


def config(root, output, *more):
    steps = ("SOLVER.STEPS", "[]", "MODEL.LOSSES.CE_ONLY_EPOCHS", "0", "SOLVER.MAX_EPOCH", "2")
    return load_config(SMALL, tiny_options(root, output, *TINY_DATA, *steps, *more))


def build(*more):
    torch.manual_seed(0)
    options = ("MODEL.HEADS.NUM_CLASSES", "3", *more)
    return AuxNet(config("nowhere", "nowhere", *options))


def batch(clips, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (clips, 3, 3, 32, 16), generator=generator, dtype=torch.uint8)
    half = clips // 2
    modality = torch.tensor([2] * (clips // 4) + [1] * (clips // 4)).repeat(2)
    targets = torch.arange(half // 2).div(2, rounding_mode="floor").repeat(2)
    return {
        "images": images,
        "modality": modality,
        "targets": torch.cat([targets, -1 - targets]),
    }


# --- a restatement in float64: the stages are the backbone's own, everything around them is plain


def restated(model, inputs, epoch):
    """The three losses of a training step, with their shares."""
    model = model.double()

    def clips(part):
        images = (inputs["images"][part].double() - model.pixel_mean) / model.pixel_std
        visible = inputs["modality"][part] == 2
        stems = model.backbone.visible_stem, model.backbone.infrared_stem
        n = int(visible.sum())
        assert visible[:n].all()
        maps = torch.cat([stems[0](images[:n].flatten(0, 1)), stems[1](images[n:].flatten(0, 1))])
        for stage in model.backbone.stages:
            maps = stage(maps)
        return maps.unflatten(0, (len(images), -1)).mean((1, 3, 4))

    def hardest(features, targets):
        total = []
        for a in range(len(features)):
            gaps = [((features[a] - f).square().sum()).clamp(min=1e-12).sqrt() for f in features]
            same = [gaps[b] for b in range(len(features)) if targets[b] == targets[a]]
            other = [gaps[b] for b in range(len(features)) if targets[b] != targets[a]]
            total.append((0.6 + torch.stack(same).max() - torch.stack(other).min()).clamp(min=0))
        return torch.stack(total).mean()

    half = len(inputs["images"]) // 2
    targets = inputs["targets"].tolist()
    auxiliary = clips(slice(half, None))
    primary = clips(slice(half))
    mean, variance = primary.mean(0), primary.var(0, unbiased=False)
    neck = (primary - mean) / (variance + 1e-5).sqrt() * model.heads.bottleneck[0].weight
    logits = neck @ model.heads.weight.T
    entropy = torch.stack(
        [-F.log_softmax(row, 0)[t] for row, t in zip(logits, targets[:half], strict=True)]
    ).mean()
    share = (math.cos(math.pi * epoch / 2) + 3) / 8
    return {
        "loss_cls": (1 - share) * entropy,
        "loss_triplet": (1 - share) * hardest(primary, targets[:half]),
        "loss_auxiliary": share * hardest(auxiliary, targets[half:]),
    }, (auxiliary, primary)


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_losses_and_their_gradients_are_the_restated_ones(epoch):
    inputs = batch(16)
    model, plain = build(*AUXILIARY).double().train(), build(*AUXILIARY).double().train()
    model.epoch = epoch
    found = model(inputs)
    expected, (auxiliary, primary) = restated(plain, inputs, epoch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for (name, own), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-7, atol=1e-9, msg=name)
    # both sets pass the neck, the auxiliary one first, each with its own statistics
    mean = 0.9 * 0.1 * auxiliary.mean(0) + 0.1 * primary.mean(0)
    torch.testing.assert_close(model.heads.bottleneck[0].running_mean, mean)


@pytest.mark.parametrize("frames", [3, 5])
def test_features_are_the_normalized_neck_of_the_mean(frames):
    model = build().eval()
    inputs = batch(8)
    inputs["images"] = inputs["images"].repeat(1, 2, 1, 1, 1)[:, :frames]
    with torch.no_grad():
        outputs = model.encode(inputs)
        neck = model.heads.bottleneck[0]
        mean = outputs["frames"].mean(1)
        expected = (mean - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight
    torch.testing.assert_close(outputs["features"], F.normalize(expected))
    assert not [name for name, _ in model.named_parameters() if "frame_heads" in name]


def test_the_share_falls_from_a_half_to_a_quarter():
    assert [auxiliary_weight(epoch, 4) for epoch in (0, 2)] == pytest.approx([0.5, 0.375])
    assert auxiliary_weight(99, 100) == pytest.approx(0.25, abs=1e-4)


# --- batches


def test_a_batch_has_pairs_and_an_auxiliary_half(tmp_path):
    """Of BUPTCampus' lists: identity 1 has pairs of two cameras, 2 two pairs of one."""
    write_bupt(tmp_path / "BUPTCampus", images=True)
    options = (
        *("DATASETS.NAMES", "('BUPTCampus',)", "DATASETS.TESTS", "('BUPTCampus',)"),
        *("DATASETS.AUXILIARY", "('BUPTCampusAuxiliary',)", "DATASETS.MIN_FRAMES", "1"),
        *("DATALOADER.PAIRS", "True", "SOLVER.IMS_PER_BATCH", "4", "MODEL.LOSSES.NAME"),
        "('CrossEntropyLoss','TripletLoss','AuxiliaryTripletLoss')",
    )
    cfg = config(tmp_path, tmp_path, *options)
    loader = build_clip_train_loader(cfg, seed=0)
    dataset, sampler = loader.dataset, loader.batch_sampler
    data = BUPTCampus(str(tmp_path), auxiliary=True)
    assert dataset.num_classes == 3
    assert [t.frames for t in dataset.tracklets] == [t.frames for t in data.train]
    assert [t.pid for t in dataset.tracklets[10:]] == [-1, -1, -2, -2]
    seen = set()
    for requests in itertools.islice(sampler, 60):
        chosen = [dataset.tracklets[request.index] for request in requests]
        assert [int(t.modality) for t in chosen] == [2, 2, 1, 1, 2, 2, 1, 1]
        assert [t.pid < 0 for t in chosen] == [False] * 4 + [True] * 4
        for first in (0, 4):
            for visible, infrared in ((first, first + 2), (first + 1, first + 3)):
                v, i = chosen[visible], chosen[infrared]
                assert (v.pid, v.camid) == (i.pid, i.camid)
                assert [f.replace("RGB", "IR") for f in v.frames] == list(i.frames)
                assert requests[visible].seed == requests[infrared].seed
                items = [dataset[requests[visible]], dataset[requests[infrared]]]
                assert items[0]["targets"] == items[1]["targets"]
        if chosen[0].pid == 1:
            assert chosen[0].camid != chosen[1].camid
        seen |= {t.frames for t in chosen}
    assert len(seen) == 14, "every tracklet has its turn"
    sampler.set_start(3)
    again = build_clip_train_loader(cfg, seed=0).batch_sampler
    assert list(itertools.islice(sampler, 2)) == list(itertools.islice(again, 5))[3:]


def test_what_does_not_belong_together_is_refused(tiny_root, tmp_path):
    for options in (AUXILIARY[:2], AUXILIARY[2:]):
        with pytest.raises(UserError, match="belong together"):
            build(*options)
    sad = load_config("Synthetic/SAD_demo.yml", tiny_options(tiny_root, tmp_path, *AUXILIARY[2:]))
    with pytest.raises(UserError, match="SAD does not train on an auxiliary set"):
        require(sad)
    with pytest.raises(UserError, match="set it to False for this dataset"):
        require(config(tiny_root, tmp_path, "DATALOADER.PAIRS", "True"))
    large = config(tiny_root, tmp_path, *AUXILIARY, "SOLVER.IMS_PER_BATCH", "24")
    with pytest.raises(UserError, match="no camera has the 6 identities"):
        build_clip_train_loader(large, seed=0)
    other = config(tiny_root, tmp_path, "INPUT.CLIP.SAMPLING", "all")
    loader = build_clip_train_loader(other, seed=0)
    with pytest.raises(UserError, match="SAMPLING is 'all'"):
        loader.dataset[0]


# --- a run


def test_a_run_with_an_auxiliary_set_resumes_bit_for_bit(tiny_root, tmp_path):
    """The auxiliary set is the training set itself, in place of another one."""
    more = (*AUXILIARY, "TEST.EVAL_PERIOD", "2", "INPUT.CLIP.LENGTH", "5")
    trainer = Trainer(config(tiny_root, tmp_path / "whole", *more))
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    results = trainer.train()
    assert results["metric"] > 0
    assert all(not torch.equal(v, before[n]) for n, v in trainer.model.named_parameters()
               if v.requires_grad)  # fmt: skip
    part = tmp_path / "part"
    interrupted_after_first_epoch(tmp_path / "whole", part)
    resumed = Trainer(config(tiny_root, part, *more))
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == 1
    resumed.train()
    first, second = (
        read_file(str(tmp_path / name / "model_final.pth"))["model"] for name in ("whole", "part")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    check_inference(trainer, tmp_path / "whole")
    exported = export_onnx(trainer.model.eval(), trainer.cfg, tmp_path / "model.onnx")
    assert "features [batch, 128]" in str(exported)


def check_inference(trainer, run):
    """A predictor takes the frames that the evaluation takes, which are not those of segments."""
    loader = build_clip_test_loader(trainer.cfg, "SyntheticVCM")
    batch = next(iter(loader))
    with torch.no_grad():
        expected = trainer.model.eval()(batch)
    inputs = [
        TrackletInput([t.path(n) for n in range(len(t))], t.modality, name=str(number))
        for number, t in enumerate(loader.dataset.tracklets)
    ]
    predictor = StarPredictor.from_run(run, "cpu", "model_final.pth")
    found = predictor.features(inputs, batch_size=len(expected), num_workers=0)
    torch.testing.assert_close(found[: len(expected)], expected)
    assert predictor.cfg.INPUT.CLIP.SAMPLING == "random"


# --- published weights


def test_a_published_state_dict_gives_the_features_of_its_program(tmp_path):
    """Random weights in the published layout, with the prefix of DataParallel."""
    options = (
        *("MODEL.BACKBONE.PRETRAIN", "False", "INPUT.SIZE_TRAIN", "[32,16]"),
        *("MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "3"),
    )
    cfg = load_config("BUPTCampus/AuxNet_R34_baseline.yml", list(options))
    torch.manual_seed(0)
    model = AuxNet(cfg).eval()
    theirs = {}
    for name, value in model.state_dict().items():
        drawn = torch.rand_like(value) + 0.5 if value.is_floating_point() else value
        if value.ndim > 1:
            drawn = value
        for ours, published in (
            ("backbone.visible_stem.0", "rgb_module.conv1"),
            ("backbone.visible_stem.1", "rgb_module.bn1"),
            ("backbone.infrared_stem.0", "ir_module.conv1"),
            ("backbone.infrared_stem.1", "ir_module.bn1"),
            *((f"backbone.stages.{n}.", f"shared_module.backbone.layer{n + 1}.") for n in range(4)),
            ("heads.bottleneck.0", "bottleneck.bn"),
            ("heads.weight", "classifier.fc.weight"),
        ):
            if name.startswith(ours):
                theirs["module." + name.replace(ours, published, 1)] = drawn
    theirs["module.shared_module.backbone.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    conversion = convert(theirs)
    assert not conversion.unknown
    assert list(conversion.dropped) == ["shared_module.backbone.conv1.weight"]
    conversion.require_fit(cfg)
    model.load_state_dict(conversion.weights)
    inputs = batch(8)
    with torch.no_grad():
        found = model(inputs)
        images = (inputs["images"].flatten(0, 1) - model.pixel_mean) / model.pixel_std
        own = {name.removeprefix("module."): value for name, value in theirs.items()}
        for modality, stem in ((2, "rgb_module"), (1, "ir_module")):
            rows = inputs["modality"] == modality
            x = F.conv2d(images, own[f"{stem}.conv1.weight"], stride=2, padding=3)
            x = F.max_pool2d(normalized(x, own, f"{stem}.bn1").relu(), 3, 2, 1)
            for layer, blocks in enumerate((3, 4, 6, 3), 1):
                for block in range(blocks):
                    name = f"shared_module.backbone.layer{layer}.{block}"
                    stride = 2 if block == 0 and layer in (2, 3) else 1
                    y = F.conv2d(x, own[f"{name}.conv1.weight"], stride=stride, padding=1)
                    y = normalized(y, own, f"{name}.bn1").relu()
                    y = normalized(F.conv2d(y, own[f"{name}.conv2.weight"], padding=1), own,
                                   f"{name}.bn2")  # fmt: skip
                    if f"{name}.downsample.0.weight" in own:
                        x = F.conv2d(x, own[f"{name}.downsample.0.weight"], stride=stride)
                        x = normalized(x, own, f"{name}.downsample.1")
                    x = (x + y).relu()
            x = x.mean((2, 3)).unflatten(0, (8, 3)).mean(1)
            x = F.normalize(normalized(x, own, "bottleneck.bn"))
            torch.testing.assert_close(found[rows], x[rows], rtol=0, atol=1e-5)
            assert np.ptp(x.numpy()) > 0.01


def normalized(x, own, name):
    values = [own[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *values)
