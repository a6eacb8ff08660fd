"""The config keys that the plugin adds to fast-reid's, with their defaults and meanings.

The keys of a method are in ``fastreid_star/methods/<name>/config.py``. The comment above a key is
its documentation: ``fastreid-star configs --key KEY`` prints it.

Letters: B clips, T frames of a clip, D feature width, P identities of a batch, K clips of an
    identity
and modality.
"""

from fastreid.config import CfgNode as CN

from fastreid_star.upgrade import FOLLOWING, REMOVED


def add_plugin_config(cfg: CN) -> CN:
    """Add the keys that all methods share to a fast-reid config, in place, and return it.

    Importing :mod:`fastreid_star` adds them to fast-reid's defaults, so that
    ``fastreid.config.get_cfg()`` has every key below.
    """
    # Packages that are imported before the config is read, because they register models, losses or
    # datasets, or add keys. Set by --import and FASTREID_STAR_IMPORT.
    cfg.IMPORTS = []
    # Seed of everything random: data, weights, style. A negative value is replaced by a new seed,
    # which is written to the log.
    cfg.SEED = 0
    # Trackers of experiments that get the config, the scalars and the results of a training, beside
    # TensorBoard: wandb, mlflow, swanlab. Each must be installed, and reads its own environment
    # variables.
    cfg.TRACKERS = ()

    # auto | npu | cuda | cpu | mps (the GPU of a Mac, untested). auto takes the first of npu, cuda
    # and cpu that is available. A device that is named and not available is an error.
    cfg.MODEL.DEVICE = "auto"
    cfg.MODEL.NPU = CN()
    # Ascend NPUs: compile operators anew for every shape.
    cfg.MODEL.NPU.JIT_COMPILE = False
    # Ascend NPUs: store weights in the internal layouts of the chip.
    cfg.MODEL.NPU.INTERNAL_FORMAT = False

    # --- data ---
    # Folder that holds the datasets, or the folder of the dataset itself. Empty:
    # $FASTREID_DATASETS, or ./datasets.
    cfg.DATASETS.ROOT = ""
    # Tracklets with fewer frames are left out, in training and in testing. All published numbers on
    # HITSZ-VCM use 12.
    cfg.DATASETS.MIN_FRAMES = 12
    # A text file with a frame in each line, such as 0001/ir/D4/1.jpg: they are left out before
    # frames are counted, in training and testing. Empty: all are used, as in the published
    # protocol.
    cfg.DATASETS.WITHOUT_FRAMES = ""
    # Skeleton store: a folder (skeletons.npy and index.json) or an HDF5 file in the authors'
    # layout. A relative path starts at the folder of the dataset. Empty: no skeletons.
    cfg.DATASETS.SKELETONS = ""
    # Whose skeletons the clips get in training: own | other (of another identity of the same
    # modality, drawn for each clip) | none. Controls that show what the skeletons contribute.
    cfg.DATASETS.SKELETONS_TRAIN = "own"
    # Whose skeletons the clips get in testing: own | other (always the same other identity) | none.
    cfg.DATASETS.SKELETONS_TEST = "own"
    # Folder of the body shapes of the training frames, which SGIEL needs: gray PNG files, see
    # docs/sgiel.md. A relative path starts at the folder of the dataset. SyntheticVCM draws them if
    # the folder does not exist. Empty: no shapes.
    cfg.DATASETS.SHAPES = ""
    # Datasets whose training tracklets are an auxiliary set: identities that are no classes. Each
    # batch then has a second half of them, as large as SOLVER.IMS_PER_BATCH. Needs a method that
    # trains on such a set (AuxNet).
    cfg.DATASETS.AUXILIARY = ()
    # Also train on the pairs of BUPTCampus' train_auxiliary.txt, as identities like the others.
    cfg.DATASETS.BUPT_AUXILIARY = False
    # BUPTCampus: which test tracklets count: all | authors (without the 28 visible queries and 54
    # visible gallery entries that the authors' program drops). With TEST.CAMERA_FILTER it selects
    # one of the three protocols in use; the evaluation prints its name.
    cfg.DATASETS.BUPT_TEST = "all"

    # Protocols of the datasets of images, see docs/image_sets.md. The evaluation prints their name.
    cfg.DATASETS.IMAGE_PROTOCOL = CN()
    # SYSU-MM01: visible cameras of the gallery: all (1, 2, 4 and 5) | indoor (1 and 2).
    cfg.DATASETS.IMAGE_PROTOCOL.SEARCH = "all"
    # SYSU-MM01: gallery images of each identity and camera: 1 (single-shot) | 10 (multi-shot).
    cfg.DATASETS.IMAGE_PROTOCOL.SHOTS = 1
    # SYSU-MM01: how the gallery of a trial is drawn: seeded (Python's random, seeded with the
    # trial, as in the program of CAJL) | official (the dataset's exp/rand_perm_cam.mat).
    cfg.DATASETS.IMAGE_PROTOCOL.GALLERY = "seeded"
    # RegDB: which of the ten splits, 1 to 10. 0: split 1 for SEED 0, split 2 for SEED 1, ...
    cfg.DATASETS.IMAGE_PROTOCOL.SPLIT = 1
    # LLCM: V2I as in the dataset's paper (visible queries, drawn infrared gallery) | update (drawn
    # infrared queries, all visible images as the gallery, as in its later program).
    cfg.DATASETS.IMAGE_PROTOCOL.V2I = "paper"

    cfg.DATASETS.FOLDERS = CN()
    # Folders: the levels of the tree, from DATASETS.ROOT down to the folder of a tracklet's frames.
    # Fields: {identity}, {modality}, {camera}, {tracklet}, {split}; * is any text. A CSV file needs
    # no pattern.
    cfg.DATASETS.FOLDERS.PATTERN = "{identity}/{modality}/{camera}/{tracklet}"
    # Folders: share of the identities that is drawn for testing, where the data name no split. 1:
    # all.
    cfg.DATASETS.FOLDERS.TEST_SHARE = 0.3
    # Folders: seed of the drawn split. It does not follow SEED, so that all runs test the same
    # people.
    cfg.DATASETS.FOLDERS.SEED = 0

    cfg.DATASETS.SYNTHETIC = CN()
    # SyntheticVCM: number of identities for training.
    cfg.DATASETS.SYNTHETIC.TRAIN_IDS = 96
    # SyntheticVCM: number of identities for testing.
    cfg.DATASETS.SYNTHETIC.TEST_IDS = 32
    # SyntheticVCM: tracklets of each identity in each modality.
    cfg.DATASETS.SYNTHETIC.TRACKLETS = 5
    # SyntheticVCM: frames of a tracklet.
    cfg.DATASETS.SYNTHETIC.FRAMES = 24
    # SyntheticVCM: height and width of a frame in pixels.
    cfg.DATASETS.SYNTHETIC.SIZE = [64, 32]
    # SyntheticVCM: share of tracklets in which something hides a part of the person.
    cfg.DATASETS.SYNTHETIC.OCCLUSION = 0.6
    # SyntheticVCM: largest standard deviation of the blur, in pixels of a frame of height 64.
    cfg.DATASETS.SYNTHETIC.BLUR = 0.6
    # SyntheticVCM: background clutter behind the person.
    cfg.DATASETS.SYNTHETIC.BACKGROUND = True
    # SyntheticVCM: standard deviation of the joints' noise, as a share of the frame's height.
    cfg.DATASETS.SYNTHETIC.JOINT_NOISE = 0.015
    # SyntheticVCM: crops as a detector gives them. Their size and their aspect vary within a
    # tracklet, and some cut off a part of the body; a person is about as tall as SIZE. False: all
    # crops have SIZE.
    cfg.DATASETS.SYNTHETIC.DETECTIONS = False
    # SyntheticVCM: share of infrared frames in which left and right joints are swapped.
    cfg.DATASETS.SYNTHETIC.SWAPPED = 0.0
    # SyntheticVCM: share of infrared joints that are missing.
    cfg.DATASETS.SYNTHETIC.MISSING = 0.0
    # SyntheticVCM: seed of the people and their tracklets.
    cfg.DATASETS.SYNTHETIC.SEED = 0

    # Batches of pairs, for a dataset whose visible and infrared tracklets are aligned frame by
    # frame (BUPTCampus): the clips of a pair show the same frames, with the same crop and flip, and
    # the pairs of an identity come from different cameras. False: tracklets are drawn
    # independently.
    cfg.DATALOADER.PAIRS = False

    # --- input ---
    cfg.INPUT.CLIP = CN()
    # T: frames of a clip.
    cfg.INPUT.CLIP.LENGTH = 12
    # Frames of a training clip. 0: INPUT.CLIP.LENGTH. Methods for images see fewer frames of more
    # tracklets in training, and those of the protocol in testing.
    cfg.INPUT.CLIP.TRAIN_LENGTH = 0
    # Which frames: segments (a random one of each of T equal segments; in testing the first of
    # each) | random (T random frames in their order; in testing T frames at equal distances).
    cfg.INPUT.CLIP.SAMPLING = "segments"
    # One flip and one crop for all frames of a clip. False: each frame draws its own.
    cfg.INPUT.CLIP.SHARED_GEOMETRY = True
    # Replace every frame by a blank one: the model sees the skeletons only.
    cfg.INPUT.BLANK = False
    # Augmentations of the pixels of training clips, in this order, by name or as [name, share of
    # the clips]: channel_choice, published_channels, luma, random_luma, channel_factors, erasing,
    # cutmix, anaglyph, or your own. docs/losses.md says what each does.
    cfg.INPUT.AUGMENTATIONS = []
    # Gray images of 16 bits: the counts that become black and white, such as [7250, 7640]. []: the
    # 1st and the 99th percentile of the frames of each clip.
    cfg.INPUT.RANGE_16BIT = []

    # --- model ---
    # Max-pool of a ResNet's stem. False: fast-reid's (ceil_mode). True: padded by 1, as in
    # torchvision and in the published programs. The weights and the size of the maps are the same;
    # each sees the image shifted by a pixel.
    cfg.MODEL.BACKBONE.PADDED_POOL = False
    # Number of stems: 2 (one for each modality) | 1 (one for both).
    cfg.MODEL.BACKBONE.STREAMS = 2
    # Non-local blocks over all frames of a clip: for each of the four stages the number of its last
    # blocks that are followed by one, such as [0, 2, 3, 0]. []: there are none. fast-reid's
    # MODEL.BACKBONE.WITH_NL adds blocks over single frames.
    cfg.MODEL.BACKBONE.NON_LOCAL = []
    # Keep the weights and maps of the backbone with the channels last in memory: the same numbers
    # up to rounding, and often faster, most of all on GPUs in mixed precision.
    cfg.MODEL.CHANNELS_LAST = False
    cfg.MODEL.FRAME_CORRECTOR = CN()
    # The part that corrects frame features before they are pooled, a name of
    # FRAME_CORRECTOR_REGISTRY. Empty: none.
    cfg.MODEL.FRAME_CORRECTOR.NAME = ""
    # Share of training clips that lose all their skeletons.
    cfg.MODEL.SKELETON_DROPOUT = 0.0
    # Exponent p of the temporal GeM pooling (mean_t X^p)^(1/p).
    cfg.MODEL.HEADS.GEM_P = 3.0
    # Exponent p of the spatial GeM pooling of maps to frame features, of methods that do not pool
    # in their own way. 1: the mean.
    cfg.MODEL.HEADS.SPATIAL_P = 1.0
    # What the network and its losses see: clip | frame (each frame of a clip is a clip of one
    # frame, as in methods for images: "our protocol" for them, because nobody has published how
    # they are put on video).
    cfg.MODEL.UNIT = "clip"
    # MODEL.UNIT frame: the feature of a clip in testing is the mean of its frames' features: mean |
    # normalized (each is first scaled to unit length).
    cfg.MODEL.HEADS.JOIN = "mean"

    # --- losses: MODEL.LOSSES.NAME lists names of LOSS_REGISTRY ---
    # Factors in the sum of the losses, as [name, factor] pairs: [["StyleDefenseLoss", 0.5]]. A loss
    # without a factor has 1.
    cfg.MODEL.LOSSES.WEIGHTS = []
    # Numbers and readings of the losses, as [loss, option, value] triples: [["HeteroCenterLoss",
    # "margin", 0.2]]. docs/losses.md lists the options and their defaults.
    cfg.MODEL.LOSSES.OPTIONS = []
    # Train with the cross entropies alone in the first epochs. Without ImageNet weights the defense
    # loss would shrink all features before they mean anything.
    cfg.MODEL.LOSSES.CE_ONLY_EPOCHS = 0
    # Mining, and comparison of the modalities, with several processes. False: in each
    # process's share of the batch. True: in the whole batch, whose features are gathered.
    cfg.MODEL.LOSSES.TRI.ALL_RANKS = False

    # --- solver: SOLVER.IMS_PER_BATCH counts clips (P K 2) over all devices ---
    # Learning rate of the backbone and both stems, as a factor of SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Length of the warm-up in epochs. 0: SOLVER.WARMUP_ITERS is used.
    cfg.SOLVER.WARMUP_EPOCHS = 0
    # True: the milestones of SOLVER.STEPS count epochs from the start of training. False: from the
    # end of the warm-up, as in fast-reid.
    cfg.SOLVER.STEPS_FROM_START = False
    # Mixed precision (SOLVER.AMP.ENABLED): float16, with a gradient scaler, or bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Let convolutions and matrix products round their float32 inputs: HF32 on NPUs, TF32 on GPUs.
    # Faster and less exact.
    cfg.SOLVER.FAST_FLOAT32 = False
    # Number of model_last.pth files that are kept: the newest, model_last-1.pth before it, and so
    # on. They are written every SOLVER.CHECKPOINT_PERIOD epochs, before each evaluation, and when a
    # signal ends the run. model_best.pth and model_final.pth are always kept.
    cfg.SOLVER.CHECKPOINT_KEEP = 2
    # Iterations between two lines of the log.
    cfg.SOLVER.LOG_PERIOD = 50

    # --- test: TEST.IMS_PER_BATCH counts the clips of one device's batch ---
    # Ranks of the CMC curve that are printed.
    cfg.TEST.RANKS = [1, 5, 10, 20]
    # Leave out gallery tracklets with the query's identity and camera.
    cfg.TEST.CAMERA_FILTER = True
    # BUPTCampus' temporal re-ranking, from the features of all frames and of both halves of each
    # tracklet. The keys beside it are those of k-reciprocal re-ranking.
    cfg.TEST.RERANK.TEMPORAL = False

    for key in (*REMOVED, *FOLLOWING):  # yacs ignores them, wherever they are merged
        cfg.register_deprecated_key(key)
    return cfg
