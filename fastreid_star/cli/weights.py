"""weights."""

from __future__ import annotations

import argparse

from fastreid_star.cli.arguments import Action, add_set


def add_weights(parser: argparse.ArgumentParser) -> Action:
    """Say what a file of weights holds, and what of it fits the network of a config.

      fastreid-star weights resnet50-0676ba61.pth
      fastreid-star weights resnet50-0676ba61.pth --config-file HITSZ-VCM/SAD_R50.yml
      fastreid-star weights logs/run/model_best.pth --output run.safetensors

    It reads files of torch and of safetensors, and runs no code in them. With --config-file the
    exit status is 1 if the file has less than half of the network and of its backbone. --output
    writes a plain state dict, which torch or safetensors alone can read.
    """
    add = parser.add_argument
    add("file", metavar="FILE", help="a .pth, .pt or .safetensors file")
    add("--config-file", default="", metavar="CFG", help="compare with the network of this config")
    add("--output", default="", metavar="FILE", help="a .safetensors, .pth or .pt file to write")
    add_set(parser)
    return _weights


def _weights(args: argparse.Namespace) -> int:
    from fastreid_star.engine.configs import load_config
    from fastreid_star.errors import UserError
    from fastreid_star.inference.weights_file import describe

    if args.set and not args.config_file:
        raise UserError("--set changes a config: add --config-file FILE")
    cfg = load_config(args.config_file, args.set) if args.config_file else None
    good, text = describe(args.file, cfg, args.output)
    print(text)
    return 0 if good else 1
