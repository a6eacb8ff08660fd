"""A tiny SyntheticVCM and a config that trains on it in a second or two."""

from pathlib import Path

from fastreid_star.engine.defaults import load_config

REPOSITORY = Path(__file__).parents[1]
DEMO = str(REPOSITORY / "configs" / "Synthetic" / "SAD_demo.yml")
STAR_DEMO = str(REPOSITORY / "configs" / "Synthetic" / "STAR_demo.yml")
DATA = {"TRAIN_IDS": 6, "TEST_IDS": 4, "TRACKLETS": 2, "FRAMES": 12, "SIZE": (32, 16)}


def tiny_options(root, output, *more) -> list[str]:
    """Config options of a run of 3 epochs of 3 iterations on the tiny data."""
    options = {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.DEPTH": "tiny",
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "INPUT.CLIP.LENGTH": 3,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCH": 3,
        "SOLVER.STEPS": [2],
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "TEST.EVAL_PERIOD": 3,
        **{f"DATASETS.SYNTHETIC.{key}": value for key, value in DATA.items()},
    }
    return [str(part) for pair in options.items() for part in pair] + [str(part) for part in more]


def tiny_config(root, output, *more):
    return load_config(DEMO, tiny_options(root, output, *more))


def star_config(root, output, *more):
    return load_config(STAR_DEMO, tiny_options(root, output, *more))


def small_config(name, root, output, *more):
    """A config Synthetic/*_small.yml with the tiny network, on the tiny data."""
    data = ("OCCLUSION", "0.0", "BLUR", "0.3", "BACKGROUND", "False")
    data = [f"DATASETS.SYNTHETIC.{word}" if i % 2 == 0 else word for i, word in enumerate(data)]
    options = [*data, "MODEL.LOSSES.CE_ONLY_EPOCHS", "0", *more]
    return load_config(f"Synthetic/{name}_small.yml", tiny_options(root, output, *options))


def interrupted_after_first_epoch(whole, part):
    """Make `part` the folder of the run `whole` as it was after its first of two epochs."""
    part.mkdir()
    (part / "model_last.pth").write_bytes((whole / "model_last-1.pth").read_bytes())
    (part / "last_checkpoint").write_text("model_last.pth")
