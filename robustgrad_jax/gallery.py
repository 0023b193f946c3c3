"""The figures of measured networks, drawn by `robustgrad_jax.figures`.

Three files, each only if it has data: `attributions.png` (inputs, heat maps, attacked inputs and their heat
maps), `curves.png` (insertion and deletion) and `similarity.png` (similarity against ε).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robustgrad_jax import figures
from robustgrad_jax.results import condition_title, metric_title

SHOWN = ("cosine", "pcc", "ssim")  # the similarities against ε
_RADIUS = re.compile(r"(.+?)-([\d.e+-]*\d)")


@dataclass(frozen=True)
class Measured:
    """One attribution of one network, measured.

    Attributes:
      values: (condition, metric) -> value: ("rps-4", "pcc").
      curves: name -> (levels,): "insertion", "aam-8-insertion".
      pictures: attack -> image, attacked (k, h, w, c) in [0, 1] and heatmap, attacked_heatmap (k, h, w).
    """

    values: Mapping[tuple[str, str], float] = field(default_factory=dict)
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    pictures: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


Series = Mapping[str, Sequence[Measured]]  # label -> one per seed


def gather(measurements: Iterable[Mapping[str, Any]]) -> dict[str, Measured]:
    """Measurements by attribution.

    Args:
      measurements: as stages keep them, see `stages.measurements.Measurement.encode`: "attribution", "values" with
        None for NaN, and "pictures".
    """
    values: dict[str, dict[tuple[str, str], float]] = {}
    points: dict[str, dict[str, dict[int, float]]] = {}
    pictures: dict[str, dict[str, Any]] = {}
    for measurement in (m for m in measurements if m["attribution"]):
        name = measurement["attribution"]
        pictures.setdefault(name, {}).update(measurement["pictures"])
        for key, value in measurement["values"].items():
            condition, _, metric = key.partition("/")
            number = math.nan if value is None else value
            if metric.isdigit():
                points.setdefault(name, {}).setdefault(condition, {})[int(metric)] = number
            else:
                values.setdefault(name, {})[condition, metric] = number
    curve = lambda levels: np.asarray([levels[i] for i in range(len(levels))])
    curves = {name: {key: curve(levels) for key, levels in levels_of.items()} for name, levels_of in points.items()}
    return {name: Measured(values.get(name, {}), curves.get(name, {}), pictures[name]) for name in pictures}


def draw(folder: Path, series: Series) -> None:
    """Draw those of the three figures that can be drawn; existing files are replaced."""
    if rows := picture_rows(series):
        figures.grid(folder / "attributions.png", rows)
    if panels := curve_panels(series):
        figures.panels(
            folder / "curves.png", panels, x_label="share of pixels", y_label="probability of the true class"
        )
    if panels := similarity_panels(series):
        figures.panels(folder / "similarity.png", panels, x_label="radius ε, in 1/255 of the pixel range")


def picture_rows(series: Series) -> list[figures.Row]:
    """Of each label's first seed, under the first attack that kept pictures; all labels show the same images."""
    rows: list[figures.Row] = []
    for label, (measured, *_) in series.items():
        if not measured.pictures:
            continue
        attack = min(measured.pictures, key=lambda name: (not name.startswith("aam"), name))
        shown = measured.pictures[attack]
        if not rows:
            rows.append(figures.Row("input", shown["image"]))
        alike = [f"PCC {_pearson(*pair):.2f}" for pair in zip(shown["heatmap"], shown["attacked_heatmap"], strict=True)]
        rows += [
            figures.Row(f"{label}\nheat map", shown["heatmap"]),
            figures.Row(f"{label}\n{condition_title(attack)}", shown["attacked"]),
            figures.Row(f"{label}\nheat map after", shown["attacked_heatmap"], alike),
        ]
    return rows


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if a.min() == a.max() or b.min() == b.max():
        return 0.0  # as `metrics.pearson`
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def curve_panels(series: Series) -> dict[str, list[figures.Line]]:
    """A panel for insertion, deletion, and insertion in the order of an attacked map."""
    panels: dict[str, list[figures.Line]] = {}
    for label, seeds in series.items():
        for name in sorted(seeds[0].curves, key=lambda name: name.endswith("-insertion")):  # clean ones first
            points = np.stack([measured.curves[name] for measured in seeds])
            shares = np.arange(points.shape[1]) / points.shape[1]
            panels.setdefault(condition_title(name), []).append(_line(label, shares, points))
    return panels


def similarity_panels(series: Series) -> dict[str, list[figures.Line]]:
    """A panel for each perturbation of at least two radii and each of cosine, PCC and SSIM."""
    panels: dict[str, list[figures.Line]] = {}
    for label, seeds in series.items():
        radii: dict[tuple[str, str], list[float]] = {}
        for condition, metric in seeds[0].values:
            match = _RADIUS.fullmatch(condition)
            if match and metric in SHOWN:
                radii.setdefault((match[1], metric), []).append(float(match[2]))
        for (kind, metric), several in radii.items():
            if len(several) < 2:
                continue
            at = np.asarray(sorted(several))
            points = np.asarray([[one.values[f"{kind}-{radius:g}", metric] for radius in at] for one in seeds])
            title = f"{condition_title(f'{kind}-1').partition(' ε')[0]}, {metric_title(metric)}"
            panels.setdefault(title, []).append(_line(label, at, points))
    return panels


def _line(label: str, x: np.ndarray, points: np.ndarray) -> figures.Line:
    """The mean of (seeds, k) points, and their standard deviation where there are several."""
    spread = points.std(0, ddof=1) if len(points) > 1 else None
    return figures.Line(label, x, points.mean(0), spread)
