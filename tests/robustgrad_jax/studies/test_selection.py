"""The rule by which a method's weight is chosen, and how it reads a sweep."""

import json
from pathlib import Path

import pytest

from configs.robustgrad import cifar10_comparison
from launch.reports.runs import ReportError
from launch.sweeps.members import define, save
from robustgrad_jax import regularizers
from robustgrad_jax.studies import selection
from robustgrad_jax.studies.selection import Candidate, choose


def candidate(method, weight, accuracy, similarity):
    return Candidate(method, {"regularizer.l2_weight": weight}, accuracy, similarity)


PLAIN = candidate("none", 0.0, 0.60, 0.5)


def test_the_most_alike_of_those_that_cost_little():
    ours = [candidate("l2", w, a, s) for w, a, s in ((0.1, 0.61, 0.6), (1.0, 0.581, 0.7), (10.0, 0.579, 0.9))]
    assert choose([*ours, PLAIN]) == {"l2": ours[1], "none": PLAIN}
    assert choose([*ours, PLAIN], cost=0.03)["l2"] is ours[2]


def test_the_cheapest_where_all_cost_more():
    ours = [candidate("l2", w, a, s) for w, a, s in ((0.1, 0.55, 0.6), (1.0, 0.5, 0.7))]
    assert choose([PLAIN, *ours])["l2"] is ours[0]


def test_plain_training_is_needed():
    with pytest.raises(ReportError, match="no run of 'none' to compare with; found 'l2'"):
        choose([candidate("l2", 1.0, 0.5, 0.5)])


def sweep_in(folder: Path, *, split="val", results=None):
    """A finished sweep over :select's members, made by hand."""
    config = cifar10_comparison.get_config("select")
    overrides = [{"regularizer.name": "none"}, {"regularizer.name": "l2", "regularizer.l2_weight": 0.1}]
    sweep = define(folder, config_file="x.py", base=config, overrides=overrides)
    folder.mkdir()
    save(sweep)
    for member, result in zip(sweep.members, results or [(0.6, 0.5), (0.59, 0.75)], strict=True):
        member.path.mkdir()
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict({**member.overrides, "evaluation.split": split})
        (member.path / "config.json").write_text(own.to_json())
        if result:
            values = dict(zip((selection.ACCURACY, selection.SIMILARITY), result, strict=True))
            (member.path / "result.json").write_text(json.dumps(values))


def test_a_sweep_as_a_table(tmp_path, capsys):
    sweep_in(tmp_path / "sweep")
    selection.main([str(tmp_path / "sweep")])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| none |  | 0.600 | 0.5000 | chosen |",
        "| l2 | l2_weight 0.1 | 0.590 | 0.7500 | chosen |",
    ]


def test_what_cannot_be_chosen_from_is_refused(tmp_path):
    sweep_in(tmp_path / "test", split="test")
    with pytest.raises(ReportError, match="measured test images"):
        selection.read(tmp_path / "test")
    sweep_in(tmp_path / "half", results=[(0.6, 0.5), None])
    with pytest.raises(ReportError, match=r"l2_weight=0\.1 is unfinished; run the sweep's command again"):
        selection.read(tmp_path / "half")


def test_the_comparison_has_every_method_at_three_weights():
    weights = cifar10_comparison.WEIGHTS
    assert set(weights) == set(regularizers.NAMES)
    assert {name: len(values) for name, values in weights.items()} == {name: 3 for name in weights} | {"none": 1}
    members = cifar10_comparison.sweep("final")
    assert len(members) == 5 * 3 + 4 and {m["seed"] for m in members} == {0, 1, 2}
    picked = {(m["regularizer.name"], *m.values()) for m in cifar10_comparison.sweep("select")}
    assert all((m["regularizer.name"], *[v for k, v in m.items() if k != "seed"]) in picked for m in members)
