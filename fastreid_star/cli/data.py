"""check, skeletons and convert."""

from __future__ import annotations

import argparse
import os

from fastreid_star.cli.arguments import DEVICES, Action, add_set, at_least


def add_check(parser: argparse.ArgumentParser) -> Action:
    """Check a dataset. The exit status is 1 if something is missing, broken or not as published.

      fastreid-star check HITSZVCM --root /path/to/datasets --skeletons skeletons --output check

    It counts tracklets, reads every frame and compares every skeleton with its frame. With --output
    it writes check.html, with some tracklets and their skeletons, and problems.csv, with a row per
    wrong frame or skeleton.
    """
    add = parser.add_argument
    add("name", metavar="NAME", help="HITSZVCM, BUPTCampus, SYSUMM01, ...: as in DATASETS.NAMES")
    add("--root", default="", metavar="DIR", help="folder of the datasets, DATASETS.ROOT")
    add(
        "--skeletons",
        metavar="PATH",
        help="a folder or an HDF5 file; a relative path starts at the dataset's folder, or here",
    )
    add("--output", metavar="DIR", help="folder of the report; without it nothing is written")
    add("--workers", type=int, metavar="N", help="reading processes (default: up to 16)")
    add("--sample", type=int, default=1, metavar="N", help="check every Nth frame only")
    add("--no-decode", action="store_true", help="only check that files exist and are not empty")
    add("--tracklets", type=int, default=3, metavar="N", help="tracklets shown per modality")
    add("--seed", type=int, default=0, metavar="N", help="of the choice of shown tracklets")
    return _check


def _check(args: argparse.Namespace) -> int:
    from fastreid_star.data.check import check_dataset, open_dataset, splits
    from fastreid_star.data.skeletons import SkeletonStore
    from fastreid_star.errors import UserError
    from fastreid_star.files import prepare_output
    from fastreid_star.report.dataset import PAGE, format_check, write_dataset_page

    for option, least in (("sample", 1), ("workers", 1), ("tracklets", 1), ("seed", 0)):
        if getattr(args, option) is not None and getattr(args, option) < least:
            raise UserError(f"--{option} {getattr(args, option)}: at least {least}")
    dataset = open_dataset(args.name, args.root)
    store = None
    if args.skeletons:
        path = dataset.path(args.skeletons)  # as training resolves it
        store = SkeletonStore.open(path if os.path.exists(path) else args.skeletons)
    if args.output:
        prepare_output(os.path.join(args.output, PAGE))
    frames = sum(len(tracklet) for part in splits(dataset).values() for tracklet in part)
    few = frames // args.sample < 5000  # one process is done before others have started
    check = check_dataset(
        dataset,
        store,
        decode=not args.no_decode,
        every=args.sample,
        workers=args.workers or (1 if few else min(16, os.cpu_count() or 1)),
        progress=True,
    )
    print(format_check(check))
    if args.output:
        files = write_dataset_page(
            check, dataset, store, output=args.output, tracklets=args.tracklets, seed=args.seed
        )
        names = ", ".join(path.name for path in files)
        print(f"{names}: {os.path.abspath(args.output)}")
    return 0 if check.good else 1


def add_skeletons(parser: argparse.ArgumentParser) -> Action:
    """Estimate the skeleton of every image with a trained pose network.

      fastreid-star skeletons --fetch
      fastreid-star skeletons --dataset HITSZVCM --root datasets \\
          --output datasets/HITSZ-VCM/skeletons
      fastreid-star skeletons --images crops --output crops_skeletons

    --fetch downloads the weights of MoveNet once, with npm. The networks of mmpose and ViTPose need
    the environment that `python tools/dev.py pose` creates, and --checkpoint.

    After an interruption, the same command continues where it stopped. Images that cannot be read
    are listed and get no skeleton. Several machines that share the folder of --output divide the
    work with --shard 1/2 and --shard 2/2.
    """
    add = parser.add_argument
    crops = parser.add_mutually_exclusive_group()
    names = "HITSZVCM, BUPTCampus, SyntheticVCM, ..."
    crops.add_argument("--dataset", default="", metavar="NAME", help=names)
    inside = "a folder of images, with its subfolders"
    crops.add_argument("--images", default="", metavar="FOLDER", help=inside)
    add("--root", default="", metavar="FOLDER", help="folder of the datasets, DATASETS.ROOT")
    add("--output", default="", metavar="FOLDER", help="the skeleton store to write")
    add(
        "--fetch", action="store_true", help="first download MoveNet's weights, if they are missing"
    )
    backends = "movenet (default), mmpose or vitpose"
    add("--backend", default="movenet", metavar="NAME", help=backends)
    model = "movenet: thunder (default) or lightning; mmpose: name or file of a config"
    add("--model", default="", metavar="NAME", help=model)
    files = "movenet: the .json file, beside its .bin file; mmpose: a file; vitpose: a folder"
    add("--checkpoint", default="", metavar="PATH", help=files)
    add("--flip-test", action="store_true", help="average with the mirrored image: twice the time")
    add("--dtype", choices=("bfloat16", "float16"), help="mixed precision (default: float32)")
    sides = "do not undo swaps of left and right within a tracklet; each folder is one"
    add("--keep-sides", action="store_true", help=sides)
    add("--device", default="auto", metavar="NAME", help=DEVICES)
    add("--num-devices", type=int, default=1, metavar="N", help="devices; each gets one process")
    part = "the part of this machine, where N share"
    add("--shard", type=shard, default="1/1", metavar="K/N", help=part)
    add("--batch-size", type=at_least(1), default=16, metavar="N", help="images per batch")
    workers = "decoding processes per device"
    add("--workers", type=at_least(0), default=2, metavar="N", help=workers)
    add("--overwrite", action="store_true", help="replace an existing store when this is complete")
    return _skeletons


def shard(text: str) -> tuple[int, int]:
    """The numbers of ``1/4``, the first of four shards."""
    number, _, of = text.partition("/")
    if not 1 <= int(number) <= int(of):
        raise ValueError
    return int(number), int(of)


def _skeletons(args: argparse.Namespace) -> None:
    from fastreid_star.data.skeletons import FlatStore
    from fastreid_star.errors import UserError
    from fastreid_star.pose.extraction import extract_skeletons
    from fastreid_star.pose.movenet_weights import fetch

    options = vars(args)
    if options.pop("fetch"):
        print("MoveNet:", fetch())
        if not (args.dataset or args.images):
            return
    if not (args.dataset or args.images):
        raise UserError("add --dataset NAME or --images FOLDER")
    if not args.output:
        raise UserError("add --output FOLDER, the skeleton store to write")
    if not extract_skeletons(**options):
        print("this shard is complete; the last shard to end writes", args.output)
        return
    meta = FlatStore(args.output).meta
    counts, missing = meta["counts"], list(meta["missing"].items())
    print(
        f"{os.path.abspath(args.output)}: "
        f"{counts['with_skeleton']:,} of {counts['frames']:,} images have a skeleton"
    )
    for key, reason in missing[:5]:
        print(f"  none: {key}: {reason}")
    if len(missing) > 5:
        print(f"  and {len(missing) - 5:,} more, listed in its index.json")
    if meta.get("confused_sides"):
        print(f"left and right were swapped back in {meta['confused_sides']:,} images")


def add_convert(parser: argparse.ArgumentParser) -> Action:
    """Convert a published checkpoint to weights of this project, or a skeleton store.

      fastreid-star convert THEIRS.pth OURS.pth --config-file HITSZ-VCM/SAADG_R50.yml
      fastreid-star convert THEIRS.t OURS.pth --config-file HITSZ-VCM/STAR_R50_release.yml
      fastreid-star convert THEIRS.t OURS.pth --config-file HITSZ-VCM/MITML_R50.yml
      fastreid-star convert THEIRS.t OURS.pth --config-file HITSZ-VCM/IBAN_R50_authors.yml
      fastreid-star convert FOLDER OURS.pth --config-file HITSZ-VCM/DinoGRL_R50_authors.yml
      fastreid-star convert THEIRS.pth OURS.pth --config-file HITSZ-VCM/M3ReID_R50.yml
      fastreid-star convert skeletons.h5 datasets/HITSZ-VCM/skeletons
      fastreid-star convert datasets/HITSZ-VCM/skeletons skeletons.h5

    With --config-file, SOURCE is a checkpoint of SAADG, MITML, IBAN, M3-ReID or STAR's authors
    (SDTG), or a folder with the three files of DinoGRL's authors, recognized by the names in it.
    Dropped and unknown names are listed. The conversion fails if a weight is missing or has the
    wrong shape, or if the config would compute other features.

    Without --config-file, SOURCE is a skeleton store: the authors' HDF5 file, or a folder, which
    is read a hundred times faster. TARGET is a file if it ends in .h5 or .hdf5, else a folder.
    """
    parser.add_argument("source", metavar="SOURCE", help="the checkpoint or store to read")
    parser.add_argument("target", metavar="TARGET", help="the file or folder to write")
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the model")
    add_set(parser)
    return _convert


def _convert(args: argparse.Namespace) -> None:
    from fastreid_star.errors import UserError

    if args.config_file:
        from fastreid_star.engine.defaults import load_config
        from fastreid_star.methods.convert import convert_weights

        cfg = load_config(args.config_file, args.set)
        convert_weights(args.source, args.target, cfg, report=print)
        print(f"no weight is missing; written to {os.path.abspath(args.target)}")
        return
    if args.set:
        raise UserError("--set changes a config: add --config-file FILE")
    if args.source.endswith((".pth", ".pt", ".t")):
        raise UserError(
            f"{args.source} is a checkpoint: add --config-file FILE, its model's config"
        )

    from fastreid_star.data.skeleton_conversion import convert_skeletons

    frames, without = convert_skeletons(args.source, args.target, progress=True)
    print(
        f"{frames:,} frames converted, {without:,} of them without a skeleton "
        f"(values that are not finite, or beyond a million); written to "
        f"{os.path.abspath(args.target)}"
    )
