#!/usr/bin/env python
"""Write a trained model as an ONNX file, once onnxruntime has given the model's own features with it.

    python tools/export_onnx.py --run logs/run model.onnx
    python tools/export_onnx.py --config-file configs/HITSZ-VCM/STAR_R50.yml --weights model.pth model.onnx
    python tools/export_onnx.py --run logs/run --modality infrared infrared.onnx

Without --modality an input says for each clip whether it is visible or infrared, and each frame passes the stems of
both; with it the graph has one stem. docs/export.md tells the inputs, and how to go on to Ascend.
"""

from __future__ import annotations

import argparse

from fastreid_star.engine.defaults import run_tool
from fastreid_star.inference.export import DEFAULT_OPSET, OPSETS, export_onnx
from fastreid_star.inference.predictor_tools import predictor_from
from fastreid_star.structures import Modality


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", metavar="OUTPUT", help="the .onnx file to write")
    parser.add_argument(
        "--run",
        default="",
        metavar="FOLDER",
        help="config.yaml, and model_best.pth or model_final.pth",
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="a YAML file, in place of a run"
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="a checkpoint; with --run, one of its folder"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values to change"
    )
    parser.add_argument(
        "--modality", choices=("visible", "infrared"), help="of all clips; without: both"
    )
    parser.add_argument(
        "--frames", type=int, metavar="T", help="frames of a clip; without: INPUT.CLIP.LENGTH"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        metavar="N",
        help=f"{OPSETS[0]} to {OPSETS[-1]}; {DEFAULT_OPSET}",
    )
    parser.set_defaults(device="cpu")  # where the graph is traced; it runs wherever a runtime does
    args = parser.parse_args()

    predictor = predictor_from(args)
    modality = Modality[args.modality.upper()] if args.modality else None
    done = export_onnx(
        predictor.model,
        predictor.cfg,
        args.output,
        modality=modality,
        length=args.frames,
        opset=args.opset,
    )
    print(done)


if __name__ == "__main__":
    run_tool(main)
