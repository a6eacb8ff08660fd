"""Every patch of fastreid 1.4.0 and torchvision, each with its reason. Nothing else in the project patches.

fastreid 1.4.0 was written for torch 1.13 and Python 3.9. :func:`apply` makes it importable and usable on
Python 3.10 and later and torch 2.x, and puts the standard library back as it found it. It changes nothing in
installed files, and calling it twice is harmless.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import functools
import importlib
import importlib.util
import pkgutil
import sys
import types
import warnings
from pathlib import Path
from typing import Any

try:
    import torch
except (
    RuntimeError
) as error:  # torch loads the device packages that are installed; one that fails takes torch along
    if "backend extension" not in str(error):
        raise
    raise ImportError(
        "torch does not import because torch_npu does not load: source CANN's set_env.sh in this shell first, or set "
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0 to do without the NPU"
    ) from error

# what fast-reid's training scripts import, and from where
_NAMES_IN_SCRIPTS = {
    "DefaultTrainer": ("fastreid.engine", "fastreid.engine.defaults"),
    "default_argument_parser": ("fastreid.engine", "fastreid.engine.defaults"),
    "default_setup": ("fastreid.engine", "fastreid.engine.defaults"),
    "launch": ("fastreid.engine", "fastreid.engine.launch"),
    "Checkpointer": ("fastreid.utils.checkpoint", "fastreid.engine.defaults"),
    "build_model": (
        "fastreid.modeling",
        "fastreid.modeling.meta_arch",
        "fastreid.modeling.meta_arch.build",
        "fastreid.engine.defaults",
    ),
    "build_optimizer": ("fastreid.solver", "fastreid.solver.build", "fastreid.engine.defaults"),
    "build_reid_train_loader": ("fastreid.data", "fastreid.data.build"),
    "build_reid_test_loader": ("fastreid.data", "fastreid.data.build"),
    "merge_from_file": ("fastreid.config.CfgNode",),
    "merge_from_list": ("fastreid.config.CfgNode",),
}
_applied = False
_torchvision_schemas: list[
    torch.library.Library
] = []  # a schema lives as long as its Library object


def apply() -> None:
    """Make fastreid importable and patch what does not work on today's torch.

    Raises:
        ImportError: fastreid or torchvision is not installed.
    """
    global _applied
    if _applied:
        return
    _import_torchvision()
    with _old_names(), _metrics_when_needed():
        importlib.import_module("fastreid.data.build")
        importlib.import_module("fastreid.evaluation.testing")
    _patch_loader()
    _patch_comm()
    _patch_transforms()
    _patch_rerank()
    _patch_evaluation()
    _patch_preprocessing()
    _patch_packaged_yaml()
    _applied = True


def set_dataset_root(root: str) -> None:
    """Where fast-reid's own loaders look for image datasets; they read $FASTREID_DATASETS once, at import."""
    from fastreid.data import build

    build._root = root


def use_in_scripts(**objects: object) -> None:
    """Put our own under the names that fast-reid's training scripts import, in this process and until it ends.

    A script imports fast-reid's trainer, launcher and builders, whose devices are CUDA's and whose optimizer trains
    nothing on torch 2.

    Args:
        objects: by fast-reid's name: DefaultTrainer, default_setup, launch, ...
    """
    for name, ours in objects.items():
        for owner in _NAMES_IN_SCRIPTS[name]:
            setattr(pkgutil.resolve_name(owner), name, ours)


def _import_torchvision() -> None:
    """A CUDA build of torchvision beside a CPU build of torch fails at import on two operators' schemas.

    fastreid uses only the transforms, so declaring the operators, without an implementation, is enough.
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
    """`collections.Mapping` (gone in Python 3.10) and `torch._six` (gone in torch 2), while fastreid is imported."""
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


@contextlib.contextmanager
def _metrics_when_needed():
    """`from sklearn import metrics` is for ROC curves alone, and takes most of a second: loaded at first use."""
    if "sklearn" in sys.modules:
        yield
        return
    metrics = types.ModuleType("sklearn.metrics")
    metrics.__getattr__ = lambda name: getattr(importlib.import_module("sklearn.metrics"), name)  # type: ignore[method-assign]
    stand_in: Any = types.ModuleType("sklearn")
    stand_in.__spec__, stand_in.metrics = importlib.util.find_spec("sklearn"), metrics
    sys.modules["sklearn"] = stand_in
    try:
        yield
    finally:
        del sys.modules["sklearn"]


def _patch_loader() -> None:
    """DataLoaderX copies batches on a CUDA stream of its own. Here: a plain loader; the engine moves the batch."""
    from fastreid.data import build, data_utils

    class DataLoaderX(torch.utils.data.DataLoader):
        def __init__(self, local_rank, **kwargs):
            kwargs["pin_memory"] = False
            super().__init__(**kwargs)

    data_utils.DataLoaderX = DataLoaderX
    build.DataLoaderX = DataLoaderX


def _patch_comm() -> None:
    """Objects are gathered over gloo; fastreid asks for a gloo group only beside NCCL, and so fails on HCCL."""
    from fastreid.utils import comm

    @functools.lru_cache
    def gloo_group():
        if torch.distributed.get_backend() == "gloo":
            return torch.distributed.group.WORLD
        return torch.distributed.new_group(backend="gloo")

    comm._get_global_gloo_group = gloo_group


def _patch_transforms() -> None:
    """RandomAffine's `resample` and `fillcolor` became `interpolation` and `fill` in torchvision 0.15."""
    from fastreid.data.transforms import build
    from torchvision.transforms import InterpolationMode

    class RandomAffine(build.T.RandomAffine):
        def __init__(self, *args, resample=False, fillcolor=0, **kwargs):
            # resample=False was PIL's 0, nearest
            super().__init__(
                *args, interpolation=InterpolationMode.NEAREST, fill=fillcolor, **kwargs
            )

    build.T = types.SimpleNamespace(**{**vars(build.T), "RandomAffine": RandomAffine})


def _patch_rerank() -> None:
    """Re-ranking moves features to CUDA and searches with GPU faiss; option 3 is its own CPU path."""
    from fastreid.utils import compute_dist

    original = compute_dist.compute_jaccard_distance

    @functools.wraps(original)
    def on_cpu(features, k1=20, k2=6, search_option=3, fp16=False):
        return original(features.cpu(), k1=k1, k2=k2, search_option=3, fp16=fp16)

    compute_dist.compute_jaccard_distance = on_cpu


def _patch_evaluation() -> None:
    """No compiler at the first evaluation, and no failure with a small gallery.

    The Cython ranking is compiled into site-packages by whichever python3 is on the PATH, and a failure ends the
    run. Where it is compiled it is used, where it is not the Python path gives the same numbers. The Python path
    cuts the queries' curves at the gallery's size, but the camera rule leaves them of different lengths: they are
    cut at the shortest. `cmc[9]` is read whatever the length: the curve is extended by its last value.
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
    """Baseline and MGN normalize the caller's batch in place: a flip test then normalizes it twice."""
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
    """RegNet's and EfficientNet's YAML files are named relative to a source checkout's root.

    They ship inside the package, so they are looked up there. Their config is one global that each build merges
    into: it starts from the defaults again each time, or a RegNetX built after a RegNetY would keep its SE.
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
