import math

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.losses import triplet_loss as fastreid_triplet_loss

from fastreid_star.errors import UserError
from fastreid_star.methods.sad import defense_loss
from fastreid_star.modeling.losses import (
    LOSS_REGISTRY,
    Loss,
    build_losses,
    cross_entropy_loss,
    triplet_loss,
)


class TestDefense:
    def test_by_hand(self):
        x = torch.tensor([[3.0, 4.0], [1.0, 1.0]], requires_grad=True)
        attacked = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
        loss = defense_loss(x, attacked)
        assert loss.item() == pytest.approx(2.5, abs=1e-5)  # (5 + 0) / 2
        loss.backward()
        # half a unit vector where they differ, nothing (and no NaN) where they do not
        assert torch.allclose(x.grad, torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
        assert torch.equal(attacked.grad, -x.grad)  # neither side is detached


class TestCrossEntropy:
    def test_by_hand(self):
        logits, targets = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 0])
        expected = (math.log(2) + math.log(4 / 3)) / 2
        assert cross_entropy_loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)
        assert cross_entropy_loss(logits, targets, scale=0.5).item() == pytest.approx(
            expected / 2, rel=1e-6
        )

    def test_smoothing_by_hand(self):
        # probabilities 3/4, 1/4; smoothed target 0.9 + 0.05, 0.05
        loss = cross_entropy_loss(
            torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]), epsilon=0.1
        )
        assert loss.item() == pytest.approx(
            -0.95 * math.log(3 / 4) - 0.05 * math.log(1 / 4), rel=1e-6
        )


class TestTriplet:
    points = torch.tensor([[0.0], [1.0], [3.0], [5.0]])
    targets = torch.tensor([0, 0, 1, 1])

    def test_by_hand(self):
        # hardest (positive, negative) distances: (1, 3) (1, 2) (2, 2) (2, 4); only the third
        # violates the margin
        assert triplet_loss(self.points, self.targets).item() == pytest.approx(0.3 / 4, abs=1e-6)
        assert triplet_loss(self.points, self.targets, margin=1.5).item() == pytest.approx(
            (0.5 + 1.5) / 4, abs=1e-6
        )

    def test_one_process_has_the_whole_batch(self):
        for points in (self.points, self.points.bfloat16()):
            loss = triplet_loss(points, self.targets, all_ranks=True)
            assert loss.item() == pytest.approx(0.3 / 4, abs=1e-6)
        assert triplet_loss(self.points, self.targets, scale=2.0).item() == pytest.approx(
            0.6 / 4, abs=1e-6
        )

    @pytest.mark.parametrize("hard_mining", [True, False])
    @pytest.mark.parametrize("norm_feat", [True, False])
    def test_agrees_with_fastreid_at_small_distances(self, norm_feat, hard_mining):
        features, targets = torch.randn(8, 16), torch.arange(4).repeat(2)
        options = {"margin": 5.0, "norm_feat": norm_feat, "hard_mining": hard_mining}
        ours = triplet_loss(features, targets, **options)
        theirs = fastreid_triplet_loss(features, targets, *options.values())
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)

    def test_weighted_negatives_keep_their_weight_at_large_distances(self):
        points = 20 * torch.tensor([[0.0], [1.0], [3.0], [5.0]], dtype=torch.float64)
        loss = triplet_loss(points, self.targets, margin=0.3, hard_mining=False)
        total = 0.0
        for a in range(4):
            positive = negative = weight_p = weight_n = 0.0
            for b in range(4):
                d = abs(float(points[a] - points[b]))
                if self.targets[a] == self.targets[b]:
                    weight_p, positive = weight_p + math.exp(d), positive + d * math.exp(d)
                else:
                    weight_n, negative = weight_n + math.exp(-d), negative + d * math.exp(-d)
            total += max(0.0, positive / weight_p - negative / weight_n + 0.3)
        assert loss.item() == pytest.approx(total / 4, rel=1e-4)

    def test_autocast_does_not_touch_the_distances(self):
        # 1e4 apart from 0, 1 apart from each other: in bfloat16 the distances cancel to noise
        features = 100 + torch.randn(8, 64)
        targets = torch.arange(4).repeat(2)
        exact = triplet_loss(features.double(), targets, margin=1.0).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert triplet_loss(features, targets, margin=1.0).item() == pytest.approx(
                exact, rel=1e-2
            )


class TestBuild:
    @staticmethod
    def config(*names, weights=(), ce_only=0):
        cfg = get_cfg()
        cfg.MODEL.LOSSES.NAME = names
        cfg.MODEL.LOSSES.WEIGHTS = list(weights)
        cfg.MODEL.LOSSES.CE_ONLY_EPOCHS = ce_only
        return cfg

    def test_a_loss_that_reads_nothing_gets_its_weight_name_and_epoch(self, monkeypatch):
        class Own(Loss):
            needs = ("clip",)

            def __init__(self, cfg, feat_dim):
                super().__init__()

        monkeypatch.setitem(LOSS_REGISTRY._obj_map, "Own", Own)
        cfg = self.config("CrossEntropyLoss", "Own", weights=[("Own", 0.5)], ce_only=3)
        own = build_losses(cfg, feat_dim=4)["Own"]
        assert (own.weight, own.first_epoch, own.log_name) == (0.5, 3, "Own")

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"names": ("TripletLoss", "TripletLoss")}, "both logged"),
            ({"names": ("TripletLoss",), "ce_only": 2}, "CE_ONLY_EPOCHS is 2"),
            ({"names": ("TripletLoss",), "weights": ["TripletLoss", 0.5]}, "pairs"),
            ({"names": ("SkeletonConsistencyLoss", "PoseConsistencyLoss")}, "both logged"),
        ],
    )
    def test_what_would_be_lost_in_silence_is_refused(self, options, word):
        names = options.pop("names")
        with pytest.raises(UserError, match=word):
            build_losses(self.config(*names, **options), feat_dim=4)
