"""The config keys of STAR.

Its parts are switched by name: ``MODEL.FRAME_CORRECTOR.NAME SkeletonFrameCorrector`` is the
frame level, ``MODEL.HEADS.NAME GATGeMHead`` the sequence level, and ``SkeletonConsistencyLoss`` in
``MODEL.LOSSES.NAME`` the consistency loss. The keys below choose how each part reads the paper;
`release` is always what the authors' program does.
"""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ()


def add_config(cfg: CN) -> None:
    """Add ``MODEL.STAR`` to a fast-reid config, in place."""
    cfg.MODEL.STAR = CN()
    # Joints with a lower score are ignored; 0: every joint is used. BONES release and GRAPH release
    # use every joint in any case.
    cfg.MODEL.STAR.SCORE_THRESHOLD = 0.0
    # In which pixels joints are measured: crop (of the crop, before it is resized) | image (of the
    # resized image, as before version 0.2).
    cfg.MODEL.STAR.GEOMETRY = "crop"
    # Bone features, eq. (1)-(2): standardized (length / scale of the clip, sin, cos, each
    # batch-normalized and weighed by the joints' scores) | normalized (length / scale of the
    # skeleton, sin, cos) | release (length, angle, in raw pixels).
    cfg.MODEL.STAR.BONES = "standardized"
    # Eq. (5) and (7): paper (squeeze-and-excitation gate, and a LayerNorm of ours) | release
    # (neither).
    cfg.MODEL.STAR.CORRECTOR = "paper"
    # Exponents of the GeM poolings, eq. (11).
    cfg.MODEL.STAR.EXPONENTS = [0.7, 1.0, 3.0, 5.0, 7.0]
    # Eq. (13): parts (the body parts of each frame add to the pooled feature) | sigmoid (a gate for
    # each part and exponent, the default before 0.2) | release.
    cfg.MODEL.STAR.GUIDE = "parts"
    # Eq. (8)-(9): standardized (bones in every frame; x, y and score of each joint,
    # batch-normalized and weighed by the score) | normalized (without these two steps, the default
    # before 0.2) | release (bones in frame 0 only, raw pixels).
    cfg.MODEL.STAR.GRAPH = "standardized"
