"""Settings and what is best: against the standard library and by hand."""

import math
import statistics

import pytest

from launch.reports import metrics, settings
from launch.reports.metrics import Metric
from launch.reports.numbers import Spread, best, spread
from launch.reports.runs import FINISHED, ReportError, RunRecord
from launch.reports.settings import MetricChoice, Setting
from tests.launch.reports import described

MEANING = metrics.meaning(described.describe)


def record(name="m", result=None, status=FINISHED, overrides=None, **values):
    return RunRecord(name, None, status, {"experiment": "e", "seed": 0} | values, result or {}, overrides=overrides)


def test_settings_are_runs_that_differ_in_their_seed_alone():
    members = [
        record(seed=seed, weight=weight, kind=kind, **{"data.seed": seed, "words.junk_seed": seed, "list": [1, 2]})
        for kind in ("sgd", "adam")
        for weight in (10.0, 2.0)
        for seed in (0, 1)
    ]
    keys = settings.swept(members, first=("weight", "missing"))
    assert keys == ("weight", "kind")
    grouped = settings.settings(members, keys)
    assert [tuple(s.values.values()) for s in grouped] == [(2.0, "sgd"), (2.0, "adam"), (10.0, "sgd"), (10.0, "adam")]
    assert all(len(s.members) == 2 for s in grouped)
    assert settings.levels(grouped, "weight") == [2.0, 10.0]
    assert grouped[0].label == "weight=2, kind=sgd"


def test_texts_stand_in_the_order_that_they_come_in():
    members = [record(kind="b"), record(kind="c"), record(kind="a"), record(kind=3), record()]
    assert [s.values["kind"] for s in settings.settings(members, ("kind",))] == [None, 3, "b", "c", "a"]


def test_a_text_that_holds_the_word_seed_is_no_seed():
    """Only the name of a field makes a seed: values of other fields that differ are different settings."""
    members = [
        record(seed=seed, load=load and f"runs/{load}-seed{seed}/w", prompt=f"seed {at}", size=2)
        for at, load in enumerate(("", "phi"))
        for seed in (0, 1)
    ]
    assert settings.swept(members) == ("load", "prompt")
    grouped = settings.settings(members, ("load", "prompt"))
    assert [s.values["load"] for s in grouped] == ["", "runs/phi-seed0/w", "runs/phi-seed1/w"]
    assert [len(s.members) for s in grouped] == [2, 1, 1]
    assert [settings.is_seed(key) for key in ("seed", "a.seed", "a.junk_seed", "seed.a", "seeds", "a.seed_words")] == [
        *(True, True, True, False, False, False)
    ]


def test_ablations_keep_the_order_of_the_sweep_and_are_named_by_what_they_set():
    base = {"loss.hard": True, "loss.targets": "frozen", "loss.name": "rtd"}
    ablations = [{}, {"loss.targets": "trained"}, {"loss.hard": False}, {"loss.name": "info_nce", "loss.hard": False}]
    members = [
        record(seed=seed, overrides=overrides | {"seed": seed}, **(base | overrides))
        for seed in (0, 1)
        for overrides in ablations
    ]
    grouped = settings.settings(members, settings.swept(members))
    assert [s.label for s in grouped] == [
        *("as configured", "targets=trained", "hard=False", "loss.name=info_nce, hard=False")
    ]
    assert not settings.is_grid(grouped) and all(len(s.members) == 2 for s in grouped)


def test_settings_that_would_be_called_the_same_are_named_by_their_runs():
    members = [record("a", overrides={}, other=1), record("b", overrides={}, other=2), record("c", overrides={"x": 1})]
    grouped = settings.settings(members, settings.swept(members))
    assert [s.label for s in grouped] == ["a", "b", "x=1"]


def test_zero_is_not_false():
    members = [record(flag=flag) for flag in (True, False, 1, 0)]
    assert [s.values["flag"] for s in settings.settings(members, ("flag",))] == [0, 1, True, False]


def test_metrics_that_tell_settings_apart():
    members = [
        record(str(at), {"same": 1.0, "nan": math.nan, "x": at, "some": 1.0} if at else {"same": 1.0, "x": 0.0})
        for at in range(2)
    ]
    grouped = [Setting({}, (member,)) for member in members]
    assert settings.distinguishing(grouped, ["same", "nan", "x"]) == ["x"]
    assert settings.distinguishing(grouped, ["same"]) == ["same"]


def test_lists_and_absent_values_tell_settings_apart():
    members = [record(a=[1]), record(a=[2]), record(), record(a=1), record(a=True), record(a="1")]
    assert settings.swept(members) == ("a",)
    assert len(settings.settings(members, ("a",))) == 6


def test_numbers_in_keys_are_ordered_as_numbers():
    keys = ["best_step", "g/rps-16/pcc", "g/rps-16/mse", "g/rps-4/pcc", "g/rps-4/mse", "g/aam-8/pcc", "g/rps-0.5/pcc"]
    members = [record(result=dict.fromkeys(keys, 0.0)), record(result={"h/rps-2/pcc": 1.0, "g/rps-4/top_k": 1.0})]
    assert settings.keys_of(members) == [
        *("best_step", "g/rps-0.5/pcc", "g/rps-4/pcc", "g/rps-4/mse", "g/rps-4/top_k"),
        *("g/rps-16/pcc", "g/rps-16/mse", "g/aam-8/pcc", "h/rps-2/pcc"),
    ]


# -- spreads --------------------------------------------------------------------------------------------------------


def test_spread_is_mean_and_sample_standard_deviation():
    values = [0.3, 0.5, 0.7, 0.2]
    members = [record(result={"x": value}) for value in values] + [record(result={"y": 1.0})]
    assert settings.spread_of(members, "x") == Spread(
        pytest.approx(statistics.fmean(values)), pytest.approx(statistics.stdev(values)), 4, 5
    )
    by_hand = spread([1.0, 2.0, 6.0])  # mean 3; squares 4 + 1 + 9 = 14, over n − 1 = 2
    assert (by_hand.mean, by_hand.std) == (3.0, pytest.approx(math.sqrt(7.0)))
    one = settings.spread_of(members, "y")
    assert (one.mean, one.count, one.total) == (1.0, 1, 5) and math.isnan(one.std)
    none = settings.spread_of(members, "z")
    assert (none.count, none.total) == (0, 0) and math.isnan(none.mean)


def test_missing_values_are_counted():
    """A mean over the runs that have a value says so; what is not finite is never averaged."""
    partial = spread([0.5, None, math.nan, 0.7])
    assert (partial.mean, partial.count, partial.total, partial.complete) == (pytest.approx(0.6), 2, 4, False)
    assert partial.std == pytest.approx(statistics.stdev([0.5, 0.7]))
    none = spread([None, math.nan])
    assert math.isnan(none.mean) and math.isnan(none.std) and (none.count, none.total) == (0, 2)
    assert not spread([]).complete and spread([1.0]).complete


def test_best():
    spreads = [Spread(value, 0.0, 1, 1) for value in (0.2, 0.9, 0.9)] + [Spread(math.nan, math.nan, 0, 1)]
    assert best(spreads, 1) == {1, 2}
    assert best(spreads, -1) == {0}
    assert best(spreads, 0) == set()
    assert best(spreads[:1], 1) == set()  # nothing to choose from
    assert best(spreads[1:3], 1) == set()
    assert best([*spreads, Spread(0.95, 0.0, 4, 5)], 1) == {1, 2}  # a mean over the runs that happen to have a value


# -- metrics --------------------------------------------------------------------------------------------------------


def test_directions_are_declared_or_asked_for():
    choice = MetricChoice(higher=("bound$",), lower=("accuracy",))
    signs = {
        key: (MEANING(key).sign, choice.applied(MEANING)(key).sign) for key in ("a/bound", "test/accuracy", "loss")
    }
    assert signs == {"a/bound": (0, 1), "test/accuracy": (1, -1), "loss": (0, 0)}


def test_headline():
    keys = [
        *("best_step", "val/accuracy", "test/cross_entropy", "test/accuracy", "test/examples"),
        *("g/rps-4/accuracy", "g/rps-4/mse", "g/rps-4/pcc", "g/bound"),
    ]
    assert settings.headline(keys, MEANING) == ["test/accuracy", "g/rps-4/pcc"]  # those declared as main
    assert settings.headline(keys[:3], MEANING) == ["test/cross_entropy", "val/accuracy"]  # no details
    assert settings.headline(keys[:3], MEANING, limit=1) == ["test/cross_entropy"]
    assert settings.headline(keys, MEANING, MetricChoice(metrics=("mse", "^test"))) == [
        *("g/rps-4/mse", "test/cross_entropy", "test/accuracy", "test/examples")
    ]
    with pytest.raises(ReportError, match=r"no metric matches 'speed'; valid metrics: best_step, val/accuracy"):
        settings.headline(keys, MEANING, MetricChoice(metrics=("speed",)))
    assert settings.headline(["x"], lambda key: Metric(key, level="detail")) == []


def test_names_of_keys_are_short_and_tell_apart():
    assert settings.names_of(["optimizer.learning_rate", "a.radius", "b.radius", "model.name", "seed"]) == {
        "optimizer.learning_rate": "learning_rate",
        "a.radius": "a.radius",
        "b.radius": "b.radius",
        "model.name": "model.name",
        "seed": "seed",
    }
