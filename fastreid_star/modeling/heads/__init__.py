"""The heads that methods share, registered in fast-reid's REID_HEADS_REGISTRY."""

from fastreid_star.modeling.heads.clip_head import ClipHead, FrameHead

__all__ = ["ClipHead", "FrameHead"]
