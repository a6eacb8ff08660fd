"""features, search and export."""

from __future__ import annotations

import argparse

from fastreid_star.cli.arguments import (
    Action,
    add_predictor,
    add_set,
    add_tracklets,
)


def add_features(parser: argparse.ArgumentParser) -> Action:
    """Compute the features of a dataset's tracklets, or of your own in folders and videos.

      fastreid-star features --run logs/run --dataset HITSZVCM --split test --output features.npz
      fastreid-star features --run logs/run crops --gallery galleries/crops
      fastreid-star features --run logs/run a.mp4 b.mp4 --modality infrared --output features.npz

    Every folder that holds images is a tracklet, its frames in natural order (2.jpg before 10.jpg).
    --modality sets the modality, or a folder above named rgb, visible, ir or infrared.

    --output writes an .npz file (features [N, D], names, modality; for a dataset pids and camids)
    and a .json file beside it. --gallery creates a gallery for fastreid-star search, or extends
    one.
    """
    parser.add_argument("paths", nargs="*", metavar="PATH", help="folders of tracklets, and videos")
    add_tracklets(parser)
    parser.add_argument("--dataset", default="", metavar="NAME", help="HITSZVCM, SyntheticVCM, ...")
    parser.add_argument(
        "--split",
        default="test",
        choices=("train", "query", "gallery", "test"),
        help="of the dataset; test is query and gallery",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", default="", metavar="FILE", help="an .npz file to write")
    target.add_argument(
        "--gallery", default="", metavar="FOLDER", help="a gallery to create or extend"
    )
    add_predictor(parser)
    return _features


def _features(args: argparse.Namespace) -> None:
    from fastreid_star.engine import feature_sets as sets
    from fastreid_star.engine.gallery import open_gallery
    from fastreid_star.engine.predictor_tools import features_of, predictor_from, skeletons_from
    from fastreid_star.errors import UserError

    if bool(args.paths) == bool(args.dataset):
        raise UserError("features of what? give paths, or --dataset NAME, and not both")
    if args.dataset and (args.modality or args.skeletons):
        raise UserError(
            "a dataset knows its modalities and skeletons: leave --modality and --skeletons out"
        )
    predictor = predictor_from(args)
    if args.dataset:
        what = sets.set_of_dataset(predictor.cfg, args.dataset, args.split)
    else:
        what = sets.set_of_paths(args.paths, args.modality, skeletons_from(args))
    if args.output:
        sets.check_features_path(args.output)
        features = features_of(predictor, what, args)
        sets.write_features(args.output, features, what, predictor.fingerprint)
        print(
            f"{len(features)} features of {features.shape[1]} numbers: {args.output}; "
            f"names: {sets.names_file(args.output)}"
        )
    else:
        gallery = open_gallery(args.gallery, predictor)
        gallery.check_names(what.names)
        gallery.add(features_of(predictor, what, args), what.names, what.modalities, what.metadata)
        gallery.save(args.gallery)
        print(f"{len(what.names)} tracklets added, {len(gallery)} in all: {args.gallery}")


def add_search(parser: argparse.ArgumentParser) -> Action:
    """Rank a gallery for your own tracklets, given as folders of images or as videos.

      fastreid-star search galleries/crops crops/ir/anna --run logs/run
      fastreid-star search galleries/crops crops/ir --run logs/run --top 20 --json lists.json
      fastreid-star search galleries/crops night.mp4 --modality infrared --run logs/run

    fastreid-star features --gallery creates the gallery; use the model that computed it. An
    infrared query is ranked among the visible entries and a visible one among the infrared;
    --among changes this.
    """
    parser.add_argument("gallery", metavar="GALLERY", help="the folder of a gallery")
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="folders and videos")
    add_tracklets(parser)
    parser.add_argument(
        "--top", type=int, default=10, metavar="K", help="entries per list (default: 10)"
    )
    parser.add_argument(
        "--among",
        default="other",
        choices=("other", "visible", "infrared", "all"),
        help="which entries are ranked; other: those of the other modality",
    )
    parser.add_argument("--json", default="", metavar="FILE", help="also write the lists as JSON")
    parser.add_argument("--csv", default="", metavar="FILE", help="also write the lists as CSV")
    parser.add_argument(
        "--pictures", default="", metavar="FOLDER", help="also draw each list with first frames"
    )
    add_predictor(parser)
    return _search


def _search(args: argparse.Namespace) -> None:
    from fastreid_star.engine.contact_sheet import write_contact_sheets
    from fastreid_star.engine.feature_sets import PICTURE, check_folder_of, set_of_paths
    from fastreid_star.engine.gallery import Gallery
    from fastreid_star.engine.predictor_tools import features_of, predictor_from, skeletons_from
    from fastreid_star.engine.ranked_lists import ask, to_csv, to_json, to_table, write_lists

    for path in filter(None, (args.json, args.csv)):
        check_folder_of(path)
    predictor = predictor_from(args)
    gallery = Gallery.load(args.gallery, predictor)
    what = set_of_paths(args.queries, args.modality, skeletons_from(args))
    features = features_of(predictor, what, args)
    answers = ask(gallery, features, what.names, what.modalities, k=args.top, among=args.among)
    print(to_table(answers))
    if args.json:
        write_lists(args.json, to_json(answers, gallery))
    if args.csv:
        write_lists(args.csv, to_csv(answers))
    if args.pictures:
        pictures = [known[PICTURE] for known in what.metadata]
        write_contact_sheets(args.pictures, answers, pictures, gallery)


def add_export(parser: argparse.ArgumentParser) -> Action:
    """Export a trained model to ONNX and check its features with onnxruntime.

      fastreid-star export --run logs/run model.onnx
      fastreid-star export --config-file HITSZ-VCM/STAR_R50.yml --weights model.pth model.onnx
      fastreid-star export --run logs/run --modality infrared infrared.onnx

    Without --modality, an input of the graph says for each clip whether it is visible or infrared,
    and each frame passes both stems. With it the graph has one stem. docs/export.md lists the
    inputs and describes the conversion for Ascend.
    """
    parser.add_argument("output", metavar="OUTPUT", help="the .onnx file to write")
    parser.add_argument(
        "--run",
        default="",
        metavar="FOLDER",
        help="it holds config.yaml, and model_best.pth or model_final.pth",
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="a YAML file")
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="a checkpoint; with --run, one in its folder"
    )
    add_set(parser)
    parser.add_argument(
        "--modality", choices=("visible", "infrared"), help="of all clips (default: both)"
    )
    parser.add_argument(
        "--frames", type=int, metavar="T", help="frames of a clip (default: INPUT.CLIP.LENGTH)"
    )
    parser.add_argument(
        "--opset", type=int, default=13, metavar="N", help="ONNX opset, 13 (default) to 18"
    )
    parser.set_defaults(device="cpu")  # for tracing; the graph runs wherever a runtime does
    return _export


def _export(args: argparse.Namespace) -> None:
    from fastreid_star.engine.export import export_onnx
    from fastreid_star.engine.predictor_tools import predictor_from
    from fastreid_star.structures import Modality

    predictor = predictor_from(args)
    done = export_onnx(
        predictor.model,
        predictor.cfg,
        args.output,
        modality=Modality[args.modality.upper()] if args.modality else None,
        length=args.frames,
        opset=args.opset,
    )
    print(done)
