"""Run an unmodified fast-reid script with this plugin's trainer, launcher and config."""

from __future__ import annotations

import contextlib
import functools
import os
import runpy
import sys
from collections.abc import Callable

from fastreid.config import CfgNode, get_cfg
from fastreid.data import build_reid_test_loader, build_reid_train_loader
from fastreid.utils import comm

from fastreid_star import compat
from fastreid_star.arguments import (
    ConfigArgumentParser,
    argument_parser,
    import_packages,
    packages_of_environment,
)
from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine.checkpoint import Checkpointer
from fastreid_star.engine.configs import config_path, merge_file, merge_options, read_yaml
from fastreid_star.engine.defaults import default_setup
from fastreid_star.engine.device import choose_device
from fastreid_star.engine.launch import launch
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError


def run_script(path: str, arguments: list[str]) -> None:
    """Run a script as ``python path arguments`` would.

    fast-reid's names stand for the plugin's objects. These names, ``sys.argv`` and ``sys.path[0]``
    stay changed until the process ends.

    Raises:
        UserError: the script does not exist, or the plugin raises this error while the script runs.
    """
    if not os.path.isfile(path):
        raise UserError(f"script {path} does not exist")
    sys.argv = [path, *arguments]
    if not getattr(sys.flags, "safe_path", False):  # python -P adds no folder
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    import_packages(packages_of_environment())
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
    runpy.run_path(path, run_name="__main__")


def script_parser() -> ConfigArgumentParser:
    """Replaces fast-reid's ``default_argument_parser``."""
    return argument_parser("A fast-reid script, run with fastreid_star", for_script=True)


def script_launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """Replaces fast-reid's ``launch``, with its arguments."""
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
    """MODEL.DEVICE of a script's command line, before the script reads its config.

    Args:
        args: the arguments of the script's main function. Those of fast-reid's parser, with
            ``config_file`` and ``opts``, are read.

    Returns:
        the value in the options, else in the file, else the default.
    """
    device = get_cfg().MODEL.DEVICE
    for arg in args:
        if getattr(arg, "config_file", ""):
            with contextlib.suppress(
                Exception
            ):  # the script reads the file later and reports errors
                path = config_path(arg.config_file)
                device = read_yaml(path)["MODEL"]["DEVICE"]
        options = list(getattr(arg, "opts", None) or [])
        device = dict(zip(options[::2], options[1::2], strict=False)).get("MODEL.DEVICE", device)
    return device


def script_optimizer(cfg: CfgNode, model, contiguous: bool = True) -> tuple:
    """Replaces fast-reid's ``build_optimizer``."""
    return Trainer.build_optimizer(cfg, model)


def _on_device(build: Callable) -> Callable:
    """A loader function of fast-reid whose batches are on MODEL.DEVICE.

    Without a config among its arguments the batches stay on the host.
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
        if isinstance(loader, tuple):  # a test loader and the number of queries
            return DeviceLoader(loader[0], device), *loader[1:]
        return DeviceLoader(loader, device)

    return built
