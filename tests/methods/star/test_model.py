"""STAR as a whole: the baseline plus parts that can be taken off one by one."""

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg

from fastreid_star.coco import NUM_BONES, NUM_JOINTS, NUM_PARTS
from fastreid_star.errors import UserError
from fastreid_star.methods.sad import SAD
from fastreid_star.methods.star import STAR
from fastreid_star.modeling.layers.pooling import gem

CLIPS, LENGTH = 8, 3
SAD_LOSSES = (
    "CrossEntropyLoss",
    "FrameCrossEntropyLoss",
    "TripletLoss",
    "StyleAttackLoss",
    "StyleDefenseLoss",
)
ALL_LOSSES = (*SAD_LOSSES, "SkeletonConsistencyLoss")
RELEASE_LOSSES = (*SAD_LOSSES, "PoseConsistencyLoss")


def config(*, frame="SkeletonFrameCorrector", sequence=True, losses=ALL_LOSSES, **star):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_small_resnet_backbone"
    cfg.MODEL.BACKBONE.DEPTH = "tiny"
    cfg.MODEL.BACKBONE.FEAT_DIM = 0
    cfg.MODEL.HEADS.NAME = "GATGeMHead" if sequence else "ClipHead"
    cfg.MODEL.HEADS.NUM_CLASSES = 2
    cfg.MODEL.LOSSES.NAME = losses
    cfg.MODEL.LOSSES.TRI.HARD_MINING = True
    cfg.INPUT.SIZE_TRAIN = [32, 16]
    cfg.MODEL.FRAME_CORRECTOR.NAME = frame
    cfg.MODEL.SKELETON_DROPOUT = star.pop("SKELETON_DROPOUT", 0.0)
    for key, value in star.items():
        cfg.MODEL.STAR[key] = value
    return cfg


def build(cls, cfg, seed=0):
    torch.manual_seed(seed)
    return cls(cfg)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    skeletons = torch.rand(CLIPS, LENGTH, NUM_JOINTS, 3, generator=generator)
    skeletons[..., :2] *= torch.tensor([16.0, 32.0])
    skeletons[..., 2] = 0.5 + skeletons[..., 2] / 2
    return {
        "images": torch.randint(
            0, 256, (CLIPS, LENGTH, 3, 32, 16), dtype=torch.uint8, generator=generator
        ),
        "modality": torch.tensor([2, 2, 2, 2, 1, 1, 1, 1]),
        "targets": torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]),
        "skeletons": skeletons,
        "has_skeleton": torch.ones(CLIPS, LENGTH, dtype=torch.bool),
    }


def step(model, batch, seed=1):
    torch.manual_seed(seed)
    return model.train()(batch)


def test_with_every_part_off_it_is_the_baseline_number_for_number(batch):
    star = build(STAR, config(frame="", sequence=False, losses=SAD_LOSSES))
    sad = build(SAD, config(frame="", sequence=False, losses=SAD_LOSSES))
    assert list(star.state_dict()) == list(sad.state_dict())
    ours, theirs = step(star, batch), step(sad, batch)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    for (name, p), q in zip(star.named_parameters(), sad.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad), name
    del batch["skeletons"], batch["has_skeleton"]
    assert torch.equal(star.eval()(batch), sad.eval()(batch)), "and it needs no skeletons"


READINGS = [
    {},
    {"frame": "BoneReader"},
    {"sequence": False, "losses": SAD_LOSSES},
    {"losses": SAD_LOSSES},
    {"losses": (*SAD_LOSSES, "AbsentSkeletonLoss")},
    {"GUIDE": "sigmoid", "GRAPH": "normalized", "BONES": "normalized", "SCORE_THRESHOLD": 0.3},
    {
        "GUIDE": "release",
        "losses": RELEASE_LOSSES,
        "GRAPH": "release",
        "BONES": "release",
        "CORRECTOR": "release",
    },
    {"frame": "BoneReader", "GUIDE": "release", "losses": SAD_LOSSES},
]


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_every_reading_trains_every_weight_and_evaluates(batch, reading):
    model = build(STAR, config(**reading))
    sum(step(model, batch).values()).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name
    features = model.eval()(batch)
    assert torch.allclose(features.norm(dim=1), torch.ones(CLIPS), atol=1e-5)


def test_a_mask_of_the_bones_trains_no_bones():
    """DDP waits for the gradients of the bone encoder: a loss that reads has_clip only gives none."""
    read = build(STAR, config(frame="BoneReader"))
    assert not read.has_idle_parameters
    idle = build(STAR, config(frame="BoneReader", losses=SAD_LOSSES))
    assert idle.has_idle_parameters
    idle.losses["TripletLoss"].needs += ("has_clip",)
    assert idle.has_idle_parameters


def test_a_clip_without_a_skeleton_takes_the_baselines_path(batch):
    batch["has_skeleton"][2:5] = False
    batch["skeletons"][2:5] = float("nan")  # whatever is stored there
    star = build(STAR, config()).eval()
    sad = build(SAD, config(frame="", sequence=False, losses=SAD_LOSSES)).eval()
    missing, unexpected = sad.load_state_dict(star.state_dict(), strict=False)
    assert not missing
    assert unexpected
    ours, theirs = star(batch), sad(batch)
    assert torch.allclose(ours[2:5], theirs[2:5], atol=1e-6)
    assert not torch.allclose(ours[:2], theirs[:2], atol=1e-3)


def test_a_clip_without_a_skeleton_takes_its_own_neck(batch):
    star = build(STAR, config(losses=(*SAD_LOSSES, "AbsentSkeletonLoss")))
    outputs = star.train().encode(batch)
    pooled = gem(outputs["frames"], 3.0, dim=1)
    scaled = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    logits = scaled @ star.heads.weight.T
    assert torch.allclose(outputs["absent_logits"], logits, atol=1e-4)
    found = star.losses["AbsentSkeletonLoss"].of(outputs)
    assert torch.allclose(found, F.cross_entropy(logits, batch["targets"]), atol=1e-4)
    found.backward()
    learning = {name for name, p in star.named_parameters() if p.grad is not None}
    assert learning == {"absent_neck.0.weight"}
    star.eval()
    batch["has_skeleton"][2:5] = False
    outputs = star.encode(batch)
    pooled = gem(outputs["frames"], 3.0, dim=1)
    absent = star.absent_neck(pooled[..., None, None])[..., 0, 0]
    present = star.heads(outputs["clip"])
    expected = torch.cat([present[:2], absent[2:5], present[5:]])
    assert torch.allclose(outputs["features"], F.normalize(expected, dim=1), atol=1e-6)
    for parts in ({"frame": ""}, {"sequence": False}):
        build(STAR, config(losses=(*SAD_LOSSES, "AbsentSkeletonLoss"), **parts)).eval()(batch)
    with pytest.raises(
        UserError, match="AbsentSkeletonLoss is for networks whose corrector or head"
    ):
        build(
            STAR,
            config(frame="", sequence=False, losses=(*SAD_LOSSES, "AbsentSkeletonLoss")),
        )


def test_a_skeleton_dropout_of_one_is_training_without_skeletons(batch):
    without = {**batch, "has_skeleton": torch.zeros(CLIPS, LENGTH, dtype=torch.bool)}
    models = [
        build(STAR, config(SKELETON_DROPOUT=share, losses=("CrossEntropyLoss",)))
        for share in (1.0, 0.0)
    ]
    for model in models:
        model.augment = False
    dropped, bare = step(models[0], batch), step(models[1], without)
    assert all(torch.equal(dropped[name], bare[name]) for name in bare)
    assert not torch.equal(models[0].eval()(batch), models[1].eval()(without)), "only in training"


def test_explain_shows_what_the_parts_attended_to(batch):
    batch["has_skeleton"][1] = False
    model = build(STAR, config()).train()
    seen = model.explain(batch)
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        "bone_weights": (CLIPS, LENGTH, NUM_BONES),
        "frame_updates": (CLIPS, LENGTH),
        "frame_attention": (CLIPS, LENGTH, LENGTH),
        "joint_attention": (CLIPS, LENGTH, NUM_JOINTS),
        "part_weights": (CLIPS, NUM_PARTS),
    }
    assert all(
        (value[1] == 0).all() and (value[0] >= 0).all() and value[0].any()
        for value in seen.values()
    )
    assert model.training
    assert model.heads.training
    assert torch.allclose(seen["part_weights"][0].sum(), torch.tensor(1.0))


def test_the_parts_mix_with_any_meta_architecture(batch):
    """STAR's parts on SAD's class are STAR, number for number."""
    star, sad = build(STAR, config()), build(SAD, config())
    ours, theirs = step(star, batch), step(sad, batch)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # equation (15): L_id = clip and frame CE, L_tri, L_SAD = attack CE and defense, L_KL
    assert list(ours) == [
        *("loss_cls", "loss_cls_frame", "loss_triplet", "loss_cls_attack", "loss_defense"),
        "loss_skeleton",
    ]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match="SkeletonConsistencyLoss needs joints,"):
        build(STAR, config(sequence=False))
    with pytest.raises(UserError, match="SkeletonConsistencyLoss needs bone_states"):
        build(STAR, config(frame=""))
    with pytest.raises(UserError, match="GATGeMHead needs bone_states"):
        build(STAR, config(frame="", GUIDE="release", losses=SAD_LOSSES))
    with pytest.raises(UserError, match="PoseConsistencyLoss compares the pose features"):
        build(STAR, config(losses=RELEASE_LOSSES))
    with pytest.raises(UserError, match=r"SKELETON_DROPOUT is 1\.5"):
        build(STAR, config(SKELETON_DROPOUT=1.5))
    with pytest.raises(UserError, match="choose one of BoneReader, SkeletonFrameCorrector"):
        build(STAR, config(frame="Corrector"))
    for key in ("GUIDE", "GRAPH", "BONES", "CORRECTOR"):
        with pytest.raises(UserError, match=rf"MODEL\.STAR\.{key} is 'x': choose one of"):
            build(STAR, config(**{key: "x"}))
    model = build(STAR, config(frame="", sequence=False, losses=SAD_LOSSES))
    with pytest.raises(UserError, match="reads no skeletons"):
        model.explain({})
