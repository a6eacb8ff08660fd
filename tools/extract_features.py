#!/usr/bin/env python
"""Make the features of a dataset's tracklets, or of one's own in folders and videos.

    python tools/extract_features.py --run logs/run --dataset HITSZVCM --split test --output features.npz
    python tools/extract_features.py --run logs/run crops --gallery galleries/crops
    python tools/extract_features.py --run logs/run a.mp4 b.mp4 --modality infrared --output features.npz

In a folder, every folder that holds images is a tracklet, its frames in natural order (2.jpg before 10.jpg). Whether it
is visible or infrared is said by --modality, or by a folder named rgb, visible, ir or infrared that it lies in.

--output writes an .npz (features [N, D], names, modality; of a dataset pids and camids) and a .json beside it with the
names and what is known of them. --gallery writes a gallery for tools/search.py, or adds to one that is there.
"""

from __future__ import annotations

import argparse

from fastreid_star.engine.defaults import run_tool
from fastreid_star.inference.features import (
    SPLITS,
    check_features_path,
    names_file,
    set_of_dataset,
    set_of_paths,
    write_features,
)
from fastreid_star.inference.gallery import open_gallery
from fastreid_star.inference.predictor_tools import (
    add_predictor_arguments,
    add_tracklet_arguments,
    features_of,
    predictor_from,
    skeletons_from,
)
from fastreid_star.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="folders of tracklets, and videos")
    add_tracklet_arguments(parser)
    parser.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="HITSZVCM, SyntheticVCM, ...; instead of paths",
    )
    parser.add_argument(
        "--split", default="test", choices=SPLITS, help="of the dataset; test: query and gallery"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", default="", metavar="FILE", help="an .npz file to write")
    where.add_argument(
        "--gallery", default="", metavar="FOLDER", help="a gallery to make, or to add to"
    )
    add_predictor_arguments(parser)
    args = parser.parse_args()
    if bool(args.paths) == bool(args.dataset):
        raise UserError("features of what? give paths, or --dataset NAME, and not both")
    if args.dataset and (args.modality or args.skeletons):
        raise UserError(
            "a dataset knows its modalities and skeletons: leave --modality and --skeletons out"
        )

    predictor = predictor_from(args)
    if args.dataset:
        what = set_of_dataset(predictor.cfg, args.dataset, args.split)
    else:
        what = set_of_paths(args.paths, args.modality, skeletons_from(args))
    if args.output:
        check_features_path(args.output)
        features = features_of(predictor, what, args)
        write_features(args.output, features, what, predictor.fingerprint)
        print(
            f"{len(features)} features of {features.shape[1]} numbers: {args.output}; names: {names_file(args.output)}"
        )
    else:
        gallery = open_gallery(args.gallery, predictor)
        gallery.check_names(what.names)
        gallery.add(features_of(predictor, what, args), what.names, what.modalities, what.metadata)
        gallery.save(args.gallery)
        print(f"{len(what.names)} tracklets added, {len(gallery)} in all: {args.gallery}")


if __name__ == "__main__":
    run_tool(main)
