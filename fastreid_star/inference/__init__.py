"""Using a trained model: features of tracklets, a gallery to search, ONNX export."""

from fastreid_star.inference.gallery import Gallery
from fastreid_star.inference.predictor import StarPredictor

__all__ = ["Gallery", "StarPredictor"]
