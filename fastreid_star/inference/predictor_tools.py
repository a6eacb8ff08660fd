"""What the command line tools that make features share: their arguments, the predictor, the bar."""

from __future__ import annotations

import argparse
import sys

import torch
from tqdm import tqdm

from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.engine.defaults import load_config
from fastreid_star.inference.features import FeatureSet
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.errors import UserError


def add_predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that :func:`predictor_from`, :func:`skeletons_from` and :func:`features_of` read."""
    model = parser.add_argument_group("model", "a run's folder, or a config and weights")
    model.add_argument(
        "--run",
        default="",
        metavar="FOLDER",
        help="config.yaml, and model_best.pth or model_final.pth",
    )
    model.add_argument("--config-file", default="", metavar="FILE", help="a YAML file")
    model.add_argument(
        "--weights", default="", metavar="FILE", help="a checkpoint; with --run, one of its folder"
    )
    model.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values to change"
    )
    model.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, npu, cuda or cpu, as MODEL.DEVICE"
    )
    model.add_argument(
        "--batch-size", type=int, default=None, metavar="N", help="tracklets at a time"
    )
    model.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that decode; 2"
    )


def add_tracklet_arguments(parser: argparse.ArgumentParser) -> None:
    """How the tracklets in folders and videos are to be taken."""
    parser.add_argument(
        "--modality",
        choices=("visible", "infrared"),
        help="of all of them; without, each is in a folder named rgb, visible, ir or infrared",
    )
    parser.add_argument(
        "--skeletons",
        default="",
        metavar="STORE",
        help="of the folder's images, made by tools/extract_skeletons.py",
    )


def predictor_from(args: argparse.Namespace) -> StarPredictor:
    """The predictor that the arguments name.

    Raises:
        UserError: they name none or two, or what is named is wrong.
    """
    if args.run and args.config_file:
        raise UserError(
            "--run has a config of its own: leave --config-file out, or name a config and weights alone"
        )
    if args.run:
        return StarPredictor.from_run(args.run, args.device, args.weights, args.set)
    if not (args.config_file and args.weights):
        raise UserError(
            "a model is needed: add --run FOLDER, or --config-file FILE and --weights FILE"
        )
    return StarPredictor(load_config(args.config_file, args.set), args.weights, args.device)


def skeletons_from(args: argparse.Namespace) -> SkeletonStore | None:
    """The store that the arguments name, None where they name none."""
    return SkeletonStore.open(args.skeletons) if args.skeletons else None


def features_of(
    predictor: StarPredictor, what: FeatureSet, args: argparse.Namespace
) -> torch.Tensor:
    """Features [N, D], with a bar on a terminal and elsewhere a line every half minute."""
    if args.workers < 0:
        raise UserError(f"--workers {args.workers}: a number of processes, 0 or more")
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=len(what.tracklets), unit=" tracklets", mininterval=interval) as bar:
        return predictor.features(
            what.tracklets,
            batch_size=args.batch_size,
            num_workers=args.workers,
            progress=bar.update,
        )
