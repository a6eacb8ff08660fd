"""The heads that methods share, registered in fast-reid's REID_HEADS_REGISTRY."""

from fastreid_star.modeling.heads.clip_head import ClipHead, FrameHead
from fastreid_star.modeling.heads.part_head import PartHead

__all__ = ["ClipHead", "FrameHead", "PartHead"]
