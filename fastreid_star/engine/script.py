"""Run a script written for fast-reid, as it is, with this plugin's trainer, launcher and config behind its imports."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable

from fastreid.config import CfgNode, get_cfg
from fastreid.data import build_reid_test_loader, build_reid_train_loader
from fastreid.utils import comm

from fastreid_star import compat
from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine.checkpoint import Checkpointer
from fastreid_star.engine.defaults import argument_parser, default_setup, merge_file, merge_options
from fastreid_star.engine.device import choose_device
from fastreid_star.engine.launch import launch
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

_SCRIPT = (
    "FASTREID_STAR_SCRIPT"  # the environment variable by which spawned processes know the script
)


def run_script(path: str, arguments: list[str]) -> None:
    """Run a script as ``python path arguments`` would, with the plugin's objects under fast-reid's names.

    The names, and ``sys.argv``, ``sys.path[0]`` and the module ``__main__`` with them, stay so until the process ends.

    Args:
        path: of the script.
        arguments: its own.

    Raises:
        UserError: there is no such script; and whatever the plugin refuses while it runs.
    """
    if not os.path.isfile(path):
        raise UserError(f"script {path} does not exist")
    sys.argv = [path, *arguments]
    if not getattr(sys.flags, "safe_path", False):  # python -P puts no folder in front
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    os.environ[_SCRIPT] = os.path.abspath(path)
    execute("__main__")


def execute(name: str) -> types.ModuleType:
    """Run the script, which the environment names, as the module `name`, and return that module."""
    compat.use_in_scripts(
        DefaultTrainer=Trainer,
        default_argument_parser=script_parser,
        default_setup=default_setup,
        launch=script_launch,
        Checkpointer=Checkpointer,
        build_model=Trainer.build_model,
        build_optimizer=script_optimizer,
        build_reid_train_loader=_on_device(build_reid_train_loader),
        build_reid_test_loader=_on_device(build_reid_test_loader),
        merge_from_file=merge_file,
        merge_from_list=merge_options,
    )
    path = os.environ[_SCRIPT]
    if name != "__main__":  # runpy has put the file there that it runs
        sys.argv[0] = path
    module = types.ModuleType(name)
    module.__file__ = path
    module.__spec__ = importlib.util.find_spec("fastreid_star.engine.spawned")
    sys.modules[name] = module
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, vars(module))
    return module


def script_parser() -> argparse.ArgumentParser:
    """What scripts get as ``default_argument_parser``."""
    return argument_parser("A script for fast-reid, run with fastreid_star", for_script=True)


def script_launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """What scripts get as ``launch``: fast-reid's arguments, :func:`fastreid_star.engine.launch.launch`'s behavior.

    Processes are joined before the script reads its config, so MODEL.DEVICE is looked up beforehand: see
    :func:`device_of`.
    """
    launch(
        main_func,
        num_gpus_per_machine,
        device=device_of(args),
        num_machines=num_machines,
        machine_rank=machine_rank,
        dist_url=dist_url or "auto",
        args=args,
    )


def device_of(args: tuple) -> str:
    """MODEL.DEVICE of the command line that is among a script's arguments.

    Args:
        args: what the script launches its main function with. One that has ``config_file`` and ``opts``, as
            fast-reid's parser makes them, is read.

    Returns:
        what the options say, else the file, else the default config. What the script sets by itself is not seen.
    """
    device = get_cfg().MODEL.DEVICE
    for arg in args:
        if getattr(arg, "config_file", ""):
            with contextlib.suppress(
                Exception
            ):  # the script reads the file next, and says what is wrong with it
                device = CfgNode.load_yaml_with_base(arg.config_file)["MODEL"]["DEVICE"]
        options = list(getattr(arg, "opts", None) or [])
        device = dict(zip(options[::2], options[1::2], strict=False)).get("MODEL.DEVICE", device)
    return device


def script_optimizer(cfg: CfgNode, model, contiguous: bool = True) -> tuple:
    """What scripts get as ``build_optimizer``: never one over a flat buffer, which would train nothing."""
    return Trainer.build_optimizer(cfg, model)


def _on_device(build: Callable) -> Callable:
    """A loader function of fast-reid's, with batches on MODEL.DEVICE, where its own are on the GPU.

    Called without a config it knows no device, and leaves batches on the host.
    """

    @functools.wraps(build)
    def built(*args, **kwargs):
        cfg = args[0] if args else kwargs.get("cfg")
        if not isinstance(cfg, CfgNode):
            return build(*args, **kwargs)
        if cfg.DATASETS.ROOT:
            compat.set_dataset_root(cfg.DATASETS.ROOT)
        device = choose_device(cfg.MODEL.DEVICE, comm.get_local_rank())
        loader = build(*args, **kwargs)
        if isinstance(loader, tuple):  # a test loader comes with the number of queries
            return DeviceLoader(loader[0], device), *loader[1:]
        return DeviceLoader(loader, device)

    return built
