#!/usr/bin/env python
"""Rank a gallery for tracklets of one's own, given as folders of images and as videos.

    python tools/search.py galleries/crops crops/ir/anna --run logs/run
    python tools/search.py galleries/crops crops/ir --run logs/run --top 20 --json lists.json --pictures sheets
    python tools/search.py galleries/crops night.mp4 --modality infrared --run logs/run

The gallery is one of tools/extract_features.py --gallery, and the model the one that it was made with. An infrared
query is ranked among the visible entries and a visible one among the infrared, unless --among says otherwise.
"""

from __future__ import annotations

import argparse

from fastreid_star.inference.pictures import write_contact_sheets
from fastreid_star.engine.defaults import run_tool
from fastreid_star.inference.features import PICTURE, check_folder_of, set_of_paths
from fastreid_star.inference.gallery import Gallery
from fastreid_star.inference.predictor_tools import (
    add_predictor_arguments,
    add_tracklet_arguments,
    features_of,
    predictor_from,
    skeletons_from,
)
from fastreid_star.inference.search import AMONG, ask, to_csv, to_json, to_table, write_lists


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gallery", metavar="GALLERY", help="a gallery's folder")
    parser.add_argument(
        "queries", nargs="+", metavar="QUERY", help="folders of tracklets, and videos"
    )
    add_tracklet_arguments(parser)
    parser.add_argument("--top", type=int, default=10, metavar="K", help="entries of each list; 10")
    parser.add_argument(
        "--among",
        default="other",
        choices=AMONG,
        help="which entries; other: not the query's modality",
    )
    parser.add_argument(
        "--json", default="", metavar="FILE", help="also write the lists for programs"
    )
    parser.add_argument(
        "--csv", default="", metavar="FILE", help="also write them for spreadsheets"
    )
    parser.add_argument(
        "--pictures", default="", metavar="FOLDER", help="also draw each list, by the first frames"
    )
    add_predictor_arguments(parser)
    args = parser.parse_args()

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
        write_contact_sheets(
            args.pictures, answers, [known[PICTURE] for known in what.metadata], gallery
        )


if __name__ == "__main__":
    run_tool(main)
