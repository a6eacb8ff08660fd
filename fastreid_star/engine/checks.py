"""All that is wrong with a run, found before its first step and told at once: config, data and machine.

What these checks cannot see, such as weights that do not fit, is still refused where it is met.
"""

from __future__ import annotations

import logging

from fastreid.config import CfgNode
from fastreid.utils import comm

from fastreid_star.engine import checks_config, checks_data, checks_machine
from fastreid_star.engine.job import Job, Problem
from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)

CHECKS = (*checks_config.CHECKS, *checks_data.CHECKS, *checks_machine.CHECKS)


def problems(job: Job) -> list[Problem]:
    """Everything the checks have to say of a run, each once, the same on every rank."""
    found: list[Problem] = []
    for one in CHECKS:
        try:
            found.extend(one(job))
        except UserError as error:
            found.append(Problem(str(error)))
    # what only one machine lacks, all must know of: the others would wait for it
    return list(dict.fromkeys(problem for of_rank in comm.all_gather(found) for problem in of_rank))


def check(cfg: CfgNode, *, training: bool = True) -> None:
    """Refuse now what would end in a traceback, or what the first evaluation, hours later, would stumble over.

    What is merely doubtful is logged.

    Args:
        cfg: a complete config.
        training: False: only an evaluation of MODEL.WEIGHTS.

    Raises:
        UserError: all that is wrong, on every rank.
    """
    job = Job(cfg, training, comm.get_world_size(), comm.get_local_size())
    found = problems(job)
    for problem in found:
        if not problem.fatal:
            logger.warning(problem.text)
    if any(problem.fatal for problem in found):
        raise UserError.of(problem.text for problem in found if problem.fatal)
