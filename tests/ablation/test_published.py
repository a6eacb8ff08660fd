"""Table 1: its configs, and published results beside those of the runs."""

from pathlib import Path

import pytest

from fastreid_star.ablation import published as module
from fastreid_star.ablation.published import TABLE_1, published, table_configs
from fastreid_star.ablation.tables import COLUMNS, RESULT, Run, note_of_frames, to_markdown
from fastreid_star.cli.main import run
from fastreid_star.errors import UserError


def test_the_configs_are_those_of_the_methods_that_a_folder_has(monkeypatch):
    names = (
        *("MITML_R50", "IBAN_R50", "IBAN_R50_authors", "SAADG_R50", "STAR_R50", "STAR_R50_frame"),
        *("AuxNet_R34_baseline", "SAD_R50", "SAD_R50_T6", "STAR_DinoGRL_R50", "M3ReID_R50"),
    )
    shipped = [f"HITSZ-VCM/{name}.yml" for name in names]
    shipped += ["HITSZ-VCM/figure5/STAR_R50.yml", "Synthetic/benchmark/STAR.yml"]
    monkeypatch.setattr(module, "shipped_configs", lambda: dict.fromkeys(shipped))
    found = table_configs("HITSZ-VCM")
    order = ("AuxNet_R34_baseline", "MITML_R50", "IBAN_R50", "SAADG_R50", "SAD_R50", "STAR_R50")
    assert found == [f"HITSZ-VCM/{name}.yml" for name in (*order, "M3ReID_R50")]
    assert table_configs("Synthetic/benchmark") == ["Synthetic/benchmark/STAR.yml"]
    with pytest.raises(UserError, match="--on Elsewhere has no config"):
        table_configs("Elsewhere")


@pytest.mark.parametrize("folder", ["HITSZ-VCM", "BUPTCampus", "Synthetic/benchmark"])
def test_every_folder_of_the_project_has_star_and_the_baseline(folder):
    names = [name.rpartition("/")[2] for name in table_configs(folder)]
    assert any(name.startswith("STAR") for name in names)
    assert any(name.startswith("AuxNet") for name in names)
    assert len(set(names)) == len(names)


def test_published_results_stand_beside_the_runs():
    row = {column: [10.0 + place, 12.0 + place] for place, column in enumerate(COLUMNS)}
    table = to_markdown(
        {"STAR_R50": row, "M3ReID_R50": row, "OWN": row}, with_paper=True, also=TABLE_1
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [line[:3] for line in cells[2:8]] == [
        ["STAR_R50", "2", "11.00 ± 1.41"],
        ["(paper)", "", "69.57"],
        ["M3ReID_R50", "2", "11.00 ± 1.41"],
        ["(its paper)", "", "73.21"],
        ["OWN", "2", "11.00 ± 1.41"],
        ["LbA_R50", "0", ""],
    ]
    assert ["CST_R50", "0", "", "", "", "", ""] in cells
    assert ["(its paper)", "", "69.44", "51.16", "72.64", "53.00", "52.08"] in cells
    assert sum(line[0] == "STAR_R50" for line in cells) == 1
    assert published("OWN") is None
    elsewhere = to_markdown({"STAR_R50": row}, with_paper=False, also=TABLE_1)
    assert "paper" not in elsewhere
    assert "CST" not in elsewhere


def test_the_command_takes_all_methods_or_given_configs(monkeypatch, tmp_path, capsys):
    asked = {}

    def ablate(configs, output, **options):
        asked.update(configs=list(configs), also=options["also"])
        return "the table"

    monkeypatch.setattr("fastreid_star.ablation.runs.ablate", ablate)
    run("ablate", "--table", "1", "--output", str(tmp_path))
    assert asked == {"configs": table_configs("HITSZ-VCM"), "also": TABLE_1}
    run("ablate", "--table", "1", "--on", "BUPTCampus", "--output", str(tmp_path))
    assert asked["configs"] == table_configs("BUPTCampus")
    run("ablate", "--configs", "Synthetic/SAD_small.yml", "--output", str(tmp_path))
    assert asked == {"configs": ["Synthetic/SAD_small.yml"], "also": ()}
    with pytest.raises(SystemExit):
        run("ablate", "--output", str(tmp_path))
    assert "--table" in capsys.readouterr().err


def test_networks_of_single_frames_are_named_below_the_table(tmp_path):
    runs = []
    for name, unit in (("CAJL", "frame"), ("SAD", "clip"), ("DDAG", "frame")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(f"MODEL: {{UNIT: {unit}}}\n")
        if name != "DDAG":  # which has not finished
            (folder / RESULT).write_text("{}")
        runs += [Run(Path(f"{name}.yml"), seed, None, folder) for seed in (0, 1)]
    assert note_of_frames(runs).strip() == "Trained on single frames, by our protocol: CAJL."
    assert note_of_frames(runs[2:4]) == ""
