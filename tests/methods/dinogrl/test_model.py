"""The whole model: features, training steps, inputs of every size, and runs."""

import copy

import pytest
import torch

from fastreid_star.data.datasets.synthetic import SyntheticVCM
from fastreid_star.data.tracklets import TrackletInput
from fastreid_star.engine.checkpoint import checkpoint_config
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation.similarity import similarity
from fastreid_star.inference.export import export_onnx
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.methods.dinogrl.model import channel_order
from fastreid_star.modeling.backbones.dinov2 import Dinov2
from fastreid_star.modeling.layers.pooling import gem
from fastreid_star.pose.movenet import has_onnx
from fastreid_star.report.build import write_report
from fastreid_star.report.explain import has_gradcam
from fastreid_star.weights import read_file

from ...tiny import REPOSITORY, interrupted_after_first_epoch, tiny_options

CONFIG = str(REPOSITORY / "configs" / "Synthetic" / "DinoGRL_tiny.yml")
SMALL = (
    *("MODEL.DINOGRL.GRID", "[8,4]", "MODEL.HEADS.EMBEDDING_DIM", "16"),
    *("DATALOADER.NUM_INSTANCE", "2"),  # two identities in a batch of 8
)
ID_LOSSES = ("MODEL.LOSSES.NAME", "('CrossEntropyLoss','PartTripletLoss')")


def config(root, output, *more):
    drop = "MODEL.LOSSES.CE_ONLY_EPOCHS", "0"
    return load_config(CONFIG, tiny_options(root, output, *SMALL, *drop, *more))


def build(tmp_path, *more):
    torch.manual_seed(0)
    classes = "MODEL.HEADS.NUM_CLASSES", "5"
    return Trainer.build_model(config(tmp_path, tmp_path, *classes, *more))


def batch(clips=4, length=3, size=(32, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randint(0, 256, (clips, length, 3, *size), generator=generator).float(),
        "modality": torch.tensor([2, 1]).repeat(clips)[:clips],
        "targets": torch.arange(clips) // 2,
    }


def train_step(model, inputs):
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("reading", ["default", "authors"])
def test_a_step_trains_every_parameter_and_leaves_dinov2_alone(tmp_path, reading):
    model = build(tmp_path, "MODEL.DINOGRL.READING", reading)
    before = copy.deepcopy(model.gait.tokens.network.state_dict())
    losses = train_step(model, batch())
    assert list(losses) == [
        *("loss_cls", "loss_triplet", "loss_mask", "loss_mask_smooth", "loss_part_smooth"),
        "loss_diversity",
    ]
    assert not model.has_idle_parameters
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    after = model.gait.tokens.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    dino = sum(p.numel() for p in Dinov2.of_size("tiny", (8, 4)).parameters())
    assert not [n for n, v in model.state_dict().items() if "tokens" in n and v.numel() > 32]
    assert sum(p.numel() for p in model.gait.tokens.network.parameters()) == dino


def test_features_are_the_parts_of_both_streams(tmp_path):
    model = build(tmp_path).eval()
    inputs = batch()
    outputs = model.encode(inputs)
    assert outputs["features"].shape == (4, 2 * (7 + 2), 16)
    assert outputs["features"] is outputs["clip"]
    alone = {}
    for streams in ("appearance", "gait"):
        other = build(tmp_path, "MODEL.DINOGRL.STREAMS", streams, *ID_LOSSES).eval()
        state = {n: v for n, v in model.state_dict().items() if n in other.state_dict()}
        state = {n: v for n, v in state.items() if not n.startswith("heads.")}
        other.load_state_dict(state, strict=False)
        alone[streams] = other(inputs)
        assert has_gradcam(other) == (streams == "appearance")
        assert other.has_silhouettes == (streams == "gait")
    torch.testing.assert_close(outputs["clip"][:, :7], alone["gait"])
    torch.testing.assert_close(outputs["clip"][:, 9:16], alone["appearance"])


def test_without_exchange_there_are_no_walked_parts(tmp_path):
    model = build(tmp_path, "MODEL.DINOGRL.STREAMS", "apart").eval()
    assert model(batch()).shape == (4, 2 * 7, 16)


@pytest.mark.parametrize(
    ("clips", "length", "size"),
    [(1, 1, (32, 16)), (1, 3, (32, 16)), (4, 1, (48, 20)), (2, 12, (32, 16)), (3, 2, (20, 50))],
)
def test_batches_and_frames_of_any_number_and_size(tmp_path, clips, length, size):
    model = build(tmp_path)
    inputs = batch(clips, length, size)
    losses = train_step(model, inputs)
    assert all(loss.isfinite() for loss in losses.values())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert model.eval()(inputs).isfinite().all()


def test_bfloat16_trains_close_to_float32(tmp_path):
    model = build(tmp_path)
    model.augment, model.gait.maps.drop, model.gait.maps.mask.dropout.p = False, 0.0, 0.0
    other = copy.deepcopy(model)
    expected = train_step(model, batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = train_step(other, batch())
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=0.1, abs=0.02), name
    assert all(p.grad.isfinite().all() for p in other.parameters())


def test_a_pair_of_readings_differs_in_the_stems(tmp_path):
    authors = build(tmp_path, "MODEL.DINOGRL.READING", "authors")
    default = build(tmp_path)
    assert authors.state_dict().keys() == default.state_dict().keys()
    kinds = [[type(m).__name__ for m in x.backbone.visible_stem] for x in (default, authors)]
    assert kinds[0][-1] == "ReLU"
    assert kinds[1][-1] == "Identity"
    assert authors.gait.maps.mask.fixed
    assert authors.per_frame


def test_half_of_the_visible_clips_show_one_channel():
    is_visible = (torch.arange(400) % 2 == 0).repeat_interleave(3)
    order = channel_order(is_visible, 3).view(400, 3, 3)
    changed = (order != torch.arange(3)).flatten(1).any(1)
    assert not changed[1::2].any()
    assert 70 < changed[::2].sum() < 130
    some = order[changed]
    assert (some == some[:, :1, :1]).all()  # one channel for the clip
    assert set(some.flatten().tolist()) == {0, 1, 2}
    frames = channel_order(is_visible, 3, per_frame=True).view(400, 3, 3)
    assert (frames != frames[:, :1]).any()
    assert (frames == frames[..., :1]).all(-1).any()


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("READING", "release", "authors"),
        ("STREAMS", "one", "appearance"),
        ("BINS", "[2,4]", "first"),
        ("GRID", "[4]", "rows"),
        ("DINOV2", "nowhere.pth", "do not exist"),
    ],
)
def test_wrong_values_are_refused(tmp_path, key, value, word):
    with pytest.raises(UserError, match=word):
        build(tmp_path, f"MODEL.DINOGRL.{key}", value)


def test_heads_and_losses_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="PartHead"):
        build(tmp_path, "MODEL.HEADS.NAME", "ClipHead")
    losses = "('CrossEntropyLoss','PartTripletLoss','FrameCrossEntropyLoss')"
    with pytest.raises(UserError, match="frame_logits"):
        build(tmp_path, "MODEL.LOSSES.NAME", losses)
    with pytest.raises(UserError, match="rebuilt_tokens"):
        build(tmp_path, "MODEL.DINOGRL.STREAMS", "appearance")
    names = ("MODEL.BACKBONE.NAME", "build_dinov2_backbone", "MODEL.BACKBONE.DEPTH", "tiny")
    with pytest.raises(UserError, match="convolutional"):
        build(tmp_path, *names)


def test_biggaits_mask_branch_is_loaded(tmp_path):
    branch = torch.nn.ModuleDict({
        "bn_s": torch.nn.BatchNorm1d(64, affine=False),
        "bn_t": torch.nn.BatchNorm1d(2, affine=False),
        "down_sampling": torch.nn.Linear(64, 2),
        "up_sampling": torch.nn.Linear(2, 64),
    })  # fmt: skip
    path = tmp_path / "mask.pt"
    torch.save({"model": branch.state_dict()}, path)
    mask = build(tmp_path, "MODEL.DINOGRL.MASK_WEIGHTS", path).gait.maps.mask
    assert torch.equal(mask.down.weight[..., 0, 0], branch["down_sampling"].weight)
    assert torch.equal(mask.up.bias, branch["up_sampling"].bias)
    assert mask.border_share == 0
    for wrong in ({"down_sampling.weight": torch.zeros(2, 3)}, {7: torch.zeros(2, 3)}):
        torch.save({"model": wrong}, path)
        with pytest.raises(UserError, match=r"mask branch|no weights"):
            build(tmp_path, "MODEL.DINOGRL.MASK_WEIGHTS", path)


def test_a_run_resumes_bit_for_bit_and_its_checkpoint_has_no_dinov2(tiny_root, tmp_path):
    whole = config(tiny_root, tmp_path / "whole", "SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "2")
    trainer = Trainer(whole)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results is None or results["metric"] >= 0
    part = config(tiny_root, tmp_path / "part", "SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "2")
    interrupted_after_first_epoch(tmp_path / "whole", tmp_path / "part")
    resumed = Trainer(part)
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == 1
    resumed.train()
    first, second = (
        read_file(str(tmp_path / name / "model_final.pth"))["model"] for name in ("whole", "part")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not [name for name in first if "network" in name]
    assert (
        checkpoint_config(str(tmp_path / "part" / "model_last.pth")).MODEL.DINOGRL.READING
        == "default"
    )
    check_inference(tmp_path / "whole", tiny_root)


def check_inference(run, root):
    """Features, export and report of a run whose features have parts."""
    predictor = StarPredictor.from_run(run)
    data = SyntheticVCM(str(root))
    tracklets = [*data.query[:2], *data.gallery[:3]]
    inputs = [
        TrackletInput([t.path(n) for n in range(len(t))], t.modality, name=str(n))
        for n, t in enumerate(tracklets)
    ]
    features = predictor.features(inputs)
    assert features.shape == (5, 18, 16)
    distances = torch.cdist(features[:2].transpose(0, 1), features[2:].transpose(0, 1)).mean(0)
    torch.testing.assert_close(similarity(features[:2], features[2:]), -distances)
    if has_onnx():
        exported = export_onnx(predictor.model, predictor.cfg, run / "model.onnx")
        assert "features [batch, 18, 16], parts" in str(exported)
    page = write_report(run, options=("DATASETS.ROOT", str(root)), queries=1).read_text()
    assert 'id="silhouettes"' in page
    assert page.count("with the learned silhouettes") == 4  # a query and a match, both ways


def guided(tmp_path, *more):
    return build(tmp_path, "MODEL.DINOGRL.GUIDE", *more)


def test_a_guide_gives_the_first_part_of_the_appearance(tmp_path):
    model = guided(tmp_path, "ClipHead", "MODEL.DINOGRL.STREAMS", "apart").eval()
    plain = build(tmp_path, "MODEL.DINOGRL.STREAMS", "apart").eval()
    plain.load_state_dict(model.state_dict())
    inputs = batch()
    outputs, expected = model.encode(inputs), plain.encode(inputs)
    first = gem(outputs["frames"], 3, dim=1) @ model.appearance.fc.weight[0]
    torch.testing.assert_close(outputs["features"][:, 7], first)
    others = [part for part in range(14) if part != 7]
    torch.testing.assert_close(outputs["features"][:, others], expected["features"][:, others])


def test_stars_skeletons_lead_the_appearance(tmp_path):
    losses = (
        "('CrossEntropyLoss','PartTripletLoss','TokenReconstructionLoss','SkeletonConsistencyLoss')"
    )
    corrector = "MODEL.FRAME_CORRECTOR.NAME", "SkeletonFrameCorrector"
    model = guided(tmp_path, "GATGeMHead", *corrector, "MODEL.LOSSES.NAME", losses)
    assert model.reads_skeletons
    generator = torch.Generator().manual_seed(1)
    inputs = batch()
    inputs["skeletons"] = torch.rand(4, 3, 17, 3, generator=generator) * 16
    inputs["has_skeleton"] = torch.ones(4, 3, dtype=torch.bool)
    assert "loss_skeleton" in train_step(model, inputs)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        found = model.eval()(inputs)
        moved = model({**inputs, "skeletons": inputs["skeletons"].roll(1, 0)})
    changed = (found - moved).abs().amax((0, 2)) > 1e-6
    assert changed[9], "the first part of the appearance depends on the skeletons"
    assert not changed[10:16].any(), "its stripes do not"
    assert "part_weights" in model.explain(inputs)


def test_a_guide_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a head for clips"):
        guided(tmp_path, "PartHead")
    with pytest.raises(UserError, match="leads the appearance"):
        guided(tmp_path, "ClipHead", "MODEL.DINOGRL.STREAMS", "gait", *ID_LOSSES)
