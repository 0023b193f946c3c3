"""Drawings: read back from the SVG, and compared with where the numbers should be."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from launch.reports import charts, numbers, runs, settings, views
from launch.reports.charts import ChartAxis, ChartLine
from tests.launch.reports import run_tree
from tests.launch.reports.run_tree import config, write_run


def paths(svg, style):
    """The points of every path that has a CSS class, pieces apart."""
    found = []
    for element in ElementTree.fromstring(str(svg)).iter("path"):
        if style in element.get("class").split():
            pieces = [piece for piece in re.split("M", element.get("d")) if piece]
            found.append([[tuple(map(float, p.split())) for p in piece.split("L")] for piece in pieces])
    return found


def texts(svg):
    return [element.text for element in ElementTree.fromstring(str(svg)).iter("text")]


def affine(places, values):
    """Whether places are an affine function of values."""
    return np.allclose(np.polyval(np.polyfit(values, places, 1), values), places, atol=0.11)


def test_scales():
    linear = charts.scale([3.0, math.nan, 1.0], 100, 0, may_log=True, margin=0)
    assert [linear(v) for v in (1, 2, 3)] == [100, 50, 0] and not linear.log
    log = charts.scale([1e-3, 1.0, 10.0], 0, 40, may_log=True, margin=0)
    assert np.allclose([log(v) for v in (1e-3, 1e-2, 10)], [0, 10, 40])
    for values in ([0.0, 1000.0], [-1.0, 100.0], [1.0, 29.0]):
        assert not charts.scale(values, 0, 1, may_log=True).log
    assert not charts.scale([1.0, 1000.0], 0, 1, may_log=False).log
    for values in ([], [math.nan], [0.0], [5.0, 5.0], [1e-30], [-2.0]):  # something in the middle, no division by zero
        place = charts.scale(values, 0, 1, may_log=True)
        assert place.low < place.high and all(0.3 < place(v) < 0.7 for v in values if math.isfinite(v) and v != 0.0)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.736, 0.828, [0.74, 0.76, 0.78, 0.8, 0.82]),
        (50, 2000, [500, 1000, 1500, 2000]),
        (-3, 3, [-2, 0, 2]),
        (1e-7, 5e-7, [1e-7, 2e-7, 3e-7, 4e-7, 5e-7]),
    ],
)
def test_ticks(low, high, expected):
    assert charts.ticks(charts.ChartScale(low, high, 0, 1)) == pytest.approx(expected)


def test_ticks_of_logarithmic_scales():
    assert charts.ticks(charts.ChartScale(0.002, 20, 0, 1, log=True)) == pytest.approx([0.01, 0.1, 1, 10])
    assert charts.ticks(charts.ChartScale(1e-12, 1e3, 0, 1, log=True)) == pytest.approx(
        [1e-12, 1e-9, 1e-6, 1e-3, 1, 1e3]
    )
    assert charts.ticks(charts.ChartScale(0.15, 0.8, 0, 1, log=True)) == pytest.approx([0.2, 0.5])


@pytest.mark.parametrize(
    "value, shown",
    [
        (None, "–"),
        (0.5, "0.5"),
        (1e-5, "1e-05"),
        (20_000, "20k"),
        (1_500_000.0, "1.5M"),
        (1_234_567, "1234.57k"),
        (2000, "2000"),
        (True, "True"),
        ("adam", "adam"),
        ("", "''"),
        ([1, "a"], "(1, 'a')"),
        ("runs/a/phi.safetensors", "runs/a/phi.safetensors"),
        ("/data/runs/deep/phi-seed0/phi.safetensors", "…/phi.safetensors"),
    ],
)
def test_short(value, shown):
    assert numbers.short(value) == shown


def test_thinning_keeps_the_mean_and_the_end():
    x, y = np.arange(10_001.0), np.random.default_rng(0).normal(size=10_001)
    few_x, few_y = charts.thin(x, y)
    assert len(few_x) == charts.POINTS and (few_x[-1], few_y[-1]) == (x[-1], y[-1])
    assert few_y[:-1].mean() == pytest.approx(y[:-1].mean(), abs=2e-4)
    assert charts.thin(x[:9], y[:9])[1] is not y and len(charts.thin(x[:9], y[:9])[0]) == 9


def test_a_line_is_broken_where_it_is_not_finite():
    y = np.array([1.0, 2.0, math.nan, 4.0, math.nan, 3.0])
    svg = charts.panel([ChartLine("a <b>", "c0", np.arange(6.0), y)], label="l & m", x_label="x")
    ((first, second, third),) = paths(str(svg).replace("h.1", ""), "line")
    assert (len(first), len(second), len(third)) == (2, 1, 1)
    points = [*first, *second, *third]
    assert affine([p[0] for p in points], [0, 1, 3, 5]) and affine([p[1] for p in points], [1, 2, 4, 3])
    assert "a &lt;b&gt;" in svg and 'aria-label="l &amp; m"' in svg


def test_a_response_has_a_bar_of_two_standard_deviations():
    svg = charts.response([0.01, 0.1, 1.0], [1.0, 3.0, 2.0], [0.5, math.nan, 0.25], label="l", x_label="w")
    ((points,),) = paths(svg, "line")
    assert affine([p[0] for p in points], [0, 1, 2]) and affine([p[1] for p in points], [1, 3, 2])
    bars = re.findall(r'class="bar" d="M[\d.]+ ([\d.]+)V([\d.]+)"', svg)
    a_unit = (points[0][1] - points[1][1]) / 2  # from 1 to 3, upwards
    assert [float(a) - float(b) for a, b in bars] == pytest.approx([a_unit, a_unit / 2], abs=0.15)
    assert {"0.01", "0.1", "1"} <= set(texts(svg))


def test_a_response_from_zero_has_equal_steps():
    svg = charts.response([0.0, 0.001, 0.1, 1.0], [1.0, 2.0, 3.0, 4.0], [math.nan] * 4, label="l", x_label="w")
    ((points,),) = paths(svg, "line")
    assert affine([p[0] for p in points], [0, 1, 2, 3])


def test_parallel_coordinates():
    axes = [
        ChartAxis("kind <i>", ["adam", None, "adam", "sgd"]),
        ChartAxis("rate", [1e-4, 1e-2, 1e-1, 1e-3]),
        ChartAxis("accuracy", [0.9, 0.5, 0.1, 0.2], even=False),
    ]
    goodness = [1.0, 0.5, math.nan, 0.1]
    svg = charts.parallel(axes, [f"run {at}" for at in range(4)], label="all", best={0}, goodness=goodness)
    ((best,),) = paths(svg, "best")
    others = [piece for (piece,) in paths(svg, "across")]
    assert len(others) == 2  # the one that is not finite is left out
    worse, better = others  # drawn from the worst to the best
    assert worse[2][1] > better[2][1] > best[2][1]
    assert affine([best[2][1], better[2][1], worse[2][1]], [0.9, 0.5, 0.2])
    assert affine([best[1][1], worse[1][1], better[1][1]], [0, 1, 2])  # 1e-4, 1e-3, 1e-2 in equal steps
    assert {"adam", "–", "sgd", "1e-05"} - set(texts(svg)) == {"1e-05"}
    assert "kind &lt;i&gt;" in svg


# -- what is drawn of runs ------------------------------------------------------------------------------------------


def results_of(path):
    (study,) = runs.read(path)
    return settings.group(study)


def test_curves_are_means_over_common_steps_and_thin_lines_of_seeds(tmp_path):
    a, b = [1.0, 2.0, 3.0, 4.0], [3.0, 6.0, 5.0]
    for seed, values in enumerate((a, b)):
        write_run(tmp_path / str(seed), config(seed=seed), {"x": 1.0}, curves={"loss": values})
    write_run(tmp_path / "other", config(regularizer__cosine_weight=9.0), curves={"loss": [7.0, 7.5], "once": [1.0]})
    curves = views.curves(results_of(tmp_path), ["x"])
    (panel,) = curves.panels  # a single point is no curve
    assert panel.title == "loss"
    assert curves.legend == [("c0", "cosine_weight=1"), ("c1", "cosine_weight=9")]
    seeds = [piece for (piece,) in paths(panel.svg, "seed")]
    assert [len(line) for line in seeds] == [4, 3]
    (mean,) = [piece for (piece,) in paths(panel.svg, "c0") if piece not in seeds]
    ((other,),) = paths(panel.svg, "c1")
    places = [p[1] for p in [*seeds[0], *seeds[1], *mean, *other]]
    assert affine(places, [*a, *b, 2.0, 4.0, 4.0, 7.0, 7.5])


def test_more_settings_than_colours(tmp_path):
    for at in range(10):
        result = {"test/accuracy": at / 10, "n": 1.0}
        folder = config(regularizer__cosine_weight=float(at))
        write_run(tmp_path / str(at), folder, result, curves={"train/loss": [1.0, 2.0 + at]})
    curves = views.curves(results_of(tmp_path), ["test/accuracy"])
    assert [label for _, label in curves.legend] == [f"cosine_weight={at}" for at in range(3, 10)] + ["the other 3"]
    assert len(paths(curves.panels[0].svg, "rest")) == 3


def test_heat_map_of_a_sweep(tmp_path):
    results = results_of(run_tree.write_sweep(tmp_path / "sweep", radii=(4.0, 8.0)))
    view, lower = views.sweeps(results, ["test/accuracy", "test/cross_entropy"])
    heat = view.heat
    assert (heat.row_name, heat.column_name) == ("cosine_weight", "radius")
    assert heat.row_labels == ["0.01", "0.1", "1"] and heat.column_labels == ["4", "8"]
    expected = [[run_tree.accuracy(weight, radius, 1) for radius in (4, 8)] for weight in (0.01, 0.1, 1)]
    expected[2][1] -= 0.01  # the members of seeds 1 and 2 are missing there
    shown = np.asarray([[float(cell.text.split(" ± ")[0]) for cell in row] for row in heat.cells])
    np.testing.assert_allclose(shown, expected, atol=5.1e-4)
    strength = np.asarray([[cell.strength for cell in row] for row in heat.cells])
    ranks = (np.asarray(expected) - np.min(expected)) / np.ptp(expected)
    np.testing.assert_allclose(strength, ranks, atol=1e-9)
    assert [(r, c) for r in range(3) for c in range(2) if heat.cells[r][c].best] == [(1, 1)]
    np.testing.assert_allclose([[cell.strength for cell in row] for row in lower.heat.cells], strength, atol=1e-9)


def test_a_heat_map_has_holes(tmp_path):
    for a, b in ((1, 1), (1, 2), (2, 1)):
        changed = config(optimizer__learning_rate=a, regularizer__radius=b)
        write_run(tmp_path / f"{a}{b}", changed, {"acc": a + b / 10})
    (view,) = views.sweeps(results_of(tmp_path), ["acc"])
    assert [[cell and cell.text for cell in row] for row in view.heat.cells] == [["1.10", "1.20"], ["2.10", None]]


def test_which_drawing_suits_a_sweep(tmp_path):
    def kinds(name, **values):
        for at in range(len(next(iter(values.values())))):
            changed = config(**{key: value[at] for key, value in values.items()})
            write_run(tmp_path / name / str(at), changed, {"acc": at / 10})
        all_views = views.sweeps(results_of(tmp_path / name), ["acc"])
        return ["heat" if view.heat else "line" if view.small else "parallel" for view in all_views]

    numbers = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert kinds("one", optimizer__learning_rate=numbers) == ["line"]
    assert kinds("two values", optimizer__learning_rate=[1.0, 2.0]) == []
    assert kinds("names", optimizer__name=["a", "b", "c"]) == []
    assert kinds("random", optimizer__learning_rate=numbers, regularizer__radius=[5.0, 6.0, 7.0, 9.0, 8.0]) == [
        "parallel"
    ]
    three = {
        "optimizer__name": ["a", "b", "a", "b", "a"],
        "optimizer__learning_rate": [1, 1, 2, 2, 3],
        "batch_size": [1, 2, 2, 1, 1],
    }
    assert kinds("three", **three) == ["parallel"]
    assert kinds("few", **{key: values[:4] for key, values in three.items()}) == []
    assert kinds("seeds", seed=[0, 1, 2]) == []
