#!/usr/bin/env python
"""DinoGRL on synthetic data: train a small transformer, then both streams alone and together.

    python tools/dinogrl_synthetic.py --output logs/dinogrl --seeds 0 1 2

Writes the transformer (``small_vit.pth``), the runs, ``table.md``, and ``silhouettes.md`` with the
IoU of the learned silhouettes. It can be interrupted and called again: finished parts are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastreid_star.ablation.runs import ablate
from fastreid_star.data.build import build_clip_test_loader, build_dataset
from fastreid_star.data.datasets.synthetic import write_masks
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import load_trained
from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.methods.dinogrl.pretrain import read_frames, save_network, train_on_identities
from fastreid_star.methods.dinogrl.silhouettes import compare_silhouettes, store_silhouettes
from fastreid_star.modeling.backbones.dinov2 import Dinov2

CONFIGS = {
    "both": "Synthetic/DinoGRL_tiny.yml",
    "apart": "Synthetic/DinoGRL_tiny_apart.yml",
    "appearance": "Synthetic/DinoGRL_tiny_appearance.yml",
    "gait": "Synthetic/DinoGRL_tiny_gait.yml",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500, help="of the transformer's training")
    parser.add_argument("--random", action="store_true", help="random weights, no training of it")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    opts = ["DATASETS.ROOT", str(args.output), "MODEL.DEVICE", "cpu", *args.opts]
    cfg = load_config(CONFIGS["both"], opts)
    data = build_dataset(cfg, "SyntheticVCM")
    if not args.random:
        vit = args.output / "small_vit.pth"
        if not vit.exists():
            torch.manual_seed(0)
            network = Dinov2.of_size("tiny", cfg.MODEL.DINOGRL.GRID)
            images = read_frames(data.train, tuple(cfg.INPUT.SIZE_TRAIN), every=2)
            train_on_identities(network, *images, steps=args.steps, report=print)
            save_network(network, vit)
        opts += ["MODEL.DINOGRL.DINOV2", str(vit)]
    runs = args.output / ("runs_random" if args.random else "runs")
    ablate(list(CONFIGS.values()), str(runs), seeds=args.seeds, root=str(args.output), opts=opts)
    masks = args.output / "silhouettes"
    if not masks.exists():
        write_masks(args.output / "SyntheticVCM", masks)
    lines = [
        "| run | mean mAP untrained | mean mAP | IoU visible | IoU infrared |",
        "|---|---|---|---|---|",
    ]
    for folder in sorted(path.parent for path in runs.rglob("model_final.pth")):
        lines.append(measure(folder, masks, opts))
        print(lines[-1])
    (runs / "silhouettes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(folder: Path, masks: Path, opts: list[str]) -> str:
    """A row of the table: a trained run, and the same network before training."""
    cfg = load_config(str(folder / "config.yaml"), opts)
    loader = build_clip_test_loader(cfg, "SyntheticVCM")
    model = load_trained(cfg, str(folder / "model_final.pth"))
    trained = mean_map(model, loader, cfg)
    ious = {}
    if model.has_silhouettes:
        keys = store_silhouettes(model, loader.dataset, folder / "silhouettes")
        ious = compare_silhouettes(folder / "silhouettes", masks, keys)
    torch.manual_seed(cfg.SEED)
    before = mean_map(type(model)(cfg).eval(), loader, cfg)
    shown = [f"{ious[name]:.3f}" if ious else "" for name in ("visible", "infrared")]
    name = f"{folder.parent.name}/{folder.name}"
    return f"| {name} | {before:.2f} | {trained:.2f} | {' | '.join(shown)} |"


@torch.no_grad()
def mean_map(model: torch.nn.Module, loader, cfg) -> float:
    features = torch.cat([model(batch) for batch in loader])
    results = cross_modal_results(
        features,
        loader.dataset.tracklets,
        min_frames=cfg.DATASETS.MIN_FRAMES,
        dataset_name="SyntheticVCM",
    )
    return results.metrics()["mean/mAP"]


if __name__ == "__main__":
    main()
