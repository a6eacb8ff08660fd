"""features, search and export."""

from __future__ import annotations

import argparse
import functools
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
        add_skeletons=skeleton_maker(args, predictor, args.gallery),
        batch_size=args.batch_size,
        num_workers=args.workers,
    )
    print(to_table(answers))
    if args.pictures:
        print(f"pictures: {args.pictures}")


def add_export(parser: argparse.ArgumentParser) -> Action:
    """Export a trained model to ONNX and check its features with onnxruntime.

      fastreid-star export --run logs/run model.onnx
      fastreid-star export --config-file HITSZ-VCM/STAR_R50.yml --weights model.pth model.onnx
      fastreid-star export --run logs/run --modality infrared infrared.onnx

    Without --modality, an input of the graph says for each clip whether it is visible or infrared,
    and each frame passes both stems. With it the graph has one stem. docs/export.md lists the
    inputs and describes the conversion for Ascend.
    """
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="the .onnx file to write")
    add("--modality", choices=("visible", "infrared"), help="of all clips (default: both)")
    add("--frames", type=int, metavar="T", help="frames of a clip (default: INPUT.CLIP.LENGTH)")
    add("--opset", type=int, default=13, metavar="N", help="ONNX opset, 13 (default) to 18")
    add_model(parser)
    parser.set_defaults(device="cpu")  # for tracing; the graph runs wherever a runtime does
    return _export


def _export(args: argparse.Namespace) -> None:
    from fastreid_star.inference.export import export_onnx

    predictor = predictor_from(args)
    done = export_onnx(
        predictor.model,
        predictor.cfg,
        args.output,
        modality=args.modality,
        length=args.frames,
        opset=args.opset,
    )
    print(done)
