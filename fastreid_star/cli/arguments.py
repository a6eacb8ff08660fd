"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Action = Callable[[argparse.Namespace], "int | None"]
DEVICES = "auto, npu, cuda, cpu or mps, as MODEL.DEVICE"


def configs_folder() -> Path:
    """The folder of shipped configs: in an installed package, or beside the package in a clone."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def at_least(least: int) -> Callable[[str], int]:
    """The ``type`` of an argument: an integer that is not smaller than `least`."""

    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is smaller than {least}")
        return int(text)

    return integer


def add_set(parser: argparse._ActionsContainer) -> None:
    """``--set KEY VALUE ...``, for commands whose other arguments are a list of paths."""
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="config keys and their new values; place it last or before another option",
    )


def add_model(parser: argparse.ArgumentParser) -> argparse._ActionsContainer:
    """A trained model; the group of arguments is returned."""
    model = parser.add_argument_group("model", "the folder of a run, or a config and weights")
    add = model.add_argument
    contents = "it holds config.yaml, and model_best.pth or model_final.pth"
    add("--run", default="", metavar="FOLDER", help=contents)
    add("--config-file", default="", metavar="FILE", help="a YAML file, or the name of a config")
    add("--weights", default="", metavar="FILE", help="a checkpoint; with --run, one in its folder")
    add_set(model)
    return model


def add_predictor(parser: argparse.ArgumentParser) -> None:
    """A trained model, and how its features are computed."""
    add = add_model(parser).add_argument
    add("--device", default="auto", metavar="NAME", help=DEVICES)
    add("--batch-size", type=at_least(1), metavar="N", help="tracklets per batch")
    workers = "decoding processes (default: 2)"
    add("--workers", type=at_least(0), default=2, metavar="N", help=workers)


def add_tracklets(parser: argparse.ArgumentParser) -> None:
    """How folders and videos are read as tracklets."""
    parser.add_argument(
        "--modality",
        choices=("visible", "infrared"),
        help=(
            "modality of all tracklets; without it, a folder named rgb, visible, ir or infrared "
            "above each tracklet decides"
        ),
    )
    parser.add_argument(
        "--skeletons",
        default="",
        metavar="STORE",
        help=(
            "skeletons of the images, written by fastreid-star skeletons --images (default: those "
            "of MoveNet, if the model reads skeletons)"
        ),
    )
