"""The map of who wins where, from the results of a sweep made by hand."""

import json

import pytest
from PIL import Image

from configs.tldr import scenes_map
from launch.reports.runs import ReportError
from launch.sweeps.members import define, save
from tldr_jax import map as who_wins

CELLS = {(300, 0.95): (0.3, 0.5, 0.8), (300, 0.99): (0.1, 0.4, 0.3), (2000, 0.99): (0.2, 0.7, 0.6)}  # ERM, TLDR, DFR


def sweep_in(folder, *, unfinished=False):
    """Two seeds a cell, .1 apart."""
    config = scenes_map.get_config()
    overrides = [
        {"pretrain.duration": f"{steps} steps", "data.correlation": correlation, "seed": seed}
        for steps, correlation in CELLS
        for seed in (0, 1)
    ]
    sweep = define(folder, config_file="x.py", base=config, overrides=overrides)
    folder.mkdir()
    save(sweep)
    for member in sweep.members:
        member.path.mkdir()
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict(dict(member.overrides))
        (member.path / "config.json").write_text(own.to_json())
        steps = int(member.overrides["pretrain.duration"].split()[0])
        values = CELLS[steps, member.overrides["data.correlation"]]
        shift = 0.1 * member.overrides["seed"] - 0.05
        result = {f"{m}/wga": v + shift for m, v in zip(("erm", "tldr", "dfr"), values, strict=True)}
        if not (unfinished and member is sweep.members[-1]):
            (member.path / "result.json").write_text(json.dumps(result | {"projector/nmse": 0.25}))


def test_winners_and_table(tmp_path):
    sweep_in(tmp_path / "sweep")
    cells = who_wins.read(tmp_path / "sweep")
    assert list(cells) == sorted(CELLS) and cells[300, 0.95]["erm/wga"] == pytest.approx([0.25, 0.35])
    assert [who_wins.winner(v, who_wins.RIVALS) for v in cells.values()] == ["dfr", "tldr", "tldr"]
    assert [who_wins.winner(v, who_wins.WITHOUT_GROUPS) for v in cells.values()] == ["tldr"] * 3
    lines = who_wins.table(cells).splitlines()
    assert lines[0].startswith("| pretraining | correlation | R² | ERM | DFR")
    assert lines[2] == "| 300 | 0.95 | 0.750 ± 0.000 | 0.300 ± 0.071 | **0.800 ± 0.071** | 0.500 ± 0.071 |"


def test_the_command_draws_and_prints(tmp_path, capsys):
    sweep_in(tmp_path / "sweep")
    who_wins.main([str(tmp_path / "sweep"), "--out", str(tmp_path / "map.png")])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3
    assert min(Image.open(tmp_path / "map.png").size) > 200


def test_an_unfinished_sweep_is_refused(tmp_path):
    sweep_in(tmp_path / "sweep", unfinished=True)
    with pytest.raises(ReportError, match="is unfinished; run the sweep's command again"):
        who_wins.read(tmp_path / "sweep")


def test_the_map_has_every_cell_with_every_seed():
    members = scenes_map.sweep()
    assert len(members) == 4 * 4 * 5 == len({tuple(member.values()) for member in members})
    assert all(member["seed"] == member["data.seed"] == member["pretrain.seed"] for member in members)
    assert set(scenes_map.KINDS["small_vit"]) < set(scenes_map.KINDS["small_cnn"])
