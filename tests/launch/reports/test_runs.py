"""What the report finds in a folder, and that it touches nothing there."""

import json
import math
import os

import numpy as np
import pytest

from launch.reports import runs
from launch.reports.runs import FAILED, FINISHED, UNFINISHED, WAITING, ReportError
from launch.sweeps import members
from launch.sweeps.members import SweepError
from tests.launch.reports import run_tree
from tests.launch.reports.run_tree import config, write_run


def contents(root):
    return {p: p.stat().st_mtime_ns for p in root.rglob("*")}


def test_one_run(tmp_path):
    """All of its files, exactly; a line that is being written is not read, and null is NaN."""
    result = {"test/accuracy": 0.5, "test/loss": None}
    curves = {"train/loss": [2.0, None, 1.0], "val/accuracy": [0.25]}
    path = write_run(
        tmp_path / "run",
        config(seed=3),
        result,
        curves=curves,
        figures=["figures/b.png", "figures/a10.png", "figures/a9.png", "z.png", "checkpoints/1/no.png"],
        versions=[run_tree.VERSIONS],
    )
    with open(run_tree.log_of(path), "a") as file:
        file.write('{"step": 40, "time": 1, "train/lo')
    before = contents(path)
    (study,) = runs.read(path)
    assert contents(path) == before
    assert study.members == () and study.experiment == "tests.launch.reports.described"
    own = study.own
    assert own.name == "run" and own.status == FINISHED and own.problems == () and own.last_step == 30
    assert own.config["seed"] == 3 and own.config["optimizer.milestones"] == ["1500 steps"]
    assert own.result["test/accuracy"] == 0.5 and math.isnan(own.result["test/loss"])
    np.testing.assert_array_equal(own.curves["train/loss"].steps, [10, 20, 30])
    np.testing.assert_array_equal(own.curves["train/loss"].values, [2, np.nan, 1])
    np.testing.assert_array_equal(own.curves["val/accuracy"].steps, [10])
    assert own.logged == (run_tree.START, run_tree.START + 2)
    assert [figure.name for figure in own.figures] == ["a9.png", "a10.png", "b.png", "z.png"]
    assert own.versions == (run_tree.VERSIONS,) and own.earlier == () and own.overrides is None


def test_a_comparison_is_a_run_with_runs_inside(tmp_path):
    write_run(tmp_path, config(experiment="some.comparison"), {"mean": 1.0})
    for name in ("b-seed10", "b-seed9", "a-seed0"):
        write_run(tmp_path / name, config(), {"x": 1.0})
    (study,) = runs.read(tmp_path)
    assert study.name == "" and study.experiment == "some.comparison"
    assert [member.name for member in study.members] == ["a-seed0", "b-seed9", "b-seed10"]
    assert len(study.all_runs) == 4


def test_a_sweep_has_all_its_members_in_its_order(tmp_path):
    (study,) = runs.read(run_tree.write_sweep(tmp_path / "sweep", weights=(1.0, 0.1), radii=(4.0, 16.0), seeds=(1, 0)))
    assert study.own is None and study.keys == ("regularizer.cosine_weight", "regularizer.radius", "seed")
    assert [member.status for member in study.members] == [FINISHED] * 6 + [FAILED, WAITING]
    last = study.members[-1]  # known from sweep.json alone
    assert last.config["regularizer.cosine_weight"] == 0.1 and last.config["optimizer.name"] == "adam"
    assert [member.config["regularizer.radius"] for member in study.members] == [4, 4, 16, 16] * 2
    assert study.members[6].log == "exit status 1\nstep 2\nTraceback\nboom"
    assert study.members[1].overrides == {"regularizer.cosine_weight": 1.0, "regularizer.radius": 4.0, "seed": 0}


def test_a_member_that_failed_before_its_config_was_written(tmp_path):
    sweep = run_tree.write_sweep(tmp_path / "sweep", weights=(1.0, 0.1), radii=(4.0,), seeds=(0, 1))
    lost = sweep / "regularizer.cosine_weight=0.1,regularizer.radius=4.0,seed=1"
    lost.mkdir()
    (lost / "error.txt").write_text("exit status 1")
    (study,) = runs.read(sweep)
    assert study.members[-1].status == FAILED and study.members[-1].log == "exit status 1"


def test_a_folder_of_runs_is_split_by_experiment(tmp_path):
    """Of one kind: side by side. The only one of its kind: by itself. Two comparisons: side by side, and each alone."""
    for name in ("m1", "m2"):
        write_run(tmp_path / name, config(), {"x": 1.0})
    write_run(tmp_path / "deep" / "other", config(experiment="other"), {"x": 1.0})
    for name in ("c1", "c2"):
        write_run(tmp_path / name, config(experiment="comparison"), {"mean": 1.0})
        write_run(tmp_path / name / "inside", config(), {"x": 1.0})
    write_run(tmp_path / "m1" / "artifacts" / "old", config(), {"x": 1.0})
    write_run(tmp_path / "m1" / "history" / "1", config(), {"x": 1.0})
    write_run(tmp_path / ".hidden", config(), {"x": 1.0})
    (tmp_path / "m1" / "clip").mkdir()
    (tmp_path / "m1" / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))  # no run
    found = {(s.name, s.experiment): (s.own and s.own.name, [m.name for m in s.members]) for s in runs.read(tmp_path)}
    assert found == {
        ("", "comparison"): (None, ["c1", "c2"]),
        ("", "tests.launch.reports.described"): (None, ["m1", "m2"]),
        ("c1", "comparison"): ("c1", ["inside"]),
        ("c2", "comparison"): ("c2", ["inside"]),
        ("deep/other", "other"): ("deep/other", []),
    }


def test_curves_are_read_from_the_store_of_the_plan(tmp_path):
    """The only trained stage's keep their names, several ones are told apart by stage, equal stages by key."""
    path = write_run(tmp_path / "run", config(), {"x": 1.0}, versions=[run_tree.VERSIONS])
    training = {"train/loss": [2.0, 1.0], "val/accuracy": [0.5]}
    keys = [
        f"{name}-{digit * 16}" for name, digit in (("training", "0"), ("phi", "1"), ("phi", "2"), ("measures", "3"))
    ]
    other = run_tree.VERSIONS | {"jax": "0.11"}
    run_tree.write_plan(path, {keys[0]: training, keys[3]: None}, versions=[other, run_tree.VERSIONS])
    before = contents(tmp_path)
    (study,) = runs.read(path)
    assert contents(tmp_path) == before and study.own.problems == ()
    assert {name: curve.values.tolist() for name, curve in study.own.curves.items()} == training
    assert study.own.last_step == 20 and study.own.logged == (run_tree.START, run_tree.START + 1)
    assert study.own.versions == (run_tree.VERSIONS, other)  # those of the run first, each once
    run_tree.write_plan(path, {key: {"loss": [1.0]} for key in keys[:3]} | {keys[3]: None})
    (study,) = runs.read(path)
    assert set(study.own.curves) == {"training/loss", f"{keys[1]}/loss", f"{keys[2]}/loss"}
    run_tree.write_plan(path, {"../other": {"loss": [1.0]}, keys[0]: training})
    assert set(runs.read(path)[0].own.curves) == set(training)  # a key is a name, not a path


def test_a_store_that_members_share_holds_no_runs(tmp_path):
    sweep = run_tree.write_sweep(tmp_path / "sweep", weights=(1.0,), radii=(4.0,), seeds=(0, 1, 2))
    for seed in range(2):
        member = sweep / f"regularizer.cosine_weight=1.0,regularizer.radius=4.0,seed={seed}"
        stages = {"shared-0000000000000000": {"loss": [3.0]}, f"own-{seed:016x}": {"loss": [float(seed)]}}
        run_tree.write_plan(member, stages, store="../store")
    write_run(sweep / "store" / "own-0000000000000000" / "value", config(), {"x": 1.0}, figures=["no.png"])
    (study,) = runs.read(sweep)
    assert len(study.members) == 3
    read = [{name: curve.values.tolist() for name, curve in run.curves.items()} for run in study.members[:2]]
    assert read == [{"shared/loss": [3.0], "own/loss": [float(seed)]} for seed in range(2)]


def test_earlier_results_are_read_with_their_configs(tmp_path):
    path = write_run(tmp_path / "run", config(seed=3), {"x": 3.0})
    for number, weight in ((10, 2.0), (9, 1.0)):
        run_tree.write_earlier(path, number, config(regularizer__cosine_weight=weight), {"x": weight, "y": None})
    (path / "history" / "11").mkdir()  # a kill left it without a result
    (study,) = runs.read(path)
    assert [entry.number for entry in study.own.earlier] == [9, 10]
    assert [entry.config["regularizer.cosine_weight"] for entry in study.own.earlier] == [1.0, 2.0]
    assert study.own.earlier[0].result["x"] == 1.0 and math.isnan(study.own.earlier[0].result["y"])
    (path / "history" / "9" / "result.json").write_text("{")
    assert "history/9/result.json cannot be read" in runs.read(path)[0].own.problems[0]


def test_members_of_a_sweep_that_hold_runs_stay_in_its_order(tmp_path):
    names = ["b", "a", "c"]
    overrides = [{"config": f"{name}.py"} for name in names]
    others = {f"{name}.py": config(experiment=name) for name in names}
    tmp_path.joinpath("sweep").mkdir()
    sweep = members.define(tmp_path / "sweep", config_file="x.py", base=config(), overrides=overrides, others=others)
    members.save(sweep)
    for member in sweep.members:
        write_run(member.path, member.base, {"x": 1.0})
        write_run(member.path / "inside", config(), {"x": 1.0})
    assert [study.experiment for study in runs.read(tmp_path / "sweep")] == names


def test_an_only_comparison_is_shown_once(tmp_path):
    write_run(tmp_path / "c", config(experiment="comparison"))
    write_run(tmp_path / "c" / "inside", config(), {"x": 1.0})
    (study,) = runs.read(tmp_path)
    assert study.name == "c" and study.own.status == UNFINISHED and len(study.members) == 1


def test_what_cannot_be_read_is_said_and_the_rest_is_read(tmp_path):
    write_run(tmp_path / "a", config(), {"x": 1.0}, curves={"loss": [1.0, 2.0]})
    (tmp_path / "a" / "result.json").write_text('{"x": 1.0, "y": "fast", "z": tru')
    broken = write_run(tmp_path / "b", config(), {"x": 1.0, "y": "fast"}, curves={"loss": [1.0, 2.0]})
    with open(run_tree.log_of(broken), "a") as file:
        file.write('[1]\n{"step": 30, "time": 3, "loss": 3.0}\n')
    write_run(tmp_path / "c", config(), {"x": 1.0}, versions=[run_tree.VERSIONS])
    (tmp_path / "c" / "config.json").write_text("{")
    (tmp_path / "c" / "versions.json").write_text("{}")
    studies = runs.read(tmp_path)
    found = {run.name: run for study in studies for run in study.all_runs}
    assert found["a"].result == {} and found["a"].status == FINISHED
    assert found["b"].result == {"x": 1.0} and found["b"].curves["loss"].values.tolist() == [1, 2, 3]
    said = {name: " ".join(run.problems) for name, run in found.items()}
    assert "a/result.json cannot be read" in said["a"]
    assert "b/result.json: not a number: y" in said["b"] and f"{run_tree.log_of(broken)}, line 3" in said["b"]
    assert "c/config.json cannot be read" in said["c"] and "versions.json does not hold a JSON list" in said["c"]


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(ReportError, match=r"no run in .*: looked for folders with a config.json"):
        runs.read(tmp_path)
    with pytest.raises(ReportError, match="is not a folder"):
        runs.read(tmp_path / "missing")
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SweepError, match="damaged"):
        runs.read(tmp_path)


def test_members_outside_the_sweep_folder_are_refused(tmp_path):
    sweep = run_tree.write_sweep(tmp_path / "sweep", weights=(1.0,), radii=(4.0,), seeds=(0, 1))
    content = json.loads((sweep / "sweep.json").read_text())
    content["members"][0]["name"] = os.path.join("..", "secrets")
    (sweep / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(SweepError, match=r"'name': is not below .*, got '\.\./secrets'"):
        runs.read(sweep)
