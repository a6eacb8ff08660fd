"""The problems that the checks find."""

from fastreid_star.engine.checks import check


def texts(cfg, *, fatal=True, **run):
    return [problem.text for problem in check(cfg, **run) if problem.fatal == fatal]
