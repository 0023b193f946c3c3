"""The figures of runs that are evaluated: drawn from their results and artifacts by `robustgrad_jax.figures`.

Three files, each if there is what it shows: `attributions.png` (inputs, heat maps, attacked inputs and their heat
maps), `curves.png` (insertion and deletion) and `similarity.png` (similarity against ε).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustgrad_jax import figures, tables
from robustgrad_jax.measures.suite import FOLDER

SHOWN = ("cosine", "pcc", "ssim")  # the similarities against ε
_INSERTIONS = r"insertion|deletion|.+-insertion"


@dataclass(frozen=True)
class Measured:
    """One attribution of one evaluated network.

    Attributes:
      path: of the run directory.
      result: the run's.
      attribution: its name, as in the result's keys.
    """

    path: Path
    result: Mapping[str, float]
    attribution: str

    @property
    def folder(self) -> Path:
        return self.path / "artifacts" / FOLDER / self.attribution

    def values(self) -> dict[tuple[str, str], float]:
        """(setting, metric) -> value."""
        found = tables.ordered(self.result).items()
        return {(group, metric): value for (name, group, metric), value in found if name == self.attribution}


Series = Mapping[str, Sequence[Measured]]  # label -> one a seed


def attributions_of(result: Mapping[str, float]) -> list[str]:
    """The attributions that a result has numbers of, in its order."""
    return list(dict.fromkeys(name for name, _, _ in tables.ordered(result)))


def of_run(path: Path, result: Mapping[str, float]) -> None:
    """One run's figures, in its artifacts/figures/: a line or three rows an attribution."""
    draw(path / "artifacts" / "figures", {name: [Measured(path, result, name)] for name in attributions_of(result)})


def side_by_side(folder: Path, results: Mapping[str, Sequence[tuple[Path, Mapping[str, float]]]]) -> None:
    """The figures of several regularisers, in a folder an attribution.

    Args:
      folder: to draw in.
      results: regulariser -> (run directory, result) one a seed.
    """
    first = next(iter(results.values()))[0][1]
    for name in attributions_of(first):
        draw(folder / name, {label: [Measured(*run, name) for run in runs] for label, runs in results.items()})


def draw(folder: Path, series: Series) -> None:
    """Whatever of the three figures can be drawn; files that are there already are replaced."""
    if rows := picture_rows(series):
        figures.grid(folder / "attributions.png", rows)
    if panels := curve_panels(series):
        figures.panels(
            folder / "curves.png", panels, x_label="share of pixels", y_label="probability of the true class"
        )
    if panels := similarity_panels(series):
        figures.panels(folder / "similarity.png", panels, x_label="radius ε, in 1/255 of the pixel range")


def picture_rows(series: Series) -> list[figures.Row]:
    """Of each label's first seed, under the first attack that kept its pictures; all labels show the same images."""
    rows = []
    for label, (measured, *_) in series.items():
        files = sorted(measured.folder.glob("*.npz"), key=lambda file: (not file.name.startswith("aam"), file.name))
        if not files:
            continue
        with np.load(files[0], allow_pickle=False) as file:
            found = dict(file)
        if not rows:
            rows.append(figures.Row("input", found["image"]))
        alike = [f"PCC {_pearson(*pair):.2f}" for pair in zip(found["heatmap"], found["attacked_heatmap"], strict=True)]
        attack = tables.setting(files[0].stem)
        rows += [
            figures.Row(f"{label}\nheat map", found["heatmap"]),
            figures.Row(f"{label}\n{attack}", found["attacked"]),
            figures.Row(f"{label}\nheat map after", found["attacked_heatmap"], alike),
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
        found = [_curves(measured) for measured in seeds]
        for name in found[0]:
            points = np.stack([curves[name] for curves in found])
            shares = np.arange(points.shape[1]) / points.shape[1]
            panels.setdefault(tables.setting(name), []).append(_line(label, shares, points))
    return panels


def _curves(measured: Measured) -> dict[str, np.ndarray]:
    """Name -> (levels,), from the artifacts, where the points of the curves are."""
    points: dict[str, dict[int, float]] = {}
    for file in sorted(measured.folder.glob("*.json"), key=lambda file: file.name != "curves.json"):
        for key, value in json.loads(file.read_text()).items():
            if match := re.fullmatch(rf"({_INSERTIONS})/(\d+)", key):
                points.setdefault(match[1], {})[int(match[2])] = np.nan if value is None else value
    return {name: np.asarray([values[i] for i in range(len(values))]) for name, values in points.items()}


def similarity_panels(series: Series) -> dict[str, list[figures.Line]]:
    """A panel for each perturbation of at least two radii and each of cosine, PCC and SSIM."""
    panels: dict[str, list[figures.Line]] = {}
    for label, seeds in series.items():
        values = [measured.values() for measured in seeds]
        radii: dict[tuple[str, str], list[float]] = {}
        for group, metric in values[0]:
            match = re.fullmatch(r"(.+?)-([\d.e+-]*\d)", group)
            if match and metric in SHOWN:
                radii.setdefault((match[1], metric), []).append(float(match[2]))
        for (kind, metric), found in radii.items():
            if len(found) < 2:
                continue
            at = np.asarray(sorted(found))
            points = np.asarray([[value[f"{kind}-{radius:g}", metric] for radius in at] for value in values])
            title = f"{tables.setting(f'{kind}-1').partition(' ε')[0]}, {tables.title(metric)}"
            panels.setdefault(title, []).append(_line(label, at, points))
    return panels


def _line(label: str, x: np.ndarray, points: np.ndarray) -> figures.Line:
    """The mean of (seeds, k) points, and their standard deviation where there are several."""
    spread = points.std(0, ddof=1) if len(points) > 1 else None
    return figures.Line(label, x, points.mean(0), spread)
