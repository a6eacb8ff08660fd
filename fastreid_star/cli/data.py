"""check, skeletons and convert."""

from __future__ import annotations

import argparse
import os

from fastreid_star.cli.arguments import Action, add_set


def add_check(parser: argparse.ArgumentParser) -> Action:
    """Check a dataset. The exit status is 1 if something is missing, broken or not as published.

      fastreid-star check HITSZVCM --root /path/to/datasets --skeletons skeletons --output check

    It counts tracklets, reads every frame and compares every skeleton with its frame. With --output
    it writes check.html, with some tracklets and their skeletons, and problems.csv, with a row per
    wrong frame or skeleton.
    """
    add = parser.add_argument
    add("name", metavar="NAME", help="HITSZVCM, BUPTCampus, SyntheticVCM: as in DATASETS.NAMES")
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
    import sys

    from fastreid_star.data.check import check_dataset, open_dataset, splits
    from fastreid_star.data.skeletons import SkeletonStore
    from fastreid_star.errors import UserError
    from fastreid_star.report.dataset import PAGE, format_check, write_dataset_page
    from fastreid_star.report.page import make_folder_of

    for option, least in (("sample", 1), ("workers", 1), ("tracklets", 1), ("seed", 0)):
        if getattr(args, option) is not None and getattr(args, option) < least:
            raise UserError(f"--{option} {getattr(args, option)}: at least {least}")
    dataset = open_dataset(args.name, args.root)
    store = None
    if args.skeletons:
        path = dataset.path(args.skeletons)  # as training resolves it
        store = SkeletonStore.open(path if os.path.exists(path) else args.skeletons)
    if args.output:
        make_folder_of(os.path.join(args.output, PAGE))
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
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    print(format_check(check))
    if args.output:
        files = write_dataset_page(
            check, dataset, store, output=args.output, tracklets=args.tracklets, seed=args.seed
        )
        names = ", ".join(path.name for path in files)
        print(f"{names}: {os.path.abspath(args.output)}")
    return 0 if check.good else 1


def add_skeletons(parser: argparse.ArgumentParser) -> Action:
    """Estimate the skeleton of every image with a trained pose network, in the pose environment.

      python tools/dev.py pose
      .venv-pose/bin/fastreid-star skeletons --dataset HITSZVCM --root datasets \\
          --output datasets/HITSZ-VCM/skeletons --checkpoint hrnet_w32.pth

    After an interruption, the same command continues where it stopped. Images that cannot be read
    are listed and get no skeleton. Several machines that share the folder of --output divide the
    work with --shard 1/2 and --shard 2/2.
    """
    add = parser.add_argument
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument(
        "--dataset", default="", metavar="NAME", help="HITSZVCM, BUPTCampus, SyntheticVCM, ..."
    )
    images.add_argument(
        "--images", default="", metavar="FOLDER", help="a folder of images, with its subfolders"
    )
    add("--root", default="", metavar="FOLDER", help="folder of the datasets, DATASETS.ROOT")
    add("--output", required=True, metavar="FOLDER", help="the skeleton store to write")
    add("--backend", default="mmpose", metavar="NAME", help="mmpose (default) or vitpose")
    add("--model", default="", metavar="NAME", help="mmpose: name or file of a config; HRNet-w32")
    add("--checkpoint", default="", metavar="PATH", help="mmpose: a file; vitpose: a folder")
    add("--flip-test", action="store_true", help="average with the mirrored image: twice the time")
    add("--dtype", choices=("bfloat16", "float16"), help="mixed precision (default: float32)")
    add("--device", default="auto", metavar="NAME", help="auto, npu, cuda or cpu")
    add("--num-devices", type=int, default=1, metavar="N", help="devices; each gets one process")
    add("--shard", default="1/1", metavar="K/N", help="the part of this machine, where N share")
    add("--batch-size", type=int, default=16, metavar="N", help="images per batch")
    add("--workers", type=int, default=2, metavar="N", help="decoding processes per device")
    add("--overwrite", action="store_true", help="replace an existing store when this is complete")
    return _skeletons


def _skeletons(args: argparse.Namespace) -> None:
    import re
    import sys

    from fastreid_star.data.skeletons import FlatStore
    from fastreid_star.errors import UserError
    from fastreid_star.pose.extraction import extract_skeletons

    found = re.fullmatch(r"(\d+)/(\d+)", args.shard)
    if not found:
        raise UserError(f"--shard {args.shard!r}: write it as 1/4, the first of four")
    if not extract_skeletons(**{**vars(args), "shard": (int(found[1]), int(found[2]))}):
        print(f"shard {args.shard} is complete; the last shard to end writes {args.output}")
        return
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
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


def add_convert(parser: argparse.ArgumentParser) -> Action:
    """Convert a published checkpoint to weights of this project, or a skeleton store.

      fastreid-star convert THEIRS.pth OURS.pth --config-file HITSZ-VCM/SAD_R50_saadg.yml
      fastreid-star convert THEIRS.t OURS.pth --config-file HITSZ-VCM/STAR_R50_release.yml
      fastreid-star convert skeletons.h5 datasets/HITSZ-VCM/skeletons
      fastreid-star convert datasets/HITSZ-VCM/skeletons skeletons.h5

    With --config-file, SOURCE is a checkpoint of SAADG or of STAR's authors (SDTG), recognized by
    the names in it. Dropped and unknown names are listed. The conversion fails if a weight is
    missing or has the wrong shape, or if the config would compute other features.

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
        return _convert_weights(args)
    if args.set:
        raise UserError("--set changes a config: add --config-file FILE")
    if args.source.endswith((".pth", ".pt", ".t")):
        raise UserError(
            f"{args.source} is a checkpoint: add --config-file FILE, its model's config"
        )

    from fastreid_star.data.skeleton_conversion import convert_skeletons

    done = convert_skeletons(args.source, args.target, progress=True)
    print(
        f"{done.frames:,} frames converted, {done.not_finite:,} of them without a skeleton "
        f"(values that are not finite, or beyond a million); written to "
        f"{os.path.abspath(args.target)}"
    )
    return None


def _convert_weights(args: argparse.Namespace) -> None:
    from fastreid_star.engine.defaults import load_config
    from fastreid_star.methods.convert import convert_weights

    convert_weights(args.source, args.target, load_config(args.config_file, args.set), report=print)
    print(f"no weight is missing; written to {os.path.abspath(args.target)}")
