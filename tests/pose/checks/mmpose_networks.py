"""mmpose's real architectures with random weights, their checkpoints, and a perfect stand-in for one."""

import functools
from collections import OrderedDict

import numpy as np
import torch
from markers import find
from mmengine.logging import MessageHub
from mmpose.codecs import MSRAHeatmap, SimCCLabel

from fastreid_star.pose import mmpose as backend
from fastreid_star.pose.estimator import build_estimator

CPU = torch.device("cpu")
HRNET = backend.DEFAULT_MODEL
DARK = "td-hm_res50_dark-8xb64-210e_coco-256x192"
UDP = "cspnext-tiny_udp_8xb256-210e_coco-256x192"
UDP_OFFSETS = "td-hm_hrnet-w32_udp-regress-8xb64-210e_coco-256x192"
RTMPOSE = "rtmpose-t_8xb256-420e_coco-256x192"
FLIPPED = (HRNET, RTMPOSE)  # with heatmaps and with SimCC vectors; building a network takes long


@functools.lru_cache
def network(name):
    """The real architecture with random weights, those that are run with features that differ from place to place."""
    path = backend.config_path(name)
    config = backend.read_config(path)
    torch.manual_seed(0)
    model = backend._build(config, path, CPU, False)
    if name in (HRNET, RTMPOSE):
        # after one batch the normalized features have mean 0 and variance 1, as in a trained network
        for layer in model.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = 1.0
        noise = torch.nn.functional.interpolate(torch.randn(2, 3, 16, 12), scale_factor=16)
        with torch.no_grad():
            model.train()(noise, None, mode="tensor")
    return model.eval(), config


def published(name):
    """What mmengine writes in training, and mmpose publishes without the optimizer."""
    model, config = network(name)
    hub = MessageHub.get_instance("checks")
    for step in range(3):
        hub.update_scalar("train/loss", 1 / (1 + step))
    hub.update_info("best", np.float64(0.7))
    meta = {
        "cfg": config.pretty_text,
        "epoch": 210,
        "dataset_meta": {
            "sigmas": np.ones(17, np.float32),
            "joint_weights": np.ones((17, 1)),
            "names": ["nose"],
        },
    }
    return {
        "meta": meta,
        "state_dict": OrderedDict(model.state_dict()),
        "message_hub": hub.state_dict(),
    }


@functools.lru_cache
def checkpoint(folder, name):
    path = folder / f"{name}.pth"
    torch.save(published(name), path)
    return str(path)


@functools.lru_cache
def build(folder, name, flip_test=False, dtype=None):
    path = checkpoint(folder, name)
    return build_estimator(
        "mmpose", model=name, checkpoint=path, device=CPU, flip_test=flip_test, dtype=dtype
    )


class Perfect:
    """Stands in for a network: its output is the codec's own encoding of where the blobs are in its input."""

    def __init__(self, estimator):
        self.model, self.decoder = estimator._model, estimator._head.decoder
        if isinstance(self.decoder, MSRAHeatmap):  # peaks at the joints, not at the nearest cells
            self.encoder = MSRAHeatmap(
                self.decoder.input_size, self.decoder.heatmap_size, 2, unbiased=True
            )
        else:
            self.encoder = self.decoder

    def __enter__(self):
        self.seen = []
        self.model.extract_feat = lambda inputs: inputs
        self.model.head.forward = self.outputs
        return self

    def __exit__(self, *_):
        del self.model.extract_feat, self.model.head.forward

    def outputs(self, inputs):
        self.seen.append(inputs)
        normal = self.model.data_preprocessor
        pixels = (inputs * normal.std + normal.mean).permute(0, 2, 3, 1).numpy()
        return self.encode([find(image) for image in pixels])

    def encode(self, points, height=1.0):
        encoded = [self.encoder.encode(np.float32(one)[None]) for one in points]
        if isinstance(self.decoder, SimCCLabel):
            vectors = [
                np.concatenate([one[f"keypoint_{axis}_labels"] for one in encoded]) for axis in "xy"
            ]
            return tuple(height * torch.from_numpy(vector) for vector in vectors)
        return height * torch.from_numpy(np.stack([one["heatmaps"] for one in encoded]))
