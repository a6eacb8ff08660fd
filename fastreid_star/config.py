"""Every config key this plugin adds to fast-reid's, with its default and its meaning.

Letters: B clips, T frames of a clip, D feature width, P identities of a batch, K clips of an identity and
modality.
"""

from fastreid.config import CfgNode as CN


def add_plugin_config(cfg: CN) -> CN:
    """Add the plugin's keys to a fast-reid config, in place, and return it.

    Importing :mod:`fastreid_star` already calls this on fast-reid's defaults, so ``fastreid.config.get_cfg()``
    has every key below.
    """
    # Seed of everything random: data, weights, style. Negative: a fresh one each run, written to the log.
    cfg.SEED = 0

    # auto | npu | cuda | cpu. `auto` takes the first that is usable, in this order; a named one is never replaced.
    cfg.MODEL.DEVICE = "auto"
    # Switches of Ascend NPUs: compile operators anew for every shape; store weights in the chip's own layouts.
    cfg.MODEL.NPU = CN()
    cfg.MODEL.NPU.JIT_COMPILE = False
    cfg.MODEL.NPU.INTERNAL_FORMAT = False
    # Switches of CPUs: keep memory that is freed for the next step, which is faster; the process does not become
    # smaller before its end. glibc only, which is most of Linux; elsewhere it does nothing.
    cfg.MODEL.CPU = CN()
    cfg.MODEL.CPU.KEEP_MEMORY = True

    # --- data ------------------------------------------------------------------------------------------------
    # The folder that holds the datasets. Empty: $FASTREID_DATASETS, or ./datasets.
    cfg.DATASETS.ROOT = ""
    # Tracklets with fewer frames are left out, in training and in testing: the rule behind every published
    # number on HITSZ-VCM.
    cfg.DATASETS.MIN_FRAMES = 12
    # Skeleton store: a folder (skeletons.npy + index.json) or an HDF5 file of the authors' layout; relative
    # paths start at the dataset's folder. Empty: no skeletons.
    cfg.DATASETS.SKELETONS = ""

    # Whose skeletons a clip is shown with, in training and in testing: its own | other (of another identity in its
    # modality: drawn for each clip in training, always the same in testing) | none. The controls that tell what the
    # skeletons are worth.
    cfg.DATASETS.SKELETONS_TRAIN = "own"
    cfg.DATASETS.SKELETONS_TEST = "own"

    # Train on the pairs of BUPTCampus' train_auxiliary.txt too, each of an identity that one camera has seen once, as
    # identities like the others.
    cfg.DATASETS.BUPT_AUXILIARY = False

    # Options of the SyntheticVCM dataset, see fastreid_star/data/datasets/synthetic.py.
    cfg.DATASETS.SYNTHETIC = CN()
    cfg.DATASETS.SYNTHETIC.TRAIN_IDS = 96
    cfg.DATASETS.SYNTHETIC.TEST_IDS = 32
    # Tracklets of each identity in each modality.
    cfg.DATASETS.SYNTHETIC.TRACKLETS = 5
    cfg.DATASETS.SYNTHETIC.FRAMES = 24
    # Height and width of a frame in pixels.
    cfg.DATASETS.SYNTHETIC.SIZE = [64, 32]
    # Share of tracklets in which something hides a part of the person.
    cfg.DATASETS.SYNTHETIC.OCCLUSION = 0.6
    # Largest standard deviation of the blur, in pixels of a 64-pixel-high frame.
    cfg.DATASETS.SYNTHETIC.BLUR = 0.6
    # Background clutter behind the person.
    cfg.DATASETS.SYNTHETIC.BACKGROUND = True
    # Spread of the person's size in the frame (0.1: 10 % smaller or larger).
    cfg.DATASETS.SYNTHETIC.SCALE = 0.1
    # Standard deviation of the joints' noise, as a share of the frame's height.
    cfg.DATASETS.SYNTHETIC.JOINT_NOISE = 0.015
    cfg.DATASETS.SYNTHETIC.SEED = 0

    # --- input -----------------------------------------------------------------------------------------------
    cfg.INPUT.CLIP = CN()
    # T: frames of a clip, one from each of T equal segments of the tracklet.
    cfg.INPUT.CLIP.LENGTH = 12
    # One flip and one crop for all frames of a clip; False: each frame draws its own.
    cfg.INPUT.CLIP.SHARED_GEOMETRY = True
    # Blank every frame: what is left is what the skeletons alone can tell.
    cfg.INPUT.BLANK = False
    # Share of the image's area that random erasing (INPUT.REA, drawn per frame) may cover.
    cfg.INPUT.REA.AREA = [0.02, 0.4]

    # --- sampler: P identities x K clips x 2 modalities --------------------------------------------------------
    # SOLVER.IMS_PER_BATCH counts clips (P*K*2) over all devices; DATALOADER.NUM_INSTANCE is K.

    # --- backbone --------------------------------------------------------------------------------------------
    # The max-pool of a ResNet's stem: False: fast-reid's (ceil_mode); True: padded by 1, as in torchvision and in the
    # published programs. The weights are the same, and so is the size of the maps, but each sees the image a pixel off.
    cfg.MODEL.BACKBONE.PADDED_POOL = False

    # Keep the backbone's weights and maps with the channels last in memory: the same numbers up to rounding, and often
    # faster, on GPUs in mixed precision most of all; tools/benchmark.py tells.
    cfg.MODEL.CHANNELS_LAST = False

    # --- parts of the model --------------------------------------------------------------------------
    # The part that corrects frame features before they are pooled, a name of FRAME_CORRECTOR_REGISTRY;
    # empty: none.
    cfg.MODEL.FRAME_CORRECTOR = CN()
    cfg.MODEL.FRAME_CORRECTOR.NAME = ""
    # Share of training clips that lose all their skeletons.
    cfg.MODEL.SKELETON_DROPOUT = 0.0

    # --- losses --------------------------------------------------------------------------------------
    # MODEL.LOSSES.NAME lists names of LOSS_REGISTRY. Factors in the sum of the losses, 1 where none is
    # given: [["StyleDefenseLoss", 0.5], ...].
    cfg.MODEL.LOSSES.WEIGHTS = []
    # Where batch-hard mining looks with several processes: False: in each process's share of the batch; True: in the
    # whole batch, whose features are gathered. Every process then takes the same loss.
    cfg.MODEL.LOSSES.TRI.ALL_RANKS = False

    # Train the cross entropies alone for the first epochs. Without ImageNet weights the defense loss would shrink all
    # features, and leave the triplet loss at its margin, before they mean anything.
    cfg.MODEL.LOSSES.CE_ONLY_EPOCHS = 0

    # Exponent of the temporal GeM pooling (mean_t X^p)^(1/p).
    cfg.MODEL.HEADS.GEM_P = 3.0

    # --- solver ----------------------------------------------------------------------------------------------
    # Learning rate of the backbone and both stems, as a factor of SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Length of the warm-up in epochs; 0: SOLVER.WARMUP_ITERS counts.
    cfg.SOLVER.WARMUP_EPOCHS = 0
    # Milestones in SOLVER.STEPS count epochs from the start of training: True; False: as fast-reid counts them,
    # from the end of the warm-up.
    cfg.SOLVER.STEPS_FROM_START = False
    # float16 (needs a gradient scaler, which is then used) or bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # With float16, a step whose losses or gradients overflow is skipped; so many in a row end the run. Gradients that
    # overflow halve the scale: after 50 times the largest of use is far below 1, where nothing sound overflows.
    cfg.SOLVER.AMP.MAX_SKIPPED = 50

    # Let convolutions and matrix products round float32 inputs, HF32 on NPUs and TF32 on GPUs: faster, less exact.
    cfg.SOLVER.FAST_FLOAT32 = False

    # How many of the model_last.pth are kept, which a run writes every SOLVER.CHECKPOINT_PERIOD epochs, before each
    # evaluation, and when a signal ends it: the newest, model_last-1.pth before it, and so on. With 2 there is a whole
    # one to fall back on where a disk has damaged the newest. model_best.pth and model_final.pth stay in any case.
    cfg.SOLVER.CHECKPOINT_KEEP = 2

    # Iterations between two lines of the log.
    cfg.SOLVER.LOG_PERIOD = 50

    # --- test: TEST.IMS_PER_BATCH counts the clips of one device's batch -------------------------------------
    cfg.TEST.RANKS = [1, 5, 10, 20]
    # Gallery entries with the query's identity and camera are left out.
    cfg.TEST.CAMERA_FILTER = True
    # Write per_query_<dataset>.csv into OUTPUT_DIR at every evaluation.
    cfg.TEST.PER_QUERY_CSV = True
    return cfg
