"""The whole model: steps, inputs of every size, STAR's skeletons, and runs."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.inference.export import export_onnx
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.report.explain import target_layer
from fastreid_star.weights import read_file

from ...tiny import REPOSITORY, interrupted_after_first_epoch, tiny_options

SYNTHETIC = REPOSITORY / "configs" / "Synthetic"
LOSSES = [
    *("loss_cls", "loss_cls_frame", "loss_align", "loss_align_frame", "loss_orthogonal"),
    "loss_masks",
]


def config(root, output, *more, name="M3ReID_small"):
    own = {
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 0,
        "DATALOADER.NUM_INSTANCE": 4,
        "DATASETS.SYNTHETIC.OCCLUSION": 0.0,  # as the shared data
        "DATASETS.SYNTHETIC.BLUR": 0.3,
        "DATASETS.SYNTHETIC.BACKGROUND": False,
    }
    own = [part for pair in own.items() for part in pair]
    return load_config(str(SYNTHETIC / f"{name}.yml"), tiny_options(root, output, *own, *more))


def build(*more, name="M3ReID_small"):
    torch.manual_seed(0)
    classes = "MODEL.HEADS.NUM_CLASSES", "5"
    return Trainer.build_model(config("datasets", "logs", *classes, *more, name=name))


def batch(clips=4, length=3, size=(32, 16)):
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randint(0, 256, (clips, length, 3, *size), generator=generator).float(),
        "modality": torch.tensor([2, 1]).repeat(clips)[:clips],
        "targets": torch.arange(clips) // 2,
        "skeletons": torch.rand(clips, length, 17, 3, generator=generator) * 16,
        "has_skeleton": torch.ones(clips, length, dtype=torch.bool),
    }


def train_step(model, inputs):
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    return losses


def test_a_step_trains_every_parameter():
    model = build()
    assert model.backbone.infrared_stem is None
    losses = train_step(model, batch())
    assert list(losses) == LOSSES
    assert not model.has_idle_parameters
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    ("clips", "length", "size"), [(2, 1, (32, 16)), (1, 3, (32, 16)), (3, 2, (20, 50))]
)
def test_batches_and_frames_of_any_number_and_size(clips, length, size):
    model, inputs = build(), batch(clips, length, size)
    inputs["modality"][:] = 2  # nothing to align
    losses = train_step(model, inputs)
    assert losses["loss_align"] == losses["loss_align_frame"] == 0
    assert (losses["loss_orthogonal"] == 0) == (length == 1)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.eval()(inputs).isfinite().all()


def test_all_frames_of_a_clip_are_augmented_alike():
    model, inputs = build("MODEL.M3REID.ERASING", "1.0").train(), batch(64)
    inputs["images"][:, 1:] = inputs["images"][:, :1]
    is_visible = (inputs["modality"] == 2).repeat_interleave(3)
    frames = model.preprocess(inputs["images"], is_visible).unflatten(0, (64, 3))
    torch.testing.assert_close(frames, frames[:, :1].expand_as(frames))
    plain = model.eval().preprocess(inputs["images"], is_visible).unflatten(0, (64, 3))
    factors = (frames / plain)[:, 0].flatten(2)  # of a pixel; gray ones differ between pixels
    kept = frames[:, 0].flatten(2) != 0
    infrared = [f[k] for f, k in zip(factors[1::2], kept[1::2], strict=True)]
    assert all(torch.allclose(f, f[:1], rtol=1e-3) for f in infrared), "one factor"
    means = torch.stack([f.mean() for f in infrared])
    assert 0.5 <= means.min() < 0.7
    assert 1.3 < means.max() <= 1.5
    assert (~kept).flatten(1).any(1).all(), "erased"
    off = build("MODEL.M3REID.AUGMENT", "False", "MODEL.M3REID.ERASING", "0.0").train()
    found = off.preprocess(inputs["images"], is_visible)
    torch.testing.assert_close(found.unflatten(0, (64, 3)), plain)


def test_bfloat16_trains_close_to_float32():
    # stride 1: on maps of 4x2, torch's bfloat16 convolution of stride 2 reads memory it must not
    model = build("MODEL.M3REID.AUGMENT", "False", "MODEL.BACKBONE.LAST_STRIDE", "1")
    other = copy.deepcopy(model)
    expected = train_step(model, batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = train_step(other, batch())
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=0.1, abs=0.02), name
    assert all(p.grad.isfinite().all() for p in other.parameters() if p.requires_grad)


def test_a_run_resumes_bit_for_bit(tiny_root, tmp_path):
    epochs = "SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "[1]", "TEST.EVAL_PERIOD", "2"
    erasing = "MODEL.M3REID.ERASING", "0.5"
    trainer = Trainer(config(tiny_root, tmp_path / "whole", *epochs, *erasing))
    assert trainer.data_loader.batch_sampler.batches_per_epoch == 3  # 6 groups of 4 tracklets
    trainer.train()
    interrupted_after_first_epoch(tmp_path / "whole", tmp_path / "part")
    resumed = Trainer(config(tiny_root, tmp_path / "part", *epochs, *erasing))
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == 1
    resumed.train()
    first, second = (
        read_file(str(tmp_path / name / "model_final.pth"))["model"] for name in ("whole", "part")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    predictor = StarPredictor.from_run(tmp_path / "whole")
    exported = export_onnx(predictor.model, predictor.cfg, tmp_path / "model.onnx")
    assert exported.difference < 1e-5
    assert "features [batch, 768]" in str(exported)


def test_the_backbone_starts_from_a_two_stream_network():
    sad, model = build(name="SAD_small"), build()
    own, other = model.backbone.state_dict(), sad.backbone.state_dict()
    new = {name for name in own if name not in other}
    assert all(name.startswith("non_local.") for name in new)
    assert all(own[name].shape == other[name].shape for name in own.keys() - new)


def test_gradcam_sees_the_maps_behind_the_last_non_local_block():
    backbone = build("MODEL.BACKBONE.NON_LOCAL", "[0,0,0,1]").backbone
    assert target_layer(backbone)[0] is backbone.non_local["4"][0]
    backbone = build().backbone
    assert target_layer(backbone)[0] is backbone.stages[3]


def test_stars_skeletons_on_this_network():
    model, inputs = build(name="STAR_M3_small"), batch()
    assert model.reads_skeletons
    losses = train_step(model, inputs)
    assert list(losses) == [*LOSSES, "loss_skeleton"]
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    with torch.no_grad():
        outputs = model.eval().encode(inputs)
        moved = model.encode({**inputs, "skeletons": inputs["skeletons"].roll(1, 0)})
        inputs["has_skeleton"][:] = False
        without = model.encode(inputs)
    views = (outputs["corrected"] - outputs["frames"]).unflatten(2, (6, -1))
    assert views.min() > 0
    torch.testing.assert_close(views, views[:, :, :1].expand_as(views))  # one for all views
    assert (outputs["clip"] - moved["clip"]).abs().amax(1).min() > 1e-6
    assert torch.equal(without["corrected"], without["frames"])
    corrected = outputs["corrected"].flatten(0, 1)[..., None, None]
    embeddings = model.frame_heads.bottleneck(corrected)[..., 0, 0]
    torch.testing.assert_close(outputs["frame_embeddings"].flatten(0, 1), embeddings)
    neck = model.heads.bottleneck(outputs["clip"][..., None, None])[..., 0, 0]
    torch.testing.assert_close(outputs["features"], F.normalize(neck, dim=1))
    assert {"frame_updates", "part_weights"} <= model.explain(batch()).keys()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("MODEL.M3REID.ERASING", "1.5"), "ERASING"),
        (("MODEL.BACKBONE.NAME", "build_dinov2_backbone"), "NON_LOCAL"),
        (("MODEL.BACKBONE.NAME", "build_dinov2_backbone", "MODEL.BACKBONE.NON_LOCAL", "[]"),
         "convolutional"),
        (("MODEL.HEADS.NAME", "ClipHead", "MODEL.LOSSES.NAME", "('TokenReconstructionLoss',)"),
         "rebuilt_tokens"),
        (("MODEL.HEADS.NAME", "GATGeMHead", "MODEL.STAR.GUIDE", "release",
          "MODEL.FRAME_CORRECTOR.NAME", "BoneReader"), "states of the bones"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options, word):
    with pytest.raises(UserError, match=word):
        build(*options)


@pytest.mark.parametrize("name", ["M3ReID_small", "SAD_small", "STAR_small", "DinoGRL_tiny"])
def test_every_method_tells_the_blocks_how_many_frames_a_clip_has(name):
    options = "MODEL.BACKBONE.NON_LOCAL", "[0,1,1,0]", "MODEL.BACKBONE.STREAMS", "1"
    grid = "MODEL.DINOGRL.GRID", "[8,4]", "MODEL.DINOGRL.READING", "authors"
    model = build(*options, *grid, name=name)
    lengths = []
    for block in (each for blocks in model.backbone.non_local.values() for each in blocks):
        block.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[1]))
    train_step(model, batch())
    assert len(lengths) == (3 if "StyleAttackLoss" in model.losses else 2)
    assert set(lengths) == {3}


def test_the_mean_head_needs_frames_behind_a_neck():
    with pytest.raises(UserError, match="frame_embeddings"):
        build("MODEL.HEADS.NAME", "MeanHead", name="SAD_small")
