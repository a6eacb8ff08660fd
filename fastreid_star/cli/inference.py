"""features, search, threshold and export."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastreid_star.cli.arguments import Action, add_model, add_predictor, add_tracklets

if TYPE_CHECKING:
    from fastreid_star.data.tracklets import TrackletInput
    from fastreid_star.inference import StarPredictor


def predictor_from(args: argparse.Namespace) -> StarPredictor:
    """The predictor that the arguments name."""
    from fastreid_star.inference.predictor import load_predictor

    return load_predictor(
        run=args.run,
        config_file=args.config_file,
        weights=args.weights,
        opts=args.set,
        device=args.device,
        dtype=args.dtype or "float32",
    )


def skeleton_maker(
    args: argparse.Namespace, predictor: StarPredictor, beside: str
) -> Callable[[list[TrackletInput]], list[TrackletInput]]:
    """What extracts the skeletons that the model reads and the user has not given.

    They are kept in the folder ``PATH.skeletons``, where `beside` is PATH.
    """
    if args.skeletons or not getattr(predictor.model, "reads_skeletons", False):
        return list
    from fastreid_star.pose.on_the_fly import add_skeletons

    folder = f"{Path(beside)}.skeletons"
    return functools.partial(add_skeletons, folder=folder, device=predictor.device)


def add_features(parser: argparse.ArgumentParser) -> Action:
    """Compute the features of a dataset's tracklets, or of your own in folders and videos.

      fastreid-star features --run logs/run --dataset HITSZVCM --split test --output features.npz
      fastreid-star features --run logs/run crops --gallery galleries/crops
      fastreid-star features --run logs/run a.mp4 b.mp4 --modality infrared --output features.npz

    Every folder that holds images is a tracklet, its frames in natural order (2.jpg before 10.jpg).
    --modality sets the modality, or a folder above named rgb, visible, ir or infrared.

    --output writes an .npz file (features [N, D], names, modality; for a dataset pids and camids)
    and a .json file beside it. --gallery creates a gallery for fastreid-star search, or extends
    one; with --replace, new features replace entries of the same names.
    """
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="folders of tracklets, and videos")
    add_tracklets(parser)
    add("--dataset", default="", metavar="NAME", help="HITSZVCM, SyntheticVCM, ...")
    splits, which = ("train", "query", "gallery", "test"), "of the dataset; test: query and gallery"
    add("--split", default="test", choices=splits, help=which)
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    add("--output", default="", metavar="FILE", help="an .npz file to write")
    add("--gallery", default="", metavar="FOLDER", help="a gallery to create or extend")
    same = "replace the entries of the gallery that have the same names"
    parser.add_argument("--replace", action="store_true", help=same)
    add_predictor(parser)
    return _features


def _features(args: argparse.Namespace) -> None:
    from fastreid_star.inference.features import extract_features

    predictor = predictor_from(args)
    done = extract_features(
        predictor,
        args.paths,
        dataset=args.dataset,
        split=args.split,
        modality=args.modality,
        skeletons=args.skeletons,
        output=args.output,
        gallery=args.gallery,
        replace=args.replace,
        add_skeletons=skeleton_maker(args, predictor, args.gallery or args.output),
        batch_size=args.batch_size,
        num_workers=args.workers,
    )
    print(done)


def add_search(parser: argparse.ArgumentParser) -> Action:
    """Rank a gallery for your own tracklets, given as folders of images or as videos.

      fastreid-star search galleries/crops crops/ir/anna --run logs/run
      fastreid-star search galleries/crops crops/ir --run logs/run --top 20 --json lists.json
      fastreid-star search galleries/crops night.mp4 --modality infrared --run logs/run

    fastreid-star features --gallery creates the gallery; use the model that computed it. An
    infrared query is ranked among the visible entries and a visible one among the infrared;
    --among changes this. --set TEST.RERANK.ENABLED True re-ranks the lists of all queries.
    --threshold run answers "nobody in the gallery" where no entry is above the threshold that
    fastreid-star threshold has computed.
    """
    add = parser.add_argument
    add("gallery", metavar="GALLERY", help="the folder of a gallery")
    add("queries", nargs="+", metavar="QUERY", help="folders and videos")
    add_tracklets(parser)
    add("--top", type=int, default=10, metavar="K", help="entries per list (default: 10)")
    choices = ("other", "visible", "infrared", "all")
    ranked = "which entries are ranked; other: those of the other modality"
    add("--among", default="other", choices=choices, help=ranked)
    add("--json", default="", metavar="FILE", help="also write the lists as JSON")
    add("--csv", default="", metavar="FILE", help="also write the lists as CSV")
    add("--pictures", default="", metavar="FOLDER", help="also draw each list with first frames")
    least = "similarity above which an entry is the query's person: that of the run, or a number"
    add("--threshold", type=run_or_number, metavar="run|NUMBER", help=least)
    add_predictor(parser)
    return _search


def _search(args: argparse.Namespace) -> None:
    from fastreid_star.inference.search import search, to_table

    predictor = predictor_from(args)
    answers = search(
        predictor,
        args.gallery,
        args.queries,
        modality=args.modality,
        skeletons=args.skeletons,
        top=args.top,
        among=args.among,
        json_file=args.json,
        csv_file=args.csv,
        pictures=args.pictures,
        threshold=predictor.threshold if args.threshold == "run" else args.threshold,
        add_skeletons=skeleton_maker(args, predictor, args.gallery),
        batch_size=args.batch_size,
        num_workers=args.workers,
    )
    print(to_table(answers))
    if args.pictures:
        print(f"pictures: {args.pictures}")


def run_or_number(text: str) -> str | float:
    """The ``type`` of ``--threshold``."""
    if text == "run":
        return text
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is neither run nor a number")


def add_threshold(parser: argparse.ArgumentParser) -> Action:
    """Compute above which similarity an infrared and a visible tracklet show the same person.

      fastreid-star threshold --run logs/run --false-accepts 0.01
      fastreid-star threshold --run logs/run --false-accepts 0.001 --dataset HITSZVCM
      fastreid-star threshold crops --pairs pairs.csv --run logs/run --false-accepts 0.01

    At most this share of the pairs of two people is above the threshold: of all infrared-visible
    pairs of the run's test set, or of labeled pairs of your own tracklets. pairs.csv has the lines
    first,second,same and rgb/anna,ir/unknown,1 (0: two people), with names as in galleries.

    It is kept beside the checkpoint, as threshold.json, and is for its weights only.
    """
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="with --pairs: folders of tracklets, and videos")
    share = "share of the pairs of two people, such as 0.01"
    add("--false-accepts", type=float, required=True, metavar="RATE", help=share)
    add("--pairs", default="", metavar="FILE", help="labeled pairs, instead of a test set")
    add("--dataset", default="", metavar="NAME", help="a test set (default: that of the run)")
    skeletons = "skeletons of the images below PATH (default: those of MoveNet, if they are read)"
    add("--skeletons", default="", metavar="STORE", help=skeletons)
    add_predictor(parser)
    return _threshold


def _threshold(args: argparse.Namespace) -> None:
    from fastreid_star.inference.calibration import calibrate

    predictor = predictor_from(args)
    done = calibrate(
        predictor,
        args.false_accepts,
        dataset=args.dataset,
        paths=args.paths,
        pairs=args.pairs,
        skeletons=args.skeletons,
        add_skeletons=skeleton_maker(args, predictor, args.pairs),
        batch_size=args.batch_size,
        num_workers=args.workers,
    )
    print(done)


def add_export(parser: argparse.ArgumentParser) -> Action:
    """Export a trained model to ONNX or torch.export, and check the features of the file.

      fastreid-star export --run logs/run model.onnx
      fastreid-star export --run logs/run --dtype float16 half.onnx
      fastreid-star export --run logs/run model.pt2
      fastreid-star export --config-file HITSZ-VCM/STAR_R50.yml --weights model.pth model.onnx
      fastreid-star export --run logs/run --modality infrared infrared.onnx

    OUTPUT.onnx is a graph of ONNX, OUTPUT.pt2 a program of torch.export. Without --modality, an
    input of the graph says for each clip whether it is visible or infrared, and each frame passes
    both stems. With it the graph has one stem. docs/export.md lists the inputs and what runs where,
    and describes the conversion for Ascend.
    """
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="the .onnx or .pt2 file to write")
    add("--modality", choices=("visible", "infrared"), help="of all clips (default: both)")
    add("--frames", type=int, metavar="T", help="frames of a clip (default: INPUT.CLIP.LENGTH)")
    add("--opset", type=int, metavar="N", help="ONNX opset, 13 (default) to 18")
    half = "ONNX: convolutions and products in 16 bits (default: all in float32)"
    add("--dtype", choices=("float16",), help=half)
    add_model(parser)
    parser.set_defaults(device="cpu")  # for tracing; the graph runs wherever a runtime does
    return _export


def _export(args: argparse.Namespace) -> None:
    from fastreid_star.errors import UserError
    from fastreid_star.inference.export import DEFAULT_OPSET, export_onnx
    from fastreid_star.inference.program import ENDING, export_program

    if not args.output.endswith((".onnx", ENDING)):
        raise UserError(f"{args.output} ends neither in .onnx nor in {ENDING}")
    shape = {"modality": args.modality, "length": args.frames}
    if args.output.endswith(ENDING):
        if args.dtype or args.opset:
            raise UserError("--dtype and --opset are for .onnx files: leave them out for a .pt2")
        predictor = predictor_from(args)
        print(export_program(predictor.model, predictor.cfg, args.output, **shape))
        return
    predictor = predictor_from(args)
    done = export_onnx(
        predictor.model,
        predictor.cfg,
        args.output,
        opset=args.opset or DEFAULT_OPSET,
        precision=args.dtype or "float32",
        **shape,
    )
    print(done)
