"""Accuracies over groups: worst group, plain mean, training-weighted mean, class-balanced.

A group is a class together with a spurious value. Predictions may carry leading axes, those of a stack of heads, and
so do the results; everything is float64 numpy. A group without an image has no accuracy: that is an error, not a zero.
Papers report two different means: `mean` is over images, `weighted_mean` over groups, weighted by how often each occurs
in training; they differ wherever the test set is not distributed like the training set.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

Names = tuple[Sequence[str], Sequence[str]]


def group_counts(labels: ArrayLike, spurious: ArrayLike, allowed: ArrayLike, *, names: Names | None = None):
    """Number of images of each group: int (C, S).

    Args:
      labels: classes, int (n,).
      spurious: spurious values, int (n,).
      allowed: bool (C, S), the groups that exist.
      names: of the classes and of the spurious values, for messages.

    Raises:
      ValueError: labels and values of different lengths or out of range, or an image in a group that is not allowed.
    """
    labels, spurious, allowed = np.asarray(labels), np.asarray(spurious), np.asarray(allowed, bool)
    if labels.ndim != 1 or labels.shape != spurious.shape:
        raise ValueError(f"labels and spurious values must be (n,), got shapes {labels.shape} and {spurious.shape}")
    for what, values, limit in zip(("label", "spurious value"), (labels, spurious), allowed.shape, strict=True):
        if len(bad := np.flatnonzero((values < 0) | (values >= limit))):
            raise ValueError(f"image {bad[0]} has {what} {values[bad[0]]}; valid: 0 to {limit - 1}")
    counts = np.zeros(allowed.shape, np.int64)
    np.add.at(counts, (labels, spurious), 1)
    if len(bad := np.argwhere((counts > 0) & ~allowed)):
        raise ValueError(f"{counts[tuple(bad[0])]} images are {_name(bad[0], names)}, a group that is not allowed")
    return counts


def group_accuracies(
    predictions: ArrayLike,
    labels: ArrayLike,
    spurious: ArrayLike,
    allowed: ArrayLike,
    *,
    names: Names | None = None,
) -> np.ndarray:
    """Accuracy within every group, (…, C, S); NaN for groups that are not allowed.

    Args:
      predictions: int (…, n).
      labels, spurious, allowed, names: see `group_counts`.

    Raises:
      ValueError: an allowed group has no image (the error names it), predictions for another number of images, and what
        `group_counts` raises.
    """
    predictions, labels, allowed = np.asarray(predictions), np.asarray(labels), np.asarray(allowed, bool)
    counts = group_counts(labels, spurious, allowed, names=names)
    if len(empty := np.argwhere((counts == 0) & allowed)):
        raise ValueError(f"no image is {_name(empty[0], names)}: the group's accuracy is not defined")
    _same_images(predictions, labels)
    group = labels * allowed.shape[1] + np.asarray(spurious)
    member = np.zeros((len(labels), allowed.size))
    member[np.arange(len(labels)), group] = 1
    right = (predictions == labels).astype(np.float64) @ member
    with np.errstate(invalid="ignore"):  # 0/0 where no group is allowed
        return right.reshape(*predictions.shape[:-1], *allowed.shape) / counts


def worst_group(accuracies: np.ndarray) -> np.ndarray:
    """Worst-group accuracy (WGA) of `group_accuracies` (…, C, S): (…)."""
    return np.nanmin(accuracies, axis=(-2, -1))


def weighted_mean(accuracies: np.ndarray, train_counts: ArrayLike) -> np.ndarray:
    """Mean of `group_accuracies` (…, C, S) weighted by the groups' numbers of training images (C, S): (…).

    Raises:
      ValueError: training counts of another shape, all zero, or images of a group that was not evaluated.
    """
    weights = np.asarray(train_counts, np.float64)
    if weights.shape != accuracies.shape[-2:] or not weights.sum() > 0:
        raise ValueError(f"training counts must be (C, S) = {accuracies.shape[-2:]} and not all zero, got {weights}")
    unknown = np.isnan(accuracies)
    if np.any(unknown & (weights > 0)):
        raise ValueError(f"training counts {weights} have images in groups that were not evaluated")
    return np.sum(np.where(unknown, 0, accuracies) * weights, axis=(-2, -1)) / weights.sum()


def mean(predictions: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Fraction of images that are classified correctly: predictions (…, n), labels (n,) -> (…)."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    _same_images(predictions, labels)
    return np.mean(predictions == labels, axis=-1)


def class_balanced(predictions: ArrayLike, labels: ArrayLike, classes: int | Sequence[str]) -> np.ndarray:
    """Mean over the classes of the accuracy within each, (…); needs no spurious values.

    Args:
      predictions: int (…, n).
      labels: int (n,).
      classes: how many there are, or their names.

    Raises:
      ValueError: a class has no image (the error names it), or predictions are for another number of images.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    _same_images(predictions, labels)
    count = classes if isinstance(classes, int) else len(classes)
    within = []
    for label in range(count):
        if not (members := labels == label).any():
            name = f"class {label}" + ("" if isinstance(classes, int) else f" ({classes[label]})")
            raise ValueError(f"no image is of {name}: its accuracy is not defined")
        within.append(np.mean(predictions[..., members] == label, axis=-1))
    return np.mean(within, axis=0)


def summary(
    predictions: ArrayLike,
    labels: ArrayLike,
    spurious: ArrayLike,
    *,
    allowed: ArrayLike,
    train_counts: ArrayLike,
    names: Names | None = None,
) -> Mapping[str, float]:
    """All reported metrics of one classifier.

    Args:
      predictions: int (n,), of one head.
      labels, spurious, allowed, names: see `group_counts`.
      train_counts: (C, S), `group_counts` of the training set.

    Returns:
      `wga`, `mean`, `weighted_mean`, `class_balanced`, and the accuracy of each group under `group/CLASS/VALUE`.
    """
    allowed = np.asarray(allowed, bool)
    accuracies = group_accuracies(predictions, labels, spurious, allowed, names=names)
    classes, values = names or tuple(tuple(map(str, range(count))) for count in allowed.shape)
    return {
        "wga": float(worst_group(accuracies)),
        "mean": float(mean(predictions, labels)),
        "weighted_mean": float(weighted_mean(accuracies, train_counts)),
        "class_balanced": float(class_balanced(predictions, labels, classes)),
        **{f"group/{classes[c]}/{values[s]}": float(accuracies[c, s]) for c, s in np.argwhere(allowed)},
    }


def _same_images(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape[-1:] != labels.shape:
        raise ValueError(f"{labels.size} labels need as many predictions (…, n), got shape {predictions.shape}")


def _name(group: Sequence[int], names: Names | None) -> str:
    parts = ("class", "spurious value")
    said = [f" ({names[axis][index]})" if names else "" for axis, index in enumerate(group)]
    return " and ".join(f"of {part} {index}{name}" for part, index, name in zip(parts, group, said, strict=True))
