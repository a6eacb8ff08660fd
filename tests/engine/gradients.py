"""Gradients of STAR's losses on one global batch, whatever the number of processes.

Everything that draws random numbers is off, and BatchNorm normalizes by fixed statistics: what is
left must not depend on how the batch is shared out.
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer

OPTIONS = """
    MODEL.BACKBONE.DEPTH tiny MODEL.BACKBONE.FEAT_DIM 128 MODEL.HEADS.NUM_CLASSES 8
    MODEL.SAD.AUGMENT False MODEL.LOSSES.TRI.MARGIN 2.0 INPUT.SIZE_TRAIN [32,16] MODEL.LOSSES.NAME
    ('CrossEntropyLoss','FrameCrossEntropyLoss','TripletLoss','SkeletonConsistencyLoss')
"""
IDENTITIES, CLIPS, LENGTH = 8, 2, 3


def global_batch():
    """[visible; infrared], `CLIPS` clips of each identity in each."""
    generator = torch.Generator().manual_seed(3)
    clips = 2 * IDENTITIES * CLIPS
    skeletons = torch.rand(clips, LENGTH, NUM_JOINTS, 3, generator=generator) * torch.tensor(
        [16.0, 32.0, 0.5]
    )
    skeletons[..., 2] += 0.5
    return {
        "images": torch.randint(
            0, 256, (clips, LENGTH, 3, 32, 16), dtype=torch.uint8, generator=generator
        ),
        "modality": torch.tensor([2, 1]).repeat_interleave(clips // 2),
        "targets": torch.arange(IDENTITIES).repeat_interleave(CLIPS).repeat(2),
        "skeletons": skeletons,
        "has_skeleton": torch.ones(clips, LENGTH, dtype=torch.bool),
    }


def share_of(batch, rank, world):
    """Whole identities, both modalities."""
    mine = batch["targets"] % world == rank
    return {key: value[mine] for key, value in batch.items()}


def gradients(device: torch.device, *, all_ranks: bool) -> dict[str, torch.Tensor]:
    """The gradients by name, on the CPU; of this process's share in a process group."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    options = [*OPTIONS.split(), "MODEL.LOSSES.TRI.ALL_RANKS", str(all_ranks)]
    cfg = load_config("Synthetic/STAR_small.yml", [*options, "MODEL.DEVICE", str(device)])
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    gat = model.heads.gat
    gat.conv1.dropout = gat.conv2.dropout = gat.dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    runner = model
    if world > 1:
        ids = None if device.type == "cpu" else [device.index]
        runner = DistributedDataParallel(model, device_ids=ids)
    batch = share_of(global_batch(), rank, world)
    batch = {key: value if key == "modality" else value.to(device) for key, value in batch.items()}
    sum(runner(batch).values()).backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(one, other) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
