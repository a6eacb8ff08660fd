#!/usr/bin/env python
"""Train or evaluate a model from a config file.

python tools/train_net.py --config-file configs/Synthetic/SAD_R18.yml
python tools/train_net.py --config-file configs/HITSZ-VCM/SAD_R50.yml --num-devices 4 DATASETS.ROOT /data
python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS logs/.../model_best.pth
"""

from fastreid_star.engine.defaults import argument_parser, load_config, run_tool
from fastreid_star.engine.launch import launch
from fastreid_star.engine.trainer import train_or_evaluate


def main() -> None:
    args = argument_parser(__doc__.splitlines()[0]).parse_args()
    launch(
        train_or_evaluate,
        args.num_devices,
        device=load_config(args.config_file, args.opts).MODEL.DEVICE,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    run_tool(main)
