"""Run one small training of a demo config and return everything that a rebuild must not change.

    python tests/golden/record.py            compare today's numbers with the record
    python tests/golden/record.py --write    replace the record

Everything is computed in float64: what processors and libraries round differently stays far below the
tolerances of the test, where float32 would multiply it to some per cent within 20 steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "Synthetic"
RECORD = HERE / "record.npz"
STEPS = 20
OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.DEPTH": "tiny",
    "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.CLIP.LENGTH": 3,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.SYNTHETIC.TRAIN_IDS": 10,
    "DATASETS.SYNTHETIC.TEST_IDS": 6,
    "DATASETS.SYNTHETIC.TRACKLETS": 2,
    "DATASETS.SYNTHETIC.FRAMES": 12,
    "DATASETS.SYNTHETIC.SIZE": [32, 16],
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCH": 4,
    "SOLVER.STEPS": [3],
    "SOLVER.CHECKPOINT_PERIOD": 0,
    "TEST.EVAL_PERIOD": 4,
}
# The readings of STAR that checkpoints of release 0.1.0 have.
SAD_LOSSES = "CrossEntropyLoss,FrameCrossEntropyLoss,TripletLoss,StyleAttackLoss,StyleDefenseLoss"
SIGMOID = {
    "MODEL.STAR.GUIDE": "sigmoid",
    "MODEL.STAR.GRAPH": "normalized",
    "MODEL.LOSSES.NAME": f"{SAD_LOSSES},SkeletonConsistencyLoss",
}
RELEASE = {
    **{f"MODEL.STAR.{key}": "release" for key in ("BONES", "CORRECTOR", "GUIDE", "GRAPH")},
    "MODEL.LOSSES.NAME": f"{SAD_LOSSES},PoseConsistencyLoss",
    "DATASETS.SYNTHETIC.OCCLUSION": 0.6,
    "DATASETS.SYNTHETIC.BLUR": 0.6,
    "DATASETS.SYNTHETIC.BACKGROUND": True,
}
DINOGRL = {
    "MODEL.LOSSES.CE_ONLY_EPOCHS": 0,
    "MODEL.HEADS.EMBEDDING_DIM": 16,
    "MODEL.DINOGRL.GRID": [8, 4],
    "MODEL.DINOGRL.BINS": [1, 2],
    "DATALOADER.NUM_INSTANCE": 2,
    "SOLVER.BASE_LR": 0.0002,
}
CASES: dict[str, tuple[str, dict]] = {
    "SAD": ("SAD_demo.yml", {}),
    "STAR": ("STAR_demo.yml", {}),
    "STAR_sigmoid": ("STAR_demo.yml", SIGMOID),
    "STAR_release": ("STAR_demo.yml", RELEASE),
    "DinoGRL": ("DinoGRL_tiny.yml", DINOGRL),
}


def run(case: str, root: Path, *, double: bool = True) -> dict[str, np.ndarray]:
    """Train and evaluate a case; arrays by name: losses of each step, test features, results.

    Args:
        case: of CASES.
        root: a folder for the dataset and the run.
        double: in float64; False: as the config says.
    """
    config, own = CASES[case]
    options = {**OPTIONS, **own, "DATASETS.ROOT": root / case, "OUTPUT_DIR": root / case}
    cfg = load_config(
        str(CONFIGS / config), [str(part) for pair in options.items() for part in pair]
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    losses, features = [], []

    def listen(module, inputs, output):
        if isinstance(output, dict):
            losses.append({name: float(value.detach()) for name, value in output.items()})
        else:
            features.append(output.float().cpu().numpy())

    def in_float64(module, args):
        return ({**args[0], "skeletons": args[0]["skeletons"].double()},)

    try:
        trainer = Trainer(cfg)
        if double:
            trainer.model.double()
            trainer.model.register_forward_pre_hook(in_float64)
        trainer.model.register_forward_hook(listen)
        trainer.resume_or_load(resume=False)
        results = trainer.train()
    finally:
        torch.set_num_threads(threads)
    names = list(losses[-1])
    found = {
        "losses": np.array([[step.get(name, np.nan) for name in names] for step in losses[:STEPS]]),
        "features": np.concatenate(features),
        "results": np.array([float(value) for value in results.values()]),
        "loss_names": np.array(names),
        "result_names": np.array(list(results)),
    }
    assert len(found["losses"]) == STEPS
    return {f"{case}/{name}": value for name, value in found.items()}


def run_all() -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, np.ndarray] = {}
        for case in CASES:
            found.update(run(case, Path(folder)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the record")
    args = parser.parse_args()
    found = run_all()
    if args.write:
        np.savez_compressed(RECORD, **found)
        return
    with np.load(RECORD) as record:
        for name in record.files:
            if record[name].dtype.kind == "U":
                print(f"{name}: {'equal' if (record[name] == found[name]).all() else 'DIFFERENT'}")
                continue
            difference = np.nanmax(np.abs(record[name] - found[name]))
            print(f"{name}: largest difference {difference:.3g}")


if __name__ == "__main__":
    main()
