"""What the numbers of a result mean: titles, directions and places in tables."""

import pytest

from launch.reports.metrics import meaning
from robustgrad_jax import results


@pytest.mark.parametrize(
    "group, title",
    [
        ("rps-0.5", "RPS ε=0.5"),
        ("top_k-8", "top-k attack ε=8"),
        ("aam-1e-05", "AAM ε=1e-05"),
        ("mass_center-16-insertion", "insertion, order of mass center ε=16"),
        ("sensitivity-4", "sensitivity ε=4"),
        ("deletion", "deletion"),
    ],
)
def test_conditions(group, title):
    assert results.condition_title(group) == title


@pytest.mark.parametrize(
    "key, title, direction, table, condition",
    [
        ("test/accuracy", "accuracy", "up", "", ""),
        ("best_step", "best step", "neither", "", ""),
        ("gradient/rps-4/pcc", "PCC", "up", "gradient", "RPS ε=4"),
        ("gradient/aam-8/target_pcc", "target PCC", "down", "gradient", "AAM ε=8"),
        ("gradient/aam-8/target_mse", "target MSE", "up", "gradient", "AAM ε=8"),
        ("lrp_epsilon/aam-8-insertion/area", "area", "up", "lrp epsilon", "insertion, order of AAM ε=8"),
        ("gradient/deletion/area", "area", "down", "gradient", "deletion"),
        ("gradient/sensitivity-4/max_sensitivity", "max sensitivity", "down", "gradient", "sensitivity ε=4"),
        ("upper-bound/bound", "‖Hz‖ / ‖∇g(x')‖", "down", "Upper bound", ""),
        ("classifier/val/accuracy", "validation accuracy", "up", "", ""),
        ("classifier/train/l2", "l2", "down", "", ""),
    ],
)
def test_metrics(key, title, direction, table, condition):
    metric = results.describe(key)
    assert (metric.title, metric.direction, metric.table, metric.condition) == (title, direction, table, condition)


def test_counts_are_details_and_what_the_loop_logs_is_its_own():
    assert {results.describe(f"gradient/rps-4/{name}").level for name in ("examples", "nonfinite")} == {"detail"}
    assert results.describe("nothing/known") is None
    assert results.describe("classifier/train/loss") is None
    assert meaning(results.describe)("classifier/train/loss").direction == "down"
