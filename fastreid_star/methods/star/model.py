"""STAR: the baseline with bones that correct the frames and joints that weigh the clip.

::

    images    -> two-stream backbone -> X [B, T, D] -> frame CE, style attack and defense (SAD)
    skeletons -> bones (1)-(3)
    X, bones  -> frame corrector (4)-(7) -> Y [B, T, D]
    skeletons -> joints, graph attention (8)-(10) -> parts (12)
    Y, parts  -> GeM pyramid (11), weighed (13) -> G [B, D] -> clip CE, triplet; retrieval
    bones, joints -> skeleton consistency (14)

The three parts are registered components, switched by name in the config (see ``config.py``) and
usable with any meta-architecture that extends VideoReID. Without all of them this is SAD, number
for number.

Shapes: B clips, T frames, V joints, D feature width.
"""

from __future__ import annotations

from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.methods.sad.model import SAD


@META_ARCH_REGISTRY.register()
class STAR(SAD):
    """Skeleton-guided spatial-temporal feature learning (Jiang et al., 2024, arXiv 2411.11069).

    It adds nothing to :class:`SAD` but its name: the parts are the frame corrector
    ``SkeletonFrameCorrector``, the head ``GATGeMHead`` and the loss ``SkeletonConsistencyLoss``.
    """
