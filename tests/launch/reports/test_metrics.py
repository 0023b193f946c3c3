"""Declarations of metrics: patterns, names, and what is said of keys that nobody declared."""

import pytest

from launch.reports import metrics
from launch.reports.metrics import Metric, declare


def condition(part: str) -> str:
    kind, _, radius = part.partition("-")
    return f"{kind.upper()} ε={radius}"


DESCRIBE = declare(
    {
        "test/accuracy": Metric("test accuracy", "up", level="main"),
        "{benchmark}/{row}/unseen_recall_at_{k:[0-9]+}": Metric(
            "R@{k}, unseen phrasing", "up", "%", table="{benchmark}", row="{row}"
        ),
        "{benchmark}/{row}/recall_at_{k:[0-9]+}": Metric(
            "R@{k}", "up", "%", digits=1, table="{benchmark}", row="{row}"
        ),
        "{attribution}/{condition}/target_pcc": Metric("target PCC", table="{attribution}", condition="{condition}"),
        "{attribution}/{condition}/pcc": Metric("PCC", "up", table="{attribution}", condition="{condition}"),
        "{method}/group/{class}/{background}": Metric("{class} on {background}", "up", row="{method}"),
        "same/{a}/{a}": Metric("{a} twice"),
    },
    names={
        "row": {"image_text": "image + text", "rtd": "φ + RTD", "oracle": "the target's caption"},
        "condition": condition,
    },
    references={"row": ["oracle"]},
)


def test_patterns_give_titles_places_and_columns_in_their_order():
    accuracy = DESCRIBE("test/accuracy")
    assert (accuracy.title, accuracy.direction, accuracy.level, accuracy.heading) == (
        "test accuracy",
        "up",
        "main",
        "test accuracy",
    )
    recall, unseen = (DESCRIBE(f"scenes/image_text/{name}recall_at_10") for name in ("", "unseen_"))
    assert (recall.table, recall.row, recall.heading, recall.digits) == ("scenes", "image + text", "R@10 (%)", 1)
    assert unseen.heading == "R@10, unseen phrasing (%)" and unseen.order < recall.order  # as declared
    pcc, target = DESCRIBE("gradient/aam-8/pcc"), DESCRIBE("gradient/aam-8/target_pcc")
    assert (pcc.title, pcc.table, pcc.condition, pcc.sign) == ("PCC", "gradient", "AAM ε=8", 1)
    assert (target.title, target.direction, target.sign) == ("target PCC", "neither", 0)
    assert DESCRIBE("no_gap/group/curved/water").title == "curved on water"
    assert DESCRIBE("no_gap/group/curved/water").row == "no gap"


def test_references_do_not_compete():
    assert DESCRIBE("scenes/oracle/recall_at_1").reference and not DESCRIBE("scenes/rtd/recall_at_1").reference


@pytest.mark.parametrize("key", ["accuracy", "test/accuracy/", "a/b/c/pcc", "scenes/rtd/recall_at_x", "same/x/y", ""])
def test_other_keys_are_not_described(key):
    assert DESCRIBE(key) is None


def test_a_placeholder_may_come_twice():
    assert DESCRIBE("same/x/x").title == "x twice"


def test_keys_that_nobody_declared_are_neutral():
    of = metrics.meaning(DESCRIBE)
    assert of("speed/of/light/x") == Metric("speed/of/light/x")
    assert of("test/accuracy").level == "main"
    assert of("train/loss").direction == "down" and of("train/steps_per_second").level == "detail"
    assert of("phi/train/loss").direction == "down" and of("phi/train/loss").title == "phi: training loss"
    assert metrics.meaning(None)("test/accuracy") == Metric("test/accuracy")


def test_mistakes_in_declarations_are_explained():
    with pytest.raises(ValueError, match=r"metric 'x': direction='higher' is unknown; valid values: 'up', 'down', 'n"):
        Metric("x", "higher")
    with pytest.raises(ValueError, match=r"level='minor' is unknown; valid values: 'main', 'normal', 'detail'"):
        Metric("x", level="minor")
    with pytest.raises(ValueError, match=r"row uses \{method\}, which the pattern lacks; it has: name"):
        declare({"{name}/x": Metric("x", row="{method}")})
    with pytest.raises(ValueError, match=r"pattern '\{a:\(\}' is not valid"):
        declare({"{a:(}": Metric("x")})


def test_the_declaration_of_an_experiment():
    describe, problem = metrics.of_experiment("tests.launch.reports.test_metrics")
    assert describe is None and "has no describe(key)" in problem
    assert metrics.of_experiment("os.path; print()")[1].startswith("experiment 'os.path; print()' is not the name of")
    assert "no.such cannot be imported (ModuleNotFoundError" in metrics.of_experiment("no.such")[1]
    found, problem = metrics.of_experiment("tests.launch.reports.described")
    assert problem == "" and found("test/accuracy").title == "test accuracy"
