"""Group metrics against tables worked out by hand and scikit-learn's recalls; predictions of stacked heads."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from tldr_jax import heads, metrics

ALL = np.ones((2, 2), bool)
NAMES = (("landbird", "waterbird"), ("land", "water"))
# ten images by hand: (label, spurious, prediction)
IMAGES = np.array(
    [
        (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 1),  # 3 of 4
        (0, 1, 0), (0, 1, 1),  # 1 of 2
        (1, 0, 1), (1, 0, 0), (1, 0, 0),  # 1 of 3
        (1, 1, 1),  # 1 of 1
    ]
)  # fmt: skip
LABELS, SPURIOUS, PREDICTED = IMAGES.T


def test_a_table_by_hand():
    accuracies = metrics.group_accuracies(PREDICTED, LABELS, SPURIOUS, ALL)
    np.testing.assert_allclose(accuracies, [[3 / 4, 1 / 2], [1 / 3, 1]], rtol=1e-15)
    found = metrics.summary(PREDICTED, LABELS, SPURIOUS, allowed=ALL, train_counts=[[70, 10], [5, 15]], names=NAMES)
    expected = {
        "wga": 1 / 3,
        "mean": 6 / 10,
        "weighted_mean": (70 * 3 / 4 + 10 * 1 / 2 + 5 * 1 / 3 + 15) / 100,
        "class_balanced": (4 / 6 + 2 / 4) / 2,
        "group/landbird/land": 3 / 4,
        "group/landbird/water": 1 / 2,
        "group/waterbird/land": 1 / 3,
        "group/waterbird/water": 1.0,
    }
    assert found == pytest.approx(expected, rel=1e-14)


def test_mean_is_the_weighted_mean_under_the_test_sets_own_counts():
    counts = metrics.group_counts(LABELS, SPURIOUS, ALL)
    np.testing.assert_array_equal(counts, [[4, 2], [3, 1]])
    accuracies = metrics.group_accuracies(PREDICTED, LABELS, SPURIOUS, ALL)
    assert metrics.weighted_mean(accuracies, counts) == pytest.approx(metrics.mean(PREDICTED, LABELS))


def test_class_balanced_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 200))
    assert metrics.class_balanced(predicted, labels, 4) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_leading_axes_are_kept():
    rng = np.random.default_rng(1)
    stack = rng.integers(0, 2, (3, 2, len(LABELS)))
    accuracies = metrics.group_accuracies(stack, LABELS, SPURIOUS, ALL)
    assert accuracies.shape == (3, 2, 2, 2)
    for index in np.ndindex(3, 2):
        one = metrics.group_accuracies(stack[index], LABELS, SPURIOUS, ALL)
        np.testing.assert_array_equal(accuracies[index], one)
        assert metrics.worst_group(accuracies)[index] == one.min()
        assert metrics.class_balanced(stack, LABELS, 2)[index] == metrics.class_balanced(stack[index], LABELS, 2)


def test_groups_that_are_not_allowed_do_not_count():
    allowed = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)
    labels, spurious = np.argwhere(allowed).T
    predicted = labels.copy()
    predicted[-1] = 2
    accuracies = metrics.group_accuracies(predicted, labels, spurious, allowed)
    np.testing.assert_array_equal(np.isnan(accuracies), ~allowed)
    assert metrics.worst_group(accuracies) == 0
    assert metrics.weighted_mean(accuracies, allowed * 5) == 7 / 8


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(spurious=np.where(LABELS == 0, 0, SPURIOUS)), r"of class 0 \(landbird\) and of .* 1 \(water\)"),
        (dict(labels=np.where(LABELS == 0, 0, 2)), "image 6 has label 2; valid: 0 to 1"),
        (dict(spurious=SPURIOUS - 1), "image 0 has spurious value -1"),
        (dict(predictions=PREDICTED[1:]), "10 labels need as many predictions"),
        (dict(allowed=[[1, 1], [0, 1]]), r"3 images are of class 1 \(waterbird\) and of spurious value 0 \(land\)"),
        (dict(spurious=SPURIOUS[1:]), "must be"),
    ],
)
def test_bad_groups_are_named(change, message):
    given = dict(predictions=PREDICTED, labels=LABELS, spurious=SPURIOUS, allowed=ALL) | change
    with pytest.raises(ValueError, match=message):
        metrics.group_accuracies(**given, names=NAMES)


def test_bad_training_counts():
    allowed = np.array([[1, 1], [0, 1]], bool)
    rows = ~((LABELS == 1) & (SPURIOUS == 0))
    accuracies = metrics.group_accuracies(PREDICTED[rows], LABELS[rows], SPURIOUS[rows], allowed)
    with pytest.raises(ValueError, match="groups that were not evaluated"):
        metrics.weighted_mean(accuracies, np.ones((2, 2)))
    with pytest.raises(ValueError, match="not all zero"):
        metrics.weighted_mean(accuracies, np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"class 2 \(third\)"):
        metrics.class_balanced(PREDICTED, LABELS, (*NAMES[0], "third"))


def test_predictions_of_stacked_heads_equal_one_at_a_time_whatever_the_chunk():
    rng = np.random.default_rng(2)
    stack = heads.Head(rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 4)))
    x = rng.normal(size=(11, 5))
    found = heads.predictions(stack, x, chunk=4)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[index], np.argmax(x @ stack.kernel[index] + stack.bias[index], -1))
    np.testing.assert_array_equal(heads.predictions(heads.Head(stack.kernel[0, 0], stack.bias[0, 0]), x), found[0, 0])


def test_a_diverged_head_predicts_no_class_and_scores_nothing():
    broken = heads.Head(np.full((5, 2), np.nan), np.zeros(2))
    found = heads.predictions(broken, np.ones((10, 5)))
    np.testing.assert_array_equal(found, -1)
    assert metrics.worst_group(metrics.group_accuracies(found, LABELS, SPURIOUS, ALL)) == 0


def test_heads_of_another_width_are_refused():
    with pytest.raises(ValueError, match="heads for 5 features"):
        heads.predictions(heads.Head(np.zeros((5, 2)), np.zeros(2)), np.ones((10, 4)))
