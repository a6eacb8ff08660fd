"""tracklets: from videos of scenes to crops of people."""

from __future__ import annotations

import argparse

from fastreid_star.cli.arguments import DEVICES, Action, at_least


def add_tracklets(parser: argparse.ArgumentParser) -> Action:
    """Cut the people of a video out: a folder of crops for each person, for features and search.

      fastreid-star tracklets night.mp4 --modality infrared -o crops
      fastreid-star tracklets day.mp4 --modality visible --tracks day.txt -o crops
      fastreid-star tracklets day.mp4 --modality visible --detector yolo11n.onnx -o crops

    With --tracks, a tracker of your choice has found the people: it wrote a file in the text format
    of MOTChallenge, with lines `frame, track, left, top, width, height, score, class`.

    Without it, people are detected and tracked here. The default, motion, is for a fixed camera. It
    needs no weights, and it is weak: look at the crops, and delete folders that do not show one
    person. --detector also takes a YOLO as an ONNX file, or the name of a detection model of
    torchvision, whose weights are in the file of --weights or in torch's cache.

    Crops are written to FOLDER/ir or FOLDER/rgb, with a manifest for each video: frame numbers,
    boxes and scores.
    """
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO", help="videos, folders of videos or of frames")
    choices = ("visible", "infrared")
    add("--modality", required=True, choices=choices, help="modality of the videos")
    add("-o", "--output", required=True, metavar="FOLDER", help="folder of the tracklets")
    add("--tracks", default="", metavar="FILE", help="tracks of the video, MOTChallenge text")
    kind = "class of people in --tracks, if it has several"
    add("--class", type=int, dest="kind", metavar="N", help=kind)
    detectors = "motion (default), an .onnx file, or a model of torchvision"
    add("--detector", default="motion", metavar="NAME", help=detectors)
    file = "weights of a torchvision model (default: those in torch's cache)"
    add("--weights", default="", metavar="FILE", help=file)
    add("--min-score", type=float, default=0.5, metavar="S", help="of a detector with weights")
    add("--device", default="auto", metavar="NAME", help=DEVICES)
    least = "leave out people with fewer crops (default: 12)"
    add("--min-frames", type=at_least(1), default=12, metavar="N", help=least)
    return _tracklets


def _tracklets(args: argparse.Namespace) -> None:
    from fastreid_star.tracking.networks import detector_builder
    from fastreid_star.tracking.people import extract_tracklets

    build = detector_builder(
        args.detector, weights=args.weights, device=args.device, min_score=args.min_score
    )
    for cut in extract_tracklets(
        args.videos,
        args.output,
        args.modality,
        tracks=args.tracks,
        kind=args.kind,
        build_detector=build,
        min_frames=args.min_frames,
        progress=True,
    ):
        print(cut)
