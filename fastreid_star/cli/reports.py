"""report, zoo and benchmark."""

from __future__ import annotations

import argparse

from fastreid_star.cli.arguments import DEVICES, Action, add_set


def add_report(parser: argparse.ArgumentParser) -> Action:
    """Write one HTML file about a run: results, curves, ranked lists, attention, Grad-CAM, errors.

      fastreid-star report logs/HITSZ-VCM/STAR_R50
      fastreid-star report logs/HITSZ-VCM/STAR_R50 logs/HITSZ-VCM/SAD_R50 --output report.html
      fastreid-star report --ablation logs/ablation

    With a second run, such as the baseline, both are shown side by side, with the queries that the
    first run won and lost. With --ablation the report shows the results of fastreid-star ablate:
    mAP over the clip length (Figure 5) and over the exponents (Figure 6). The file needs no network
    and no other file.
    """
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="the folder of a run, its OUTPUT_DIR")
    add("other", nargs="?", metavar="RUN_B", help="the folder of another, such as the baseline")
    add("--ablation", metavar="DIR", help="the output folder of fastreid-star ablate")
    add("--output", metavar="FILE", help="the file to write (default: report.html in the folder)")
    add("--config-file", default="", metavar="FILE", help="for a folder without config.yaml")
    add("--device", metavar="NAME", help="auto, npu, cuda or cpu (default: the run's MODEL.DEVICE)")
    add("--queries", type=int, default=2, metavar="N", help="shown per kind and direction")
    add("--seed", type=int, default=0, metavar="N", help="of the random queries")
    add("--no-gradcam", action="store_true", help="leave Grad-CAM out")
    add_set(parser)
    return _report


def _report(args: argparse.Namespace) -> None:
    import functools
    import time

    from fastreid_star.errors import UserError
    from fastreid_star.report.ablation import write_ablation_page
    from fastreid_star.report.build import write_report

    if (args.run is None) == (args.ablation is None):
        raise UserError("name the folder of a run, or give --ablation DIR")
    start = time.monotonic()
    if args.ablation:
        page = write_ablation_page(args.ablation, output=args.output)
    else:
        page = write_report(
            args.run,
            args.other,
            output=args.output,
            config_file=args.config_file,
            options=[*args.set, *(["MODEL.DEVICE", args.device] if args.device else [])],
            queries=args.queries,
            seed=args.seed,
            gradcam=not args.no_gradcam,
            progress=functools.partial(print, flush=True),
        )
    size = page.stat().st_size / 1e6
    print(f"{page.resolve()} ({size:.1f} MB, {time.monotonic() - start:.0f} s)")


def add_zoo(parser: argparse.ArgumentParser) -> Action:
    """Update a table of trained models from the folders of their runs.

      fastreid-star zoo logs/HITSZ-VCM/SAD_R50 logs/HITSZ-VCM/STAR_R50 --page configs/README.md

    The table stands between two marks in the page. All numbers of each run's training are copied to
    a file beside the page.
    """
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the folder of a run")
    add("--page", default="configs/README.md", metavar="FILE", help="a Markdown file")
    add("--logs", default="logs", metavar="DIR", help="folder of the numbers, beside the page")
    add_set(parser)
    return _zoo


def _zoo(args: argparse.Namespace) -> None:
    from fastreid_star.report.zoo import update_zoo

    update_zoo(args.runs, page=args.page, logs=args.logs, options=args.set)
    print(f"{len(args.runs)} runs: {args.page}")


def add_benchmark(parser: argparse.ArgumentParser) -> Action:
    """Measure speed, each figure beside a reference that is measured in the same run.

      fastreid-star benchmark --quick
      fastreid-star benchmark step loader --device npu
      fastreid-star benchmark step --set SOLVER.IMS_PER_BATCH 64 MODEL.CHANNELS_LAST True

    step: a training step by one of its backbone; loader: loading by decoding alone; ranking: by a
    plain loop over the queries; start: the time to the first step. docs/performance.md lists the
    limits and what was measured.
    """
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help="step, loader, ranking, start")
    add("--quick", action="store_true", help="smaller work, about two minutes")
    add("--device", default="auto", metavar="NAME", help=DEVICES)
    add_set(parser)
    return _benchmark


def _benchmark(args: argparse.Namespace) -> None:
    from fastreid_star import benchmark

    benchmark.run(args.parts, device=args.device, quick=args.quick, opts=args.set)
