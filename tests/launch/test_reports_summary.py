"""Settings, spreads, what is best, and how numbers are written: against the standard library and by hand."""

import math
import statistics

import pytest

from launch.reports import runs, summary, tables
from launch.reports.runs import FINISHED, UNFINISHED, Found, ReportError
from launch.reports.summary import Choice, Spread
from tests.launch.run_tree import config, write_run


def found(name="m", result=None, status=FINISHED, **values):
    return Found(name, None, status, {"experiment": "e", "seed": 0} | values, result or {}, {})


def test_settings_are_runs_that_differ_in_their_seed_alone():
    members = [
        found(seed=seed, weight=weight, kind=kind, **{"data.seed": seed, "list": [1, 2]})
        for kind in ("sgd", "adam")
        for weight in (10.0, 2.0)
        for seed in (0, 1)
    ]
    keys = summary.swept(members, first=("weight", "missing"))
    assert keys == ("weight", "kind")
    settings = summary.settings(members, keys)
    assert [tuple(s.values.values()) for s in settings] == [(2.0, "sgd"), (2.0, "adam"), (10.0, "sgd"), (10.0, "adam")]
    assert all(len(s.members) == 2 for s in settings)
    assert summary.levels(settings, "weight") == [2.0, 10.0]


def test_texts_stand_in_the_order_that_a_comparison_lists_them_in():
    members = [found(kind="b"), found(kind="c"), found(kind="a"), found(kind=3), found()]
    own = found(names=["a", "b"], compared=["c", "a", "b"])
    in_order = lambda own: [s.values["kind"] for s in summary.settings(members, ("kind",), own)]
    assert in_order(own) == [None, 3, "c", "a", "b"]
    assert in_order(None) == [None, 3, "b", "c", "a"]


def test_paths_of_other_runs_may_name_their_seed():
    """The second training of a seed goes on from the first one of the same seed."""
    members = [
        found(seed=seed, load=load and f"runs/{load}-seed{seed}/w", size=2)
        for load in ("", "phi", "rtd")
        for seed in (0, 1)
    ]
    assert summary.swept(members) == ("load",)
    settings = summary.settings(members, ("load",))
    assert [s.values["load"] for s in settings] == ["", "runs/phi-seed…/w", "runs/rtd-seed…/w"]
    assert all(len(s.members) == 2 for s in settings)


def test_zero_in_a_list_is_not_false():
    members = [found(flag=flag, load=load) for flag, load in ((True, "b"), (False, "a"))]
    own = found(seeds=[0, 1], names=["a", "b"])
    assert [s.values["load"] for s in summary.settings(members, ("load",), own)] == ["a", "b"]
    assert [s.values["flag"] for s in summary.settings(members, ("flag",), own)] == [True, False]


def test_metrics_that_tell_settings_apart():
    members = [
        found(str(at), {"same": 1.0, "nan": math.nan, "x": at, "some": 1.0} if at else {"same": 1.0, "x": 0.0})
        for at in range(2)
    ]
    settings = [summary.Setting({}, (member,)) for member in members]
    assert summary.telling_apart(settings, ["same", "nan", "x"]) == ["x"]
    assert summary.telling_apart(settings, ["same"]) == ["same"]


def test_lists_and_absent_values_tell_settings_apart():
    members = [found(a=[1]), found(a=[2]), found(), found(a=1), found(a=True), found(a="1")]
    assert summary.swept(members) == ("a",)
    assert len(summary.settings(members, ("a",))) == 6


def test_spread_is_mean_and_sample_standard_deviation():
    values = [0.3, 0.5, 0.7, 0.2]
    members = [found(result={"x": value}) for value in values] + [found(result={"y": 1.0})]
    assert summary.spread(members, "x") == Spread(
        pytest.approx(statistics.fmean(values)), pytest.approx(statistics.stdev(values)), 4
    )
    one = summary.spread(members, "y")
    assert (one.mean, one.count) == (1.0, 1) and math.isnan(one.std)
    none = summary.spread(members, "z")
    assert none.count == 0 and math.isnan(none.mean)
    assert math.isnan(summary.spread([*members, found(result={"x": math.nan})], "x").mean)  # not left out


def test_best():
    spreads = [Spread(value, 0.0, 1) for value in (0.2, 0.9, math.nan, 0.9)] + [Spread(math.nan, math.nan, 0)]
    assert summary.best(spreads, 1) == {1, 3}
    assert summary.best(spreads, -1) == {0}
    assert summary.best(spreads, 0) == set()
    assert summary.best(spreads[:1], 1) == set()  # nothing to choose from
    assert summary.best([spreads[1], spreads[3]], 1) == set()


@pytest.mark.parametrize(
    "sign, metrics",
    [
        (1, ["test/accuracy", "gradient/rps-8/pcc", "a/signed_cosine", "cirr/rtd/recall_at_10", "erm/wga", "map"]),
        (1, ["gradient/insertion/area", "gradient/aam-8-insertion/area", "class_balanced"]),
        (-1, ["train/loss", "val/cross_entropy", "gradient/rps-4/mse", "x/cosine_distance", "deletion/area"]),
        (-1, ["gradient/sensitivity-4/max_sensitivity", "a/local_lipschitz"]),
        (0, ["test/examples", "best_step", "a/target_pcc", "logits_change", "upper-bound/bound", "roc/area", "steps"]),
    ],
)
def test_direction(sign, metrics):
    assert {metric: summary.direction(metric) for metric in metrics} == dict.fromkeys(metrics, sign)


def test_direction_as_asked():
    choice = Choice(higher=("bound$",), lower=("accuracy",))
    assert summary.direction("upper-bound/bound", choice) == 1 and summary.direction("test/accuracy", choice) == -1


def test_headline():
    metrics = [
        *("best_step", "val/accuracy", "test/loss", "test/accuracy", "test/examples"),
        *("g/rps-4/accuracy", "g/rps-4/mse", "g/rps-4/pcc", "g/bound"),
    ]
    assert summary.headline(metrics, limit=4) == ["test/accuracy", "g/rps-4/pcc", "val/accuracy", "g/bound"]
    assert summary.headline(metrics, limit=5)[4] == "test/loss"
    assert summary.headline(["a/val/recall", "a/x/recall", "a/x/recall/std"]) == [
        *("a/x/recall", "a/val/recall", "a/x/recall/std")
    ]
    assert summary.headline(metrics, Choice(metrics=("mse", "^test"))) == [
        *("g/rps-4/mse", "test/loss", "test/accuracy", "test/examples")
    ]
    with pytest.raises(ReportError, match=r"no metric fits 'speed'; there are: best_step, val/accuracy"):
        summary.headline(metrics, Choice(metrics=("speed",)))


# -- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, shown",
    [
        ([0.87349, 0.9], ["0.873", "0.900"]),
        ([39.76, 5.25], ["39.8", "5.2"]),
        ([0.00597, 0.0019], ["0.00597", "0.00190"]),
        ([2000.0, 12.0], ["2000", "12"]),
        ([1234.5, 1.0], ["1234", "1"]),
        ([1e-9, 2e-7], ["1e-09", "2e-07"]),
        ([3.2e8 + 0.5], ["3.2e+08"]),
        ([math.nan, 0.5], ["nan", "0.500"]),
        ([0.0], ["0"]),
        ([-0.25, 0.5], ["-0.250", "0.500"]),
    ],
)
def test_numbers_of_a_column(values, shown):
    text = tables.decimals(values)
    assert [text(value) for value in values] == shown


def test_means_that_happen_to_be_whole_keep_the_decimals_of_their_deviations():
    members = [found(result={"recall": value, "n": 5.0}) for value in (10.5, 11.5)]
    shown = lambda metric: tables.spread_cells([summary.Setting({}, tuple(members))], metric, Choice())[0].text
    assert shown("recall") == "11.0 ± 0.7" and shown("n") == "5 ± 0"


def test_table_of_settings(tmp_path):
    """Unfinished runs count in the last but one column and nowhere else."""
    for weight, seed, accuracy in ((1.0, 0, 0.5), (1.0, 1, 0.7), (2.0, 0, 0.9)):
        write_run(
            tmp_path / f"{weight}-{seed}", config(regularizer__cosine_weight=weight, seed=seed), {"acc": accuracy}
        )
    write_run(tmp_path / "2.0-1", config(regularizer__cosine_weight=2.0, seed=1))
    (study,) = runs.read(tmp_path)
    keys = summary.swept(study.members)
    settings = summary.settings(study.members, keys)
    table = tables.of_settings(study, settings, keys, ["acc"], Choice())
    assert [column.title for column in table.columns] == ["cosine_weight", "seeds", "acc ↑"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["1", "2", "0.600 ± 0.141"],
        ["2", "1 of 2", "0.900"],
    ]
    assert [row[2].style for row in table.rows] == ["", "best"]
    assert settings[1].members[1].status == UNFINISHED
    both = tables.all_metrics(study, settings, keys, Choice())
    assert [column.title for column in both.columns] == ["metric", "cosine_weight=1", "cosine_weight=2"]
    members = tables.of_members(study.members, keys)
    assert [column.title for column in members.columns][2:4] == ["cosine_weight", "seed"]


def test_configs_show_what_varies(tmp_path):
    write_run(tmp_path / "a", config(optimizer__name=""))
    write_run(tmp_path / "b", config(optimizer__name="sgd"))
    (study,) = runs.read(tmp_path)
    rows = {row[0].text: (row[1].text, row[1].style) for row in tables.of_configs(study.members).rows}
    assert rows["optimizer.name"] == ('"" · sgd', "varies")
    assert rows["optimizer.milestones"] == ('["1500 steps"]', "") and rows["optimizer.learning_rate"] == ("0.001", "")


def test_long_values_are_cut_and_whole_where_the_pointer_rests():
    groups = [["colour", "background"], ["shape", "pattern"]]
    member = found(groups=groups, short="adam", none=None)
    rows = tables.of_members([member], ["groups", "short", "none"]).rows
    cut, whole, absent = rows[0][2:5]
    assert (
        cut.text == "(('colour', 'background'), ('sh…" and cut.tip == '[["colour", "background"], ["shape", "pattern"]]'
    )
    assert (whole.text, whole.tip, absent.text, absent.tip) == ("adam", "", "–", "")
    assert tables.label(summary.Setting({"groups": groups}, ()), ["groups"]) == cut.text


def test_versions_of_runs_that_differ():
    one, two = {"jax": "0.10", "python": "3.11"}, {"jax": "0.12", "python": "3.12", "devices": "8 × TPU v5e"}
    members = [Found(str(at), None, FINISHED, {}, {}, {}, versions=v) for at, v in enumerate([(one,), (one, two), ()])]
    table = tables.of_versions(members)
    assert [column.title for column in table.columns] == ["", "0, 1", "1"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["jax", "0.10", "0.12"],
        ["python", "3.11", "3.12"],
        ["devices", "–", "8 × TPU v5e"],
    ]
    assert tables.of_versions(members[2:]) is None


def test_markdown():
    rows = "| task | R@1 | note |\n|---|--:|---|\n| **a** | .997 ± .001 | x\\|y |\n| b | nan |\n"
    text = f"## Scenes\n\n{rows}\nAll `seeds`.\n"
    title, table, prose = tables.from_markdown(text)
    assert (title, prose) == ("Scenes", "All seeds.")
    assert [(column.title, column.numeric) for column in table.columns] == [
        ("task", False),
        ("R@1", True),
        ("note", False),
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [["a", ".997 ± .001", "x|y"], ["b", "nan", ""]]
    assert table.rows[0][1].sort == "0.997" and table.rows[1][1].sort == "nan" and table.rows[0][0].sort == ""


def test_names_of_keys_are_short_and_tell_apart():
    assert tables.names_of(["optimizer.learning_rate", "a.radius", "b.radius", "model.name", "seed"]) == {
        "optimizer.learning_rate": "learning_rate",
        "a.radius": "a.radius",
        "b.radius": "b.radius",
        "model.name": "model.name",
        "seed": "seed",
    }


@pytest.mark.parametrize(
    "seconds, shown", [(0.04, "0.0 s"), (59.4, "59.4 s"), (245.2, "4 min 5 s"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, shown):
    assert tables.duration(seconds) == shown
