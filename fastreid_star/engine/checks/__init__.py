"""What is wrong with a run, found before its first step and reported at once.

What only building can tell, such as the name of a loss, is reported where it is built.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from fastreid.config import CfgNode
from fastreid.utils import comm

from fastreid_star.engine.checks import config, data, machine, meaning
from fastreid_star.engine.checks.run import Problem, Run
from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)

# Each yields problems, or raises a UserError, which is one.
CHECKS: tuple[Callable[[Run], Iterable[Problem]], ...] = (
    config.names, config.numbers, config.training_input, config.test_input,
    data.datasets, data.matches, data.batches, data.skeletons, data.sixteen_bits,
    meaning.separation, meaning.warm_up,
    machine.device, machine.weights, machine.pretrained, machine.trackers, machine.output,
)  # fmt: skip


def check(
    cfg: CfgNode,
    *,
    training: bool = True,
    world_size: int | None = None,
    local_size: int | None = None,
) -> list[Problem]:
    """Everything that the checks report about a run, each problem once, equal on every rank.

    Args:
        cfg: a complete config.
        training: False: only an evaluation of MODEL.WEIGHTS.
        world_size, local_size: number of processes, in all and on this machine; None: those that
            run now.
    """
    sizes = world_size or comm.get_world_size(), local_size or comm.get_local_size()
    run = Run(cfg, training, *sizes)
    found: list[Problem] = []
    for one in CHECKS:
        try:
            found.extend(one(run))
        except UserError as error:
            found.append(Problem(str(error)))
    # all ranks must know what only one machine lacks: they would wait for it
    return list(dict.fromkeys(problem for of_rank in comm.all_gather(found) for problem in of_rank))


def require(cfg: CfgNode, *, training: bool = True) -> None:
    """Log the warnings of :func:`check`, and refuse a run with fatal problems.

    Raises:
        UserError: all fatal problems, on every rank.
    """
    found = check(cfg, training=training)
    for problem in found:
        if not problem.fatal:
            logger.warning(problem.text)
    if any(problem.fatal for problem in found):
        raise UserError.of(problem.text for problem in found if problem.fatal)
