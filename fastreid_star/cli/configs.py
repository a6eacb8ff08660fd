"""configs: list the shipped configs, print a resolved config, explain keys."""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
from pathlib import Path

from fastreid_star.cli.arguments import Action, configs_folder

# keys without a comment in fast-reid's source and ours, or with one that does not fit clips
MEANINGS = {
    "MODEL.META_ARCHITECTURE": "The model, a registered meta-architecture.",
    "MODEL.FREEZE_LAYERS": "Modules that SOLVER.FREEZE_ITERS freezes.",
    "MODEL.BACKBONE.NAME": "The function that builds the backbone.",
    "MODEL.BACKBONE.DEPTH": "Depth or variant of the backbone, such as 18x or 50x.",
    "MODEL.BACKBONE.LAST_STRIDE": "Stride of the last stage.",
    "MODEL.BACKBONE.FEAT_DIM": "Width of the features; 0: the width of the backbone.",
    "MODEL.BACKBONE.STRIDE_SIZE": "Stride of a vision transformer's patches.",
    "MODEL.BACKBONE.DROP_PATH_RATIO": "Stochastic depth of a vision transformer.",
    "MODEL.BACKBONE.DROP_RATIO": "Dropout of a vision transformer.",
    "MODEL.BACKBONE.ATT_DROP_RATE": "Attention dropout of a vision transformer.",
    "MODEL.HEADS.NAME": "The head: ClipHead, or another registered head.",
    "MODEL.HEADS.SCALE": "Scale of a margin-based classification layer.",
    "MODEL.LOSSES.NAME": "The losses that are added up, names of LOSS_REGISTRY.",
    "KD.MODEL_CONFIG": "Knowledge distillation: configs of the teachers.",
    "KD.MODEL_WEIGHTS": "Knowledge distillation: weights of the teachers.",
    "KD.EMA": "Knowledge distillation: moving average of the weights.",
    "INPUT.FLIP": "Random horizontal flip.",
    "INPUT.PADDING": "Random crop after padding.",
    "DATALOADER.NUM_INSTANCE": "K: clips of each identity and modality in a batch. "
    "NaiveIdentitySampler: K clips of each identity.",
    "DATALOADER.NUM_WORKERS": "Decoding processes of each device.",
    "SOLVER.MAX_EPOCH": "Epochs of training.",
    "SOLVER.BASE_LR": "Learning rate after the warm-up.",
    "SOLVER.MOMENTUM": "Momentum of SGD.",
    "SOLVER.NESTEROV": "Nesterov momentum.",
    "SOLVER.WEIGHT_DECAY": "Weight decay.",
    "SOLVER.WEIGHT_DECAY_BIAS": "Weight decay of biases.",
    "SOLVER.BIAS_LR_FACTOR": "Learning rate of biases, as a factor of SOLVER.BASE_LR.",
    "SOLVER.HEADS_LR_FACTOR": "Learning rate of the heads, as a factor of SOLVER.BASE_LR.",
    "SOLVER.SCHED": "Schedule of the learning rate: MultiStepLR or CosineAnnealingLR.",
    "SOLVER.DELAY_EPOCHS": "Epochs before a cosine schedule starts.",
    "SOLVER.GAMMA": "Factor of the learning rate at each milestone.",
    "SOLVER.STEPS": "Milestones in epochs.",
    "SOLVER.WARMUP_ITERS": "Length of the warm-up in iterations.",
    "SOLVER.WARMUP_METHOD": "linear or constant.",
    "SOLVER.CHECKPOINT_PERIOD": "Epochs between two checkpoints.",
    "SOLVER.IMS_PER_BATCH": "Clips of a batch (images, for a dataset of images) over all devices.",
    "TEST.EVAL_PERIOD": "Epochs between two evaluations; 0: never.",
    "TEST.IMS_PER_BATCH": "Clips (or images) of a test batch of one device.",
    "TEST.METRIC": "Similarity of two features, for a dataset of images.",
    "TEST.ROC": "Same person or not: TPR at some FPR, for clips also EER and open set.",
    "TEST.FLIP": "The feature is the mean with that of the mirror image.",
    "OUTPUT_DIR": "Folder of the checkpoints, the log and the results.",
}


def add_configs(parser: argparse.ArgumentParser) -> Action:
    """List the shipped configs, print a resolved config with the meaning of its keys, explain keys.

      fastreid-star configs
      fastreid-star configs HITSZ-VCM/STAR_R50.yml SOLVER.MAX_EPOCH 60
      fastreid-star configs --key SKELETONS
      fastreid-star configs Synthetic/STAR_small.yml --key SOLVER
      fastreid-star configs HITSZ-VCM/STAR_R50.yml --cost
      fastreid-star configs --losses

    A star marks values that differ from the default. --cost counts the parameters that are trained,
    with classifiers of 500 identities, and the operations for the feature of one tracklet (a
    multiplication and an addition are two). --step also measures a training step on this machine:
    its time, by that of SAD on as many frames, and what it keeps of a frame for its backward pass.
    With --page all this is done for every config that a page names, and the table is put between
    the lines <!-- cost: begin --> and <!-- cost: end -->. --losses lists all losses and
    augmentations; with --page between such lines of the mark catalog.
    """
    parser.add_argument("name", nargs="?", metavar="NAME", help="a shipped config or a YAML file")
    parser.add_argument(
        "--key", default="", metavar="PATTERN", help="only keys that contain this text"
    )
    parser.add_argument("--cost", action="store_true", help="count parameters and operations")
    parser.add_argument(
        "--step", action="store_true", help="with --cost: measure a training step, too"
    )
    parser.add_argument("--losses", action="store_true", help="list losses and augmentations")
    parser.add_argument("--page", default="", metavar="FILE", help="a Markdown page for the tables")
    return _configs


def _cost(args: argparse.Namespace) -> None:
    from fastreid_star.engine.cost import cost_of_page, cost_table
    from fastreid_star.errors import UserError
    from fastreid_star.files import write_output

    step = None
    if args.step:
        from fastreid_star.training_step import step_cost

        step = step_cost
    if bool(args.name) == bool(args.page):
        raise UserError("--cost of what? Give a config, or --page FILE (and KEY VALUE)")
    if args.name:
        print(cost_table([args.name], args.opts, step))
        return
    content = cost_of_page(args.page, args.opts, step)
    write_output(args.page, lambda file: file.write(content.encode()))
    print(f"the costs are in {args.page}")


def _losses(page: str) -> None:
    from fastreid_star.engine.catalog import catalog
    from fastreid_star.files import insert, write_output

    if not page:
        print(catalog())
        return
    content = insert(page, "catalog", catalog())
    write_output(page, lambda file: file.write(content.encode()))
    print(f"the losses are in {page}")


def _configs(args: argparse.Namespace) -> None:
    if args.losses:
        _losses(args.page)
        return
    if args.cost or args.step or args.page:
        _cost(args)
        return
    if not (args.name or args.key):
        print(listing(configs_folder()))
        return
    from fastreid.config import get_cfg

    from fastreid_star.engine.config_changes import flatten
    from fastreid_star.engine.defaults import load_config
    from fastreid_star.errors import UserError

    meanings = explanations()
    values, defaults = (
        flatten(load_config(args.name or "", args.opts)),
        flatten(get_cfg()),
    )
    shown = [key for key in values if args.key.upper() in key]
    if not shown:
        raise UserError(f"no config key contains {args.key!r}")
    for key in shown:
        mark = "*" if values[key] != defaults.get(key) else " "
        default = f"   (default: {defaults.get(key)!r})" if mark == "*" else ""
        print(f"{mark} {key}: {values[key]!r}{default}")
        print(textwrap.indent(textwrap.fill(meaning_of(key, meanings), 92), " " * 6))


def listing(folder: Path) -> str:
    """The configs below a folder, each with the first line of its comment."""
    lines: list[str] = []
    paths = sorted(folder.rglob("*.yml"), key=lambda path: (path.parent, path.name))
    for number, path in enumerate(paths):
        name = path.relative_to(folder)
        if number == 0 or path.parent != paths[number - 1].parent:
            lines += ["", f"{name.parent if name.parent.name else 'all others start from'}"]
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        about = first.lstrip("# ") if first.startswith("#") else ""
        lines.append(f"  {name.as_posix():42} {textwrap.shorten(about, 100, placeholder=' ...')}")
    return "\n".join(
        [f"configs in {folder}", *lines, "", "fastreid-star configs NAME explains one of them"]
    )


def explanations() -> dict[str, str]:
    """Key or node -> meaning: the table above, else our comments, else fast-reid's."""
    from fastreid.config import defaults

    from fastreid_star import config, methods

    modules = [defaults, config]
    modules += [importlib.import_module(f"{m.__name__}.config") for m in methods.METHODS]
    meanings: dict[str, str] = {}
    for module in modules:
        meanings |= comments(Path(str(module.__file__)).read_text(encoding="utf-8"))
    return {**meanings, **MEANINGS}


def comments(source: str) -> dict[str, str]:
    """Key -> the comment above the line of Python that sets it, or behind it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in map(str.strip, source.splitlines()):
        key = re.match(r"(?:cfg|_C)\.([A-Z][\w.]*) = ", line)
        if line.startswith("#"):
            above = [] if "---" in line else [*above, line.lstrip("# ")]  # a line is a heading
            continue
        behind = re.search(r"\s#\s*(.+)$", line)
        if key and (above or behind):
            found[key[1]] = " ".join([*above, *([behind[1]] if behind else [])]).strip()
        above = []
    return found


def meaning_of(key: str, meanings: dict[str, str]) -> str:
    """The meaning of a key, or of the closest node above it that has one."""
    node = key
    while node not in meanings and "." in node:
        node = node.rpartition(".")[0]
    return meanings.get(node) or "(not documented)"
