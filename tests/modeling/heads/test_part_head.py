"""The head of parts: BNNeck, cosine classifier."""

import torch

from fastreid_star.modeling.heads import PartHead


def test_logits_are_scaled_cosines_of_each_normalized_part():
    head = PartHead(feat_dim=3, num_parts=2, num_classes=5, scale=16).double().train()
    torch.nn.init.normal_(head.norm.weight)
    torch.nn.init.normal_(head.norm.bias)
    parts = torch.randn(6, 2, 3, dtype=torch.float64)
    found = head(parts, torch.zeros(6, dtype=torch.long))
    for b in range(6):
        for p in range(2):
            x = []
            for d in range(3):
                column, at = parts[:, p, d], 3 * p + d
                deviation = (column.var(unbiased=False) + head.norm.eps).sqrt()
                x.append((column[b] - column.mean()) / deviation * head.norm.weight[at])
                x[-1] = x[-1] + head.norm.bias[at]
            x = torch.stack(x)
            for c in range(5):
                w = head.weight[c, p]
                cosine = (x @ w) / (x.norm() * w.norm())
                torch.testing.assert_close(found["cls_outputs"][b, p, c], 16 * cosine)
    torch.testing.assert_close(found["pred_class_logits"], found["cls_outputs"].mean(1))


def test_a_batch_of_one_clip_takes_the_running_statistics():
    head = PartHead(feat_dim=3, num_parts=1, num_classes=2, scale=1).train()
    with torch.no_grad():
        head.norm.running_mean.copy_(torch.tensor([1.0, 0.0, 0.0]))
    found = head(torch.tensor([[[1.0, 2.0, 0.0]]]), torch.zeros(1))["cls_outputs"]
    weight = torch.nn.functional.normalize(head.weight[:, 0], dim=-1)
    torch.testing.assert_close(found[0, 0], weight[:, 1])
    assert head.norm.num_batches_tracked == 0


def test_evaluation_gives_the_parts_before_the_neck():
    parts = torch.randn(2, 2, 3)
    assert PartHead(feat_dim=3, num_parts=2, num_classes=5).eval()(parts) is parts
