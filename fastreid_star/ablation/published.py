"""Published results, by the names of configs, and the configs of a published table."""

from __future__ import annotations

import re

from fastreid_star.engine.configs import shipped_configs
from fastreid_star.errors import UserError

Results = tuple[float, float, float, float]  # I2V rank-1 and mAP, V2I rank-1 and mAP

# STAR's paper on HITSZ-VCM, %: Table 3, and other methods of Table 1
TABLE_3: dict[str, Results] = {
    "SAD_R50": (66.76, 54.05, 70.45, 55.45),
    "STAR_R50_frame": (68.53, 55.01, 71.01, 56.16),
    "STAR_R50_sequence": (69.04, 55.91, 73.15, 58.22),
    "STAR_R50": (69.57, 56.01, 73.25, 58.56),
}
PAPER: dict[str, Results] = {
    **TABLE_3,
    "SAADG_R50": (69.22, 53.77, 73.13, 56.09),
    # methods for images; nobody has published how they were put on video
    "LbA_R50": (46.38, 30.69, 49.30, 32.38),
    "MPANet_R50": (46.51, 35.26, 50.32, 37.80),
    "DDAG_R50": (54.62, 39.26, 59.03, 41.50),
    "VCD_R50": (54.53, 41.18, 57.52, 43.45),
    "CAJL_R50": (56.59, 41.49, 60.13, 42.81),
    "SGIEL_R50": (67.65, 52.30, 70.23, 52.54),
}
# Others on HITSZ-VCM, as their own authors published them
ELSEWHERE: dict[str, Results] = {
    "MITML_R50": (63.74, 45.31, 64.54, 47.69),
    "IBAN_R50": (65.03, 48.77, 69.58, 50.96),
    "CST_R50": (69.44, 51.16, 72.64, 53.00),
    "AuxNet_R34_baseline": (49.32, 36.26, 52.34, 36.90),
    "M3ReID_R50": (73.21, 59.02, 75.31, 60.51),
}
# The methods that STAR's Table 1 compares
TABLE_1 = (
    *("LbA_R50", "MPANet_R50", "DDAG_R50", "VCD_R50", "CAJL_R50", "SGIEL_R50"),  # for images
    *("MITML_R50", "IBAN_R50", "SAADG_R50", "CST_R50", "STAR_R50"),
)
# The rows of ``ablate --table 1``, where a folder has a config of them
METHODS = (
    *("AuxNet", "LbA", "MPANet", "DDAG", "VCD", "CAJL", "SGIEL"),
    *("MITML", "IBAN", "SAADG", "SAD", "STAR", "DinoGRL", "M3ReID"),
)


def published(name: str) -> tuple[str, Results] | None:
    """The published results of a config, and where: ``(paper)``, STAR's, or ``(its paper)``."""
    if name in PAPER:
        return "(paper)", PAPER[name]
    return ("(its paper)", ELSEWHERE[name]) if name in ELSEWHERE else None


def published_method(name: str) -> Results | None:
    """The published results of a config's method: of ``MITML_R50``, for ``MITML``."""
    row = re.compile(rf"{re.escape(name)}_R\d+(_baseline)?")
    found = (results for n, results in {**PAPER, **ELSEWHERE}.items() if row.fullmatch(n))
    return next(found, None)


def table_configs(folder: str) -> list[str]:
    """The configs of all methods in one folder: ``MITML_R50.yml``, or ``MITML.yml``.

    Args:
        folder: below the folder of configs, such as ``HITSZ-VCM`` or ``Synthetic/benchmark``.

    Raises:
        UserError: there are none.
    """
    names = sorted(shipped_configs())
    rows = [rf"{re.escape(folder)}/{method}(_R\d+)?(_baseline|_small)?\.yml" for method in METHODS]
    found = [name for row in rows for name in names if re.fullmatch(row, name)]
    if not found:
        raise UserError(
            f"--on {folder} has no config of {', '.join(METHODS)}: choose a folder that "
            "`fastreid-star configs` lists"
        )
    return found
