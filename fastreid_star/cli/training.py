"""train, eval, ablate, replay and doctor."""

from __future__ import annotations

import argparse

from fastreid_star.arguments import add_resume, add_training
from fastreid_star.cli.arguments import DEVICES, Action, add_set, at_least


def add_train(parser: argparse.ArgumentParser) -> Action:
    """Train a model from a config file.

      fastreid-star train --config-file Synthetic/STAR_small.yml
      fastreid-star train --config-file HITSZ-VCM/STAR_R50.yml --num-devices 4 DATASETS.ROOT /data
      fastreid-star train --config-file HITSZ-VCM/STAR_R50.yml --resume DATASETS.ROOT /data

    Ctrl-C and SIGTERM end training after the current step and write a checkpoint. --resume
    continues from the last checkpoint in OUTPUT_DIR, in the middle of an epoch too.
    """
    add_resume(parser)
    add_training(parser)
    return _train


def add_eval(parser: argparse.ArgumentParser) -> Action:
    """Evaluate trained weights: infrared to visible, visible to infrared, and their mean.

    fastreid-star eval --config-file HITSZ-VCM/STAR_R50.yml MODEL.WEIGHTS logs/run/model_best.pth
    fastreid-star eval --config-file logs/run/config.yaml MODEL.WEIGHTS logs/run/model_best.pth
    """
    add_training(parser)
    parser.set_defaults(eval_only=True, resume=False)
    return _train


def _train(args: argparse.Namespace) -> None:
    from fastreid_star.engine.defaults import load_config
    from fastreid_star.engine.launch import launch
    from fastreid_star.engine.trainer import train_or_evaluate

    launch(
        train_or_evaluate,
        args.num_devices,
        device=load_config(args.config_file, args.opts).MODEL.DEVICE,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def add_ablate(parser: argparse.ArgumentParser) -> Action:
    """Train several configs over several seeds, and print the table of the paper.

      fastreid-star ablate --table 1 --root /path/to/datasets --seeds 0 1 2 --output logs/table1
      fastreid-star ablate --configs Synthetic/SAD_small.yml Synthetic/STAR_small.yml \\
          --seeds 0 1 2 --data-seeds 0 1 --output logs/ablation

    --table 1 takes all methods that have a config on one dataset, as STAR's Table 1 compares them,
    with the published results on HITSZ-VCM beside.

    Finished runs are kept and interrupted ones are resumed: call it again after an interruption.
    --warm-start trains one network per seed, from which all configs of that seed start. --vary
    changes single factors of a config. --retest evaluates the trained networks under other
    conditions. The tables are table.md and runs.csv in
    the output folder; --table-only writes them without training.
    """
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True).add_argument
    which("--configs", nargs="+", metavar="FILE")
    which("--table", type=int, choices=[1], help="the configs of all methods, see --on")
    on = "folder of configs for --table, such as Synthetic/benchmark (default: HITSZ-VCM)"
    add("--on", default="HITSZ-VCM", metavar="FOLDER", help=on)
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of the models")
    add("--data-seeds", nargs="+", type=int, default=[None], metavar="N", help="of synthetic data")
    start = "config of the network from which all others start, trained once per seed"
    add("--warm-start", default="", metavar="FILE", help=start)
    add("--root", default="", metavar="DIR", help="folder of the datasets, DATASETS.ROOT")
    add("--output", required=True, metavar="DIR", help="folder of the runs and tables")
    jobs = "runs at the same time; set OMP_NUM_THREADS to match"
    add("--jobs", type=at_least(1), default=1, metavar="N", help=jobs)
    vary = "train CONFIG once more, as NAME, with keys changed (first seed only); may be repeated"
    again = "evaluate the networks of CONFIG again, as NAME, with keys changed; may be repeated"
    for flag, text in (("--vary", vary), ("--retest", again)):
        metavar = "CONFIG NAME KEY VALUE"
        add(flag, nargs="+", action="append", default=[], metavar=metavar, help=text)
    against = "show each seed's difference to the mean mAP of CONFIG"
    add("--against", default="", metavar="CONFIG", help=against)
    page = "put the tables between the lines <!-- ablation: begin --> and <!-- ablation: end -->"
    add("--page", default="", metavar="FILE", help=page)
    add("--table-only", action="store_true", help="do not train, only write the tables")
    add_set(parser)
    return _ablate


def _ablate(args: argparse.Namespace) -> None:
    import functools
    import os

    from fastreid_star.ablation.published import TABLE_1, table_configs
    from fastreid_star.ablation.runs import ablate

    table = ablate(
        args.configs or table_configs(args.on),
        args.output,
        seeds=args.seeds,
        data_seeds=args.data_seeds,
        warm_start=args.warm_start,
        root=args.root,
        jobs=args.jobs,
        variants=args.vary,
        retests=args.retest,
        against=args.against,
        opts=args.set,
        page=args.page,
        table_only=args.table_only,
        also=TABLE_1 if args.table else (),
        report=functools.partial(print, flush=True),
    )
    print(f"\n{table}\n\ntable.md and runs.csv are in {os.path.abspath(args.output)}")


def add_replay(parser: argparse.ArgumentParser) -> Action:
    """Repeat a training step whose loss or gradient was not finite, and show where it began.

      fastreid-star replay logs/HITSZ-VCM/STAR_R50/nonfinite-1234.pth
      fastreid-star replay logs/HITSZ-VCM/STAR_R50/nonfinite-1234.pth --float64

    The file holds the weights and the batch of the step. The losses are compared with the recorded
    ones, and the first module with a result that is not finite is named.
    """
    add = parser.add_argument
    add("file", metavar="FILE", help="nonfinite-ITERATION.pth in OUTPUT_DIR of the run")
    add("--device", default="cpu", metavar="NAME", help=f"{DEVICES} (default: cpu)")
    double = "compute in double precision: if the step is finite then, rounding was the cause"
    add("--float64", action="store_true", help=double)
    return _replay


def _replay(args: argparse.Namespace) -> None:
    from fastreid_star.engine.replay import replay

    print(replay(args.file, args.device, float64=args.float64))


def add_doctor(parser: argparse.ArgumentParser) -> Action:
    """Check that this machine is ready for training. Exit status 1: something must be fixed.

      fastreid-star doctor --device npu --num-devices 8
      fastreid-star doctor --config-file HITSZ-VCM/STAR_R50.yml DATASETS.ROOT /path/to/datasets

    It checks versions, devices, a small training step of STAR and an all-reduce between processes.
    With a config it also checks everything for which training would stop at its start: the config,
    the data, the skeletons and the output folder.
    """
    add = parser.add_argument
    add("--device", metavar="NAME", help=f"{DEVICES} (default: auto)")
    add("--num-devices", type=int, default=1, metavar="N", help="processes of the all-reduce")
    add("--config-file", default="", metavar="FILE", help="config of a run")
    return _doctor


def _doctor(args: argparse.Namespace) -> int:
    import logging

    from fastreid_star.doctor import doctor
    from fastreid_star.errors import UserError

    if args.opts and not args.config_file:
        raise UserError("KEY VALUE pairs change a config: add --config-file FILE")
    logging.disable(logging.INFO)
    device = [] if args.device is None else ["MODEL.DEVICE", args.device]
    findings = doctor(
        args.device or "auto",
        args.num_devices,
        config_file=args.config_file,
        opts=args.opts + device,
    )
    good = True
    for finding in findings:  # each is printed when it is known
        print(finding, flush=True)
        good = good and finding.good is not False
    print("ready to train" if good else "not ready: see FAIL above")
    return 0 if good else 1
