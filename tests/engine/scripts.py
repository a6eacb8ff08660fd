"""Scripts and a config as projects write them for fast-reid."""

# what fast-reid's own script does
TRAIN_NET = """
import sys

sys.path.append(".")

from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils.checkpoint import Checkpointer


def setup(args):
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN = False
        model = DefaultTrainer.build_model(cfg)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        return DefaultTrainer.test(cfg, model)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    print("Command Line Args:", args)
    launch(main, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank,
           dist_url=args.dist_url, args=(args,))
"""


# what scripts of projects do besides: keys, hooks, evaluators and modules of their own, fast-reid's
# builders
PROJECT = """
import os

from fastreid.config import CfgNode as CN, get_cfg
from fastreid.data import build_reid_train_loader
from fastreid.data.build import build_reid_test_loader
from fastreid.engine.defaults import DefaultTrainer, default_argument_parser, default_setup
from fastreid.engine.launch import launch
from fastreid.engine.train_loop import HookBase
from fastreid.evaluation import ReidEvaluator
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build_optimizer
from fastreid.utils import comm
from fastreid.utils.checkpoint import Checkpointer

from neighbor import ENDING  # in the script's folder


class Note:
    def __init__(self, text):
        self.text = text


class Sign(HookBase):
    def after_train(self):
        cfg = self.trainer.cfg
        with open(os.path.join(cfg.OUTPUT_DIR, f"rank{comm.get_rank()}{ENDING}"), "w") as file:
            file.write(cfg.PROJECT.NOTE)


class Evaluator(ReidEvaluator):
    def evaluate(self):
        results = super().evaluate()
        if results:
            results["Note"] = 42.0
        return results


class Trainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_reid_test_loader(cfg, dataset_name=dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_dir=None):
        data_loader, num_query = cls.build_test_loader(cfg, dataset_name)
        return data_loader, Evaluator(cfg, num_query, output_dir)

    def build_hooks(self):
        return [*super().build_hooks(), Sign()]


def main(args, note):
    assert type(note) is Note and note.text == "handed over"
    for imported in (DefaultTrainer, Checkpointer, launch, default_setup, build_optimizer):
        assert imported.__module__.startswith("fastreid_star."), imported
    cfg = get_cfg()
    cfg.PROJECT = CN()
    cfg.PROJECT.NOTE = ""
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    os.chdir("/")
    launch(main, args.num_gpus, dist_url=args.dist_url, args=(args, Note("handed over")))
"""
IMAGES = """
MODEL:
  META_ARCHITECTURE: Baseline
  BACKBONE: {NAME: build_resnet_backbone, NORM: BN, DEPTH: 18x, LAST_STRIDE: 1, FEAT_DIM: 512,
             PRETRAIN: False}
  HEADS: {NAME: EmbeddingHead, NORM: BN, WITH_BNNECK: True, POOL_LAYER: GlobalAvgPool,
          NECK_FEAT: before, CLS_LAYER: Linear}
  LOSSES:
    NAME: ("CrossEntropyLoss", "TripletLoss",)
INPUT: {SIZE_TRAIN: [32, 16], SIZE_TEST: [32, 16], FLIP: {ENABLED: True}}
DATALOADER: {SAMPLER_TRAIN: NaiveIdentitySampler, NUM_INSTANCE: 4, NUM_WORKERS: 0}
SOLVER: {AMP: {ENABLED: False}, OPT: Adam, MAX_EPOCH: 2, BASE_LR: 0.00035, WARMUP_ITERS: 2,
         IMS_PER_BATCH: 16}
TEST: {EVAL_PERIOD: 2, IMS_PER_BATCH: 16, FLIP: {ENABLED: True}}
DATASETS:
  NAMES: ("Market1501",)
  TESTS: ("Market1501",)
"""
