"""Results as Markdown, from results written by hand."""

import pytest

from robustgrad_jax import tables

RESULT = {
    "best_step": 30.0,
    "test/accuracy": 0.87654,
    "test/examples": 2000.0,
    "gradient/aam-8-insertion/area": 0.3,
    "gradient/aam-8/pcc": float("nan"),
    "gradient/aam-8/accuracy": 0.8,
    "gradient/aam-8/target_pcc": 0.2,
    "gradient/aam-8/nonfinite": 2,
    "gradient/aam-8/examples": 20.0,
    "gradient/insertion/area": 0.4,
    "gradient/rps-16/pcc": 0.25,
    "gradient/rps-16/cosine": 0.5,
    "gradient/rps-4/pcc": 1e-5,
    "gradient/rps-4/cosine": 0.75,
    "gradient/sensitivity-4/max_sensitivity": 3.0,
}


def test_one_run():
    """Everything is there; settings of the same metrics share a table, by radius, and counts come last."""
    assert tables.one_run(RESULT) == (
        "|  | value |\n|---|---|\n| best step | 30 |\n| test accuracy | 0.8765 |\n| test examples | 2000 |\n"
        "\n| attribution | under | cosine | PCC |\n|---|---|---|---|\n"
        "| gradient | RPS ε=4 | 0.75 | 1e-05 |\n| gradient | RPS ε=16 | 0.5 | 0.25 |\n"
        "\n| attribution | under | PCC | accuracy | target PCC | examples | not finite |\n"
        "|---|---|---|---|---|---|---|\n"
        "| gradient | AAM ε=8 | nan | 0.8 | 0.2 | 20 | 2 |\n"
        "\n| attribution | under | area |\n|---|---|---|\n| gradient | insertion | 0.4 |\n"
        "| gradient | insertion, order of AAM ε=8 | 0.3 |\n"
        "\n| attribution | under | max sensitivity |\n|---|---|---|\n| gradient | sensitivity ε=4 | 3 |\n"
    )


def test_compared():
    """A row for what is compared, a column a regulariser; the spread is that of a sample."""
    other = RESULT | {"test/accuracy": 0.6, "gradient/rps-4/cosine": 0.5, "gradient/aam-8/pcc": 0.5}
    assert tables.compared({"none": [RESULT], "l2": [other, other | {"test/accuracy": 0.4}]}).splitlines() == [
        "|  | none | l2 |",
        "|---|---|---|",
        "| accuracy | 0.877 | 0.500 ± 0.141 |",
        "| RPS ε=4, cosine | 0.750 | 0.500 ± 0.000 |",
        "| RPS ε=4, PCC | 0.000 | 0.000 ± 0.000 |",
        "| RPS ε=16, cosine | 0.500 | 0.500 ± 0.000 |",
        "| RPS ε=16, PCC | 0.250 | 0.250 ± 0.000 |",
        "| AAM ε=8, PCC | nan | 0.500 ± 0.000 |",
        "| AAM ε=8, accuracy | 0.800 | 0.800 ± 0.000 |",
        "| insertion, area | 0.400 | 0.400 ± 0.000 |",
        "| insertion, order of AAM ε=8, area | 0.300 | 0.300 ± 0.000 |",
        "| sensitivity ε=4, max sensitivity | 3.000 | 3.000 ± 0.000 |",
    ]


def test_several_attributions_are_named():
    result = {"test/accuracy": 0.5, "a/rps-4/pcc": 0.1, "lrp_epsilon/rps-4/pcc": 0.2}
    rows = tables.compared({"none": [result]}).splitlines()[3:]
    assert rows == ["| a: RPS ε=4, PCC | 0.100 |", "| lrp_epsilon: RPS ε=4, PCC | 0.200 |"]


@pytest.mark.parametrize(
    "group, wanted",
    [
        ("rps-0.5", "RPS ε=0.5"),
        ("top_k-8", "top k ε=8"),
        ("aam-1e-05", "AAM ε=1e-05"),
        ("mass_center-16-insertion", "insertion, order of mass center ε=16"),
        ("deletion", "deletion"),
    ],
)
def test_settings(group, wanted):
    assert tables.setting(group) == wanted
