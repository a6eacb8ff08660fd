"""All patches of fastreid 1.4.0 and torchvision, each with its reason.

fastreid 1.4.0 was written for torch 1.13 and Python 3.9. :func:`apply` makes it usable with Python
3.10 and later and torch 2. It restores the standard library afterwards, changes no installed file,
and may be called twice.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import functools
import importlib
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

try:
    import torch
except (
    RuntimeError
) as error:  # torch loads the installed device packages, and fails if one of them fails
    if "backend extension" not in str(error):
        raise
    raise ImportError(
        "torch cannot be imported because torch_npu cannot be loaded: source CANN's set_env.sh in "
        "this shell first, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to work without the NPU"
    ) from error

_applied = False
# a schema exists as long as its Library object
_torchvision_schemas: list[torch.library.Library] = []


def apply() -> None:
    """Make fastreid importable and patch its parts that do not work with torch 2.

    Raises:
        ImportError: fastreid or torchvision is not installed.
    """
    global _applied
    if _applied:
        return
    _import_torchvision()
    with _old_names():
        importlib.import_module("fastreid.data.build")
        importlib.import_module("fastreid.evaluation.testing")
    _patch_loader()
    _patch_optimizer()
    _patch_comm()
    _patch_transforms()
    _patch_rerank()
    _patch_evaluation()
    _patch_preprocessing()
    _patch_packaged_yaml()
    _patch_downloads()
    _applied = True


def set_dataset_root(root: str) -> None:
    """Set the folder of image datasets; fast-reid reads $FASTREID_DATASETS once, at import."""
    from fastreid.data import build

    build._root = root


def use_in_scripts(**objects: object) -> None:
    """Replace the objects that fast-reid's training scripts import, until this process ends.

    fast-reid's own trainer, launcher and builders need CUDA.

    Args:
        objects: the plugin's objects by fast-reid's names: DefaultTrainer, launch, ...
    """
    from fastreid.config import CfgNode

    modules = [module for name, module in sys.modules.items() if name.startswith("fastreid.")]
    for name, ours in objects.items():
        for owner in [*modules, CfgNode]:
            theirs = vars(owner).get(name)
            if callable(theirs):  # fastreid.engine.launch is a module and a function
                setattr(owner, name, ours)


def _import_torchvision() -> None:
    """A CUDA build of torchvision cannot be imported beside a CPU build of torch.

    Two operators are undeclared then. fastreid uses only the transforms: it is enough to declare
    the operators, without an implementation.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_schemas.append(library)
        import torchvision  # noqa: F401


@contextlib.contextmanager
def _old_names():
    """fastreid imports ``collections.Mapping`` and ``torch._six``, which no longer exist."""
    added_mapping = not hasattr(collections, "Mapping")
    added_six = importlib.util.find_spec("torch._six") is None
    if added_mapping:
        collections.Mapping = collections.abc.Mapping  # type: ignore[attr-defined]
    if added_six:
        six: Any = types.ModuleType("torch._six")
        six.string_classes = (str, bytes)
        sys.modules["torch._six"] = six
    try:
        yield
    finally:
        if added_mapping:
            del collections.Mapping  # type: ignore[attr-defined]
        if added_six:
            del sys.modules["torch._six"]


def _patch_loader() -> None:
    """DataLoaderX copies batches on a CUDA stream; here the trainer moves the batch."""
    from fastreid.data import build, data_utils

    class DataLoaderX(torch.utils.data.DataLoader):
        def __init__(self, local_rank, **kwargs):
            kwargs["pin_memory"] = False
            super().__init__(**kwargs)

    data_utils.DataLoaderX = DataLoaderX
    build.DataLoaderX = DataLoaderX


def _patch_optimizer() -> None:
    """fastreid's optimizer changes no weight on torch 2.

    It holds all weights in one flat buffer. Since torch 2, ``zero_grad()`` removes the buffer's
    gradient, and ``step()`` skips what has no gradient. Here the optimizer holds the weights
    themselves.
    """
    from fastreid import solver

    original = solver.build_optimizer

    @functools.wraps(original)
    def build_optimizer(cfg, model, contiguous=False):
        return original(cfg, model, contiguous=False)

    # fastreid.engine is imported later, and then takes this function
    solver.build_optimizer = solver.build.build_optimizer = build_optimizer


def _patch_comm() -> None:
    """fastreid gathers objects over gloo, but creates a gloo group only beside NCCL, not HCCL."""
    from fastreid.utils import comm

    @functools.lru_cache
    def gloo_group():
        if torch.distributed.get_backend() == "gloo":
            return torch.distributed.group.WORLD
        return torch.distributed.new_group(backend="gloo")

    comm._get_global_gloo_group = gloo_group


def _patch_transforms() -> None:
    """Two arguments of RandomAffine have other names since torchvision 0.15."""
    from fastreid.data.transforms import build
    from torchvision.transforms import InterpolationMode

    class RandomAffine(build.T.RandomAffine):
        def __init__(self, *args, resample=False, fillcolor=0, **kwargs):
            # resample=False means nearest, PIL's 0
            super().__init__(
                *args, interpolation=InterpolationMode.NEAREST, fill=fillcolor, **kwargs
            )

    build.T = types.SimpleNamespace(**{**vars(build.T), "RandomAffine": RandomAffine})


def _patch_rerank() -> None:
    """Re-ranking searches with faiss on the GPU; its search option 3 runs on the CPU."""
    from fastreid.utils import compute_dist

    original = compute_dist.compute_jaccard_distance

    @functools.wraps(original)
    def on_cpu(features, k1=20, k2=6, search_option=3, fp16=False):
        return original(features.cpu(), k1=k1, k2=k2, search_option=3, fp16=fp16)

    compute_dist.compute_jaccard_distance = on_cpu


def _patch_evaluation() -> None:
    """The evaluation does not compile, and does not fail with a small gallery.

    fastreid compiles its Cython ranking at the first evaluation, and ends the run if that fails.
    Without it the Python ranking gives the same numbers. That ranking needs CMC curves of equal
    length, but the camera rule removes different numbers of gallery images: the curves are cut at
    the shortest. fastreid then reads ``cmc[9]``: a shorter curve is extended by its last value.
    """
    import numpy as np

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Cython rank evaluation")
        from fastreid.evaluation import rank, reid_evaluation

    original = rank.evaluate_rank

    @functools.wraps(original)
    def evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50, *args, **kwargs):
        removed = (q_pids[:, None] == g_pids) & (q_camids[:, None] == g_camids)
        shortest = int((~removed).sum(1).min())
        max_rank = max(1, min(max_rank, shortest))
        cmc, *rest = original(
            distmat, q_pids, g_pids, q_camids, g_camids, max_rank, *args, **kwargs
        )
        if len(cmc) < 10:
            cmc = np.concatenate([cmc, np.full(10 - len(cmc), cmc[-1], dtype=cmc.dtype)])
        return cmc, *rest

    rank.evaluate_rank = evaluate_rank
    reid_evaluation.ReidEvaluator._compile_dependencies = lambda self: None


def _patch_preprocessing() -> None:
    """Baseline and MGN normalize the batch in place, so that a flip test normalizes it twice."""
    from fastreid.modeling.meta_arch.baseline import Baseline
    from fastreid.modeling.meta_arch.mgn import MGN

    def preprocess_image(self, batched_inputs):
        images = batched_inputs["images"] if isinstance(batched_inputs, dict) else batched_inputs
        if not isinstance(images, torch.Tensor):
            raise TypeError(
                f"batched_inputs must be dict or torch.Tensor, but get {type(batched_inputs)}"
            )
        return (images - self.pixel_mean) / self.pixel_std

    Baseline.preprocess_image = preprocess_image
    MGN.preprocess_image = preprocess_image


def _patch_packaged_yaml() -> None:
    """RegNet and EfficientNet look for their YAML files in the working directory.

    The files are in the package. Each build merges its file into one global config. Here it starts
    from the defaults, or a RegNetX built after a RegNetY would keep its squeeze-and-excitation.
    """
    import fastreid
    from fastreid.modeling.backbones.regnet import effnet, regnet

    checkout = Path(fastreid.__file__).resolve().parent.parent

    class PackagedConfig:
        def __init__(self, config):
            self._config, self._defaults = config, config.clone()

        def __getattr__(self, name):
            return getattr(self._config, name)

        def merge_from_file(self, cfg_filename):
            self._config.merge_from_other_cfg(self._defaults)
            self._config.merge_from_file(str(checkout / cfg_filename))

    regnet.regnet_cfg = PackagedConfig(regnet.regnet_cfg)
    effnet.effnet_cfg = PackagedConfig(effnet.effnet_cfg)


def _patch_downloads() -> None:
    """torch 2.6 and later cannot read the files of torchvision's ResNets that fast-reid downloads.

    They are tar archives, the format of torch in 2017. torchvision has the same weights in a newer
    format under other names.
    """
    from fastreid.modeling.backbones import resnet
    from torchvision import models

    for depth in (18, 34, 50, 101):
        weights = getattr(models, f"ResNet{depth}_Weights").IMAGENET1K_V1
        resnet.model_urls[f"{depth}x"] = weights.url
