"""Tables of results and of what lies beside them, and how their numbers are written."""

import math
import statistics

import pytest

from launch.reports import formats, listings, metrics, numbers, runs, settings, tables
from launch.reports.metrics import Metric, declare
from launch.reports.records import FINISHED, UNFINISHED, RunRecord
from launch.reports.runs import Study
from launch.reports.settings import Setting
from tests.launch.reports import described
from tests.launch.reports.run_tree import config, write_earlier, write_run

EXPERIMENT = "tests.launch.reports.described"


def record(name="m", result=None, status=FINISHED, overrides=None, **values):
    flat = {"experiment": EXPERIMENT, "seed": 0} | values
    return RunRecord(name, None, status, flat, result or {}, overrides=overrides)


def group(*members):
    return settings.group(Study("", EXPERIMENT, None, members))


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def titles(table):
    return [column.title for column in table.columns]


def bold(table):
    return {cell.text for row in table.rows for cell in row if cell.style == "best"}


# -- one run --------------------------------------------------------------------------------------------------------


def test_the_tables_of_one_run():
    """Methods as rows, metrics as columns, conditions apart; counts stay out, an upper bound does not compete."""
    result = {
        "best_step": 4.0,
        "test/accuracy": 0.5,
        "erm/wga": 0.25,
        "tldr/wga": 0.75,
        "gradient/rps-16/pcc": 0.5,
        "gradient/rps-16/mse": 0.5,
        "gradient/rps-4/pcc": 0.75,
        "scenes/phi/recall_at_1": 41.25,
        "scenes/rtd/recall_at_1": 74.2,
        "scenes/oracle/recall_at_1": 100.0,
        "scenes/rtd/recall_at_5": 96.7,
    }
    first, methods, gradient, scenes = tables.of_finished_run(result, EXPERIMENT)
    assert (first.name, titles(first), texts(first)) == ("", ["metric", "value"], [["test accuracy ↑", "0.500"]])
    assert (methods.name, titles(methods)) == ("Methods", ["", "WGA ↑"])
    assert texts(methods) == [["ERM", "0.250"], ["TLDR", "0.750"]] and bold(methods) == {"0.750"}
    assert titles(gradient) == ["under", "PCC ↑", "MSE ↓"]
    assert texts(gradient) == [["RPS ε=4", "0.750", ""], ["RPS ε=16", "0.500", "0.500"]]
    assert bold(gradient) == set()  # measured under other conditions: no rivals
    assert gradient.columns[1].tip == "Pearson correlation. higher is better"
    assert titles(scenes) == ["", "R@1 (%) ↑", "R@5 (%) ↑"]
    assert texts(scenes) == [["φ", "41.2", ""], ["φ + RTD", "74.2", "96.7"], ["the target's caption", "100.0", ""]]
    assert bold(scenes) == {"74.2"}


def test_long_lists_of_metrics_go_down():
    result = {f"scenes/{row}/recall_at_{k}": float(k) for row in ("image", "phi") for k in range(1, 10)}
    (table,) = tables.of_finished_run(result, EXPERIMENT)
    assert titles(table) == ["metric", "image only", "φ"]
    assert texts(table)[0] == ["R@1 (%) ↑", "1.0", "1.0"] and len(table.rows) == 9
    (table,) = tables.of_finished_run({k: v for k, v in result.items() if not k.endswith("9")}, EXPERIMENT)
    assert len(table.columns) == 9 and len(table.rows) == 2


def test_a_value_that_is_missing_is_shown_as_such():
    (table,) = tables.of_finished_run({"erm/wga": None, "tldr/wga": 0.5}, EXPERIMENT)
    assert texts(table) == [["ERM", "nan"], ["TLDR", "0.500"]]


def test_an_experiment_without_declarations_is_shown_by_its_keys():
    (table,) = tables.of_finished_run({"a/b-16": 1.5, "a/b-4": math.nan}, "no.such.experiment")
    assert texts(table) == [["a/b-4", "nan"], ["a/b-16", "1.50"]]


def test_two_keys_of_one_place_are_both_shown(monkeypatch):
    describe = declare({"{name}/x": Metric("x", row="same")})
    monkeypatch.setattr(described, "describe", describe)
    (table,) = tables.of_finished_run({"a/x": 1.0, "b/x": 2.0}, EXPERIMENT)
    assert texts(table) == [["x", "1"], ["x [b/x]", "2"]]


# -- several runs ---------------------------------------------------------------------------------------------------


def test_a_sweep_is_mean_and_deviation_over_seeds():
    values = {("none", 0): 0.5, ("none", 1): 0.7, ("none", 2): 0.6, ("l2", 0): 0.9}
    members = [
        record(f"{name}{seed}", {"test/accuracy": value, "test/examples": 9.0}, kind=name, seed=seed)
        for (name, seed), value in values.items()
    ]
    members.append(record("l21", status=UNFINISHED, kind="l2", seed=1))
    (table,) = tables.of_study(group(*members))
    assert titles(table) == ["kind", "seeds", "test accuracy ↑"]
    assert texts(table) == [["none", "3", "0.600 ± 0.100"], ["l2", "1 of 2", "0.900"]]  # 0.1 = √(0.02 / 2)
    assert statistics.stdev([0.5, 0.7, 0.6]) == pytest.approx(0.1)
    assert bold(table) == {"0.900"}


def test_seeds_alone_give_one_table_per_declared_table():
    members = [record(str(s), {"erm/wga": 0.25 + s / 10, "tldr/wga": 0.5}, seed=s) for s in range(2)]
    (table,) = tables.of_study(group(*members))
    assert titles(table) == ["", "seeds", "WGA ↑"]
    assert texts(table) == [["ERM", "2", "0.300 ± 0.071"], ["TLDR", "2", "0.500 ± 0.000"]]


def test_rows_that_a_sweep_does_not_touch_are_shown_once():
    """Baselines of the same seeds count once: counted per setting, they would feign a smaller deviation."""
    members = [
        record(result={"erm/wga": 0.2 + seed / 10, "tldr/wga": 0.5 + ridge / 10 + seed / 5}, ridge=ridge, seed=seed)
        for ridge in (2, 1)
        for seed in (0, 1)
    ]
    (table,) = tables.of_study(group(*members))
    assert titles(table) == ["", "ridge", "seeds", "WGA ↑"]
    assert texts(table) == [
        ["ERM", "all", "2", "0.250 ± 0.071"],
        ["TLDR", "1", "2", "0.700 ± 0.141"],
        ["TLDR", "2", "2", "0.800 ± 0.141"],
    ]


def test_rows_are_not_merged_over_seeds_that_differ():
    members = [record(result={"erm/wga": 0.5}, ridge=seed, seed=seed) for seed in (0, 1)]
    (table,) = tables.of_study(group(*members))
    assert texts(table) == [["ERM", "0", "1", "0.500"], ["ERM", "1", "1", "0.500"]]


def test_missing_values_in_a_sweep_are_counted():
    members = [
        record(result={"tldr/wga": value}, junk=junk, seed=seed)
        for junk, values in ((0.2, (0.5, None, 0.7)), (0.4, (None, None, None)), (0.6, (0.1, 0.2, 0.3)))
        for seed, value in enumerate([math.nan if v is None else v for v in values])
    ]
    (table,) = tables.of_study(group(*members))
    assert [row[-1] for row in texts(table)] == ["0.600 ± 0.141 (2 of 3)", "none (0 of 3)", "0.200 ± 0.100"]
    assert bold(table) == set()  # a single complete row has no rival


def test_the_best_is_chosen_per_condition():
    members = [
        record(result={"g/rps-4/pcc": 0.9 + at / 100, "g/rps-8/pcc": 0.5 - at / 100}, kind=kind)
        for at, kind in enumerate("ab")
    ]
    (table,) = tables.of_study(group(*members))
    assert [[row[0], row[1], row[3]] for row in texts(table)] == [
        *(["RPS ε=4", "a", "0.900"], ["RPS ε=4", "b", "0.910"], ["RPS ε=8", "a", "0.500"], ["RPS ε=8", "b", "0.490"])
    ]
    assert bold(table) == {"0.910", "0.500"}


def test_ablations_stand_under_their_names():
    members = [
        record(result={"tldr/wga": value}, overrides=overrides, **({"a": 1, "b": True} | overrides))
        for overrides, value in (({}, 0.5), ({"b": False}, 0.25), ({"a": 2}, 0.125))
    ]
    (table,) = tables.of_study(group(*members))
    assert [row[:2] for row in texts(table)] == [["TLDR", "as configured"], ["TLDR", "b=False"], ["TLDR", "a=2"]]
    assert titles(table)[:2] == ["", "setting"]


def test_overview_of_settings(tmp_path):
    """Unfinished runs count in the column of seeds and nowhere else."""
    for weight, seed, accuracy in ((1.0, 0, 0.5), (1.0, 1, 0.7), (2.0, 0, 0.9)):
        write_run(
            tmp_path / f"{weight}-{seed}", config(regularizer__cosine_weight=weight, seed=seed), {"acc": accuracy}
        )
    write_run(tmp_path / "2.0-1", config(regularizer__cosine_weight=2.0, seed=1))
    (study,) = runs.read(tmp_path)
    results = settings.group(study, settings.MetricChoice(higher=("acc",)))
    table = tables.overview(results.settings, results.swept, ["acc"], results.meaning)
    assert titles(table) == ["cosine_weight", "seeds", "acc ↑"]
    assert texts(table) == [["1", "2", "0.600 ± 0.141"], ["2", "1 of 2", "0.900"]]
    assert [row[2].style for row in table.rows] == ["", "best"]
    assert results.settings[1].members[1].status == UNFINISHED
    both = listings.all_metrics(results)
    assert titles(both) == ["metric", "cosine_weight=1", "cosine_weight=2"]
    members = listings.of_members(study.members, results.swept)
    assert titles(members)[2:4] == ["cosine_weight", "seed"]


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, shown",
    [
        ([0.87349, 0.9], ["0.873", "0.900"]),
        ([1.0, 0.382], ["1.000", "0.382"]),
        ([39.76, 5.25], ["39.8", "5.2"]),
        ([100.0, 0.4], ["100.0", "0.4"]),
        ([0.00597, 0.0019], ["0.00597", "0.00190"]),
        ([2000.0, 12.0], ["2000", "12"]),
        ([1234.5, 1.0], ["1234", "1"]),
        ([1e-9, 2e-7], ["1e-09", "2e-07"]),
        ([3.2e8 + 0.5], ["3.2e+08"]),
        ([2e6, 5.0], ["2000000", "5"]),
        ([math.nan, 0.5], ["nan", "0.500"]),
        ([0.0], ["0"]),
        ([-0.25, 0.5], ["-0.250", "0.500"]),
        ([0.99912, 0.99934], ["0.9991", "0.9993"]),
        ([0.699, 0.6990000000000001], ["0.699", "0.699"]),
        ([0.5, 0.6, 0.7, 0.80001, 0.80002], ["0.500", "0.600", "0.700", "0.800", "0.800"]),
    ],
)
def test_numbers_of_a_column(values, shown):
    text = numbers.decimals(values)
    assert [text(value) for value in values] == shown


@pytest.mark.parametrize(
    "means, stds, digits, shown",
    [
        ([0.9991], [0.0002], None, "0.9991 ± 0.0002"),
        ([0.9991, 0.8], [0.04, 0.0], None, "0.999 ± 0.040"),
        ([74.25], [1.5], 1, "74.2 ± 1.5"),
        ([74.25], [0.04], 1, "74.25 ± 0.04"),
        ([0.5], [1e-9], None, "0.500000 ± 0.000000"),  # no more than three decimals are added
        ([2000.0], [0.0], 0, "2000 ± 0"),
    ],
)
def test_deviations_are_seen(means, stds, digits, shown):
    text = numbers.decimals(means, stds, digits)
    assert numbers.spread_text(numbers.Spread(means[0], stds[0], 2, 2), text) == shown


def test_means_that_happen_to_be_whole_keep_the_decimals_of_their_deviations():
    members = [record(result={"recall": value, "n": 5.0}) for value in (10.5, 11.5)]
    shown = lambda key: tables.setting_cells([Setting({}, tuple(members))], key, Metric(key))[0].text
    assert shown("recall") == "11.0 ± 0.7" and shown("n") == "5 ± 0"


# -- beside the results ---------------------------------------------------------------------------------------------


def test_earlier_results_stand_beside_the_present_one(tmp_path):
    path = write_run(tmp_path / "run", config(batch_size=64), {"test/accuracy": 0.75, "new": 1.0})
    write_earlier(path, 1, config(), {"test/accuracy": 0.5, "old": None})
    write_earlier(path, 2, config(batch_size=16), {"test/accuracy": 0.625})
    (study,) = runs.read(path)
    table, changes = listings.of_earlier(study.own, metrics.meaning(described.describe))
    assert titles(table) == ["metric", "now", "earlier result 2", "earlier result 1"]
    assert texts(table) == [
        ["test/accuracy ↑", "0.750", "0.625", "0.500"],
        ["new", "1", "–", "–"],
        ["old", "–", "–", "nan"],
    ]
    assert changes == [(2, ["batch_size: 16 -> 64"]), (1, ["batch_size: 32 -> 64"])]
    (path / "result.json").unlink()  # the next one is still being made
    table, _ = listings.of_earlier(runs.read(path)[0].own, metrics.meaning(None))
    assert titles(table) == ["metric", "earlier result 2", "earlier result 1"]


def test_configs_show_what_varies(tmp_path):
    write_run(tmp_path / "a", config(optimizer__name=""))
    write_run(tmp_path / "b", config(optimizer__name="sgd"))
    (study,) = runs.read(tmp_path)
    rows = {row[0].text: (row[1].text, row[1].style) for row in listings.of_configs(study.members).rows}
    assert rows["optimizer.name"] == ('"" · sgd', "varies")
    assert rows["optimizer.milestones"] == ('["1500 steps"]', "") and rows["optimizer.learning_rate"] == ("0.001", "")


def test_long_values_are_cut_and_whole_where_the_pointer_rests():
    groups = [["colour", "background"], ["shape", "pattern"]]
    member = record(groups=groups, short="adam", none=None)
    rows = listings.of_members([member], ["groups", "short", "none"]).rows
    cut, whole, absent = rows[0][2:5]
    assert (
        cut.text == "(('colour', 'background'), ('sh…" and cut.tip == '[["colour", "background"], ["shape", "pattern"]]'
    )
    assert (whole.text, whole.tip, absent.text, absent.tip) == ("adam", "", "–", "")
    both = settings.settings([member, record(groups="x", short="adam")], ["groups"])
    assert both[0].label == cut.text


def test_versions_of_runs_that_differ():
    one, two = {"jax": "0.10", "python": "3.11"}, {"jax": "0.12", "python": "3.12", "devices": "8 × TPU v5e"}
    members = [RunRecord(str(at), None, FINISHED, {}, {}, versions=v) for at, v in enumerate([(one,), (one, two), ()])]
    table = listings.of_versions(members)
    assert titles(table) == ["", "0, 1", "1"]
    assert texts(table) == [["jax", "0.10", "0.12"], ["python", "3.11", "3.12"], ["devices", "–", "8 × TPU v5e"]]
    assert listings.of_versions(members[2:]) is None


@pytest.mark.parametrize(
    "seconds, shown", [(0.04, "0.0 s"), (59.4, "59.4 s"), (245.2, "4 min 5 s"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, shown):
    assert listings.duration(seconds) == shown


def test_nothing_to_show():
    assert tables.of_study(group(record(status=UNFINISHED))) == [] and formats.markdown([]) == ""
