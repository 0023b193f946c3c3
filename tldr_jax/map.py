"""Who wins where: `python -m tldr_jax.map DIR --out FILE.png`, the figure of `configs/tldr/scenes_map.py`.

DIR is the folder of a sweep over pretraining, correlation and seed. Left, in every cell the method with the highest
worst-group accuracy, mean over the seeds: of all methods, and of those that are trained without images of known groups.
Right, what retraining on text gains over the classifier's own head, against the projector's R² and the head's
worst-group accuracy; a dot is a cell. The same numbers are printed as Markdown, ± standard deviation over the seeds.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from launch.processes import commands
from launch.reports import drawing, runs
from tldr_jax.results import method_title

STEPS, CORRELATION = "pretrain.duration", "data.correlation"
WITHOUT_GROUPS = ("erm", "zero_shot", "class_balanced", "afr", "tldr", "no_gap")
METHODS = (*WITHOUT_GROUPS[:4], "dfr", "projected_images", *WITHOUT_GROUPS[4:], "no_filters")
SHORT = {"erm": "ERM", "zero_shot": "CLIP", "class_balanced": "balanced", "afr": "AFR", "dfr": "DFR", "tldr": "TLDR"}
SHORT |= {"no_gap": "TLDR, no gap", "no_filters": "TLDR, no filters", "projected_images": "projected images"}
RIVALS = ("erm", "zero_shot", "class_balanced", "afr", "dfr", "tldr")  # a map has the methods, not their ablations

Cell = tuple[int, float]  # steps of pretraining, correlation
Values = Mapping[str, np.ndarray]  # key of a result -> (seeds,)


def read(folder: Path) -> dict[Cell, dict[str, np.ndarray]]:
    """The results of a finished sweep by cell, in the order of steps and correlation.

    Raises:
      ReportError: there is no run in the folder, or a member is not finished.
    """
    cells: dict[Cell, list[Mapping[str, float]]] = {}
    for run in (run for study in runs.read(folder) for run in study.compared):
        if run.status != runs.FINISHED:
            raise runs.ReportError(f"{run.path} is {run.status}; run the sweep's command again")
        cell = int(run.config[STEPS].removesuffix(" steps")), float(run.config[CORRELATION])
        cells.setdefault(cell, []).append(run.result)
    common = lambda results: [key for key in results[0] if all(key in result for result in results)]
    stack = lambda results: {key: np.array([result[key] for result in results]) for key in common(results)}
    return {cell: stack(cells[cell]) for cell in sorted(cells)}


def worst(values: Values, method: str) -> np.ndarray | None:
    """Worst-group accuracies of a method, (seeds,); None where the sweep did not measure it."""
    return values.get(f"{method}/wga")


def winner(values: Values, methods: Sequence[str]) -> str:
    """The method with the highest mean worst-group accuracy, of equals the first."""
    measured = [method for method in methods if worst(values, method) is not None]
    return max(measured, key=lambda method: float(np.mean(values[f"{method}/wga"])))


def table(cells: Mapping[Cell, Values]) -> str:
    """Markdown: a line for each cell, the projector's R² and all methods' worst-group accuracies."""
    methods = [method for method in METHODS if all(worst(values, method) is not None for values in cells.values())]
    spread = lambda v: f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else f"{v[0]:.3f}"
    lines = [f"| pretraining | correlation | R² | {' | '.join(map(method_title, methods))} |"]
    lines.append("|---:|---:|---:" + "|---:" * len(methods) + "|")
    for (steps, correlation), values in cells.items():
        best = winner(values, methods)
        shown = [spread(values[f"{method}/wga"]) for method in methods]
        shown = [f"**{text}**" if method == best else text for method, text in zip(methods, shown, strict=True)]
        quality = spread(1 - values["projector/nmse"])
        lines.append(f"| {steps:,} | {correlation:g} | {quality} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(path: Path, cells: Mapping[Cell, Values]) -> None:
    """Draw the two maps and the gain against R² and the worst-group accuracy of ERM."""
    figure = drawing.figure(13.2, 3.6)
    panels = figure.subplots(1, 4)
    rivals = [method for method in RIVALS if all(worst(values, method) is not None for values in cells.values())]
    without = [method for method in rivals if method in WITHOUT_GROUPS]
    _map(panels[0], cells, rivals, "all methods")
    _map(panels[1], cells, without, "no images of known groups")
    _gains(panels[2], cells, lambda values: float(np.mean(1 - values["projector/nmse"])), "projector's R²")
    _gains(panels[3], cells, lambda values: float(np.mean(values["erm/wga"])), "worst-group accuracy of ERM")
    panels[2].set_ylabel("gain in worst-group accuracy", fontsize=8)
    panels[3].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    drawing.write(path, figure)


def _map(panel, cells: Mapping[Cell, Values], methods: Sequence[str], title: str) -> None:
    steps, correlations = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    grid = np.full((len(correlations), len(steps)), np.nan)
    for (step, correlation), values in cells.items():
        best = winner(values, methods)
        row, column = correlations.index(correlation), steps.index(step)
        grid[row, column] = np.mean(values[f"{best}/wga"])
        style = dict(ha="center", va="center", fontsize=7, color="white" if grid[row, column] < 0.6 else "black")
        panel.text(column, row, f"{SHORT[best]}\n{grid[row, column]:.2f}", **style)
    panel.imshow(grid, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    panel.set_xticks(range(len(steps)), [f"{step:,}" for step in steps], fontsize=7)
    panel.set_yticks(range(len(correlations)), [f"{correlation:g}" for correlation in correlations], fontsize=7)
    panel.set_xlabel("steps of pretraining", fontsize=8)
    panel.set_ylabel("correlation", fontsize=8)
    panel.set_title(f"best: {title}", fontsize=9)


def _gains(panel, cells: Mapping[Cell, Values], against: Callable[[Values], float], title: str) -> None:
    x = [against(values) for values in cells.values()]
    for method, colour, marker in (("tldr", "#0072b2", "o"), ("afr", "#d55e00", "s"), ("dfr", "#009e73", "^")):
        if all(worst(values, method) is not None for values in cells.values()):
            gain = [float(np.mean(values[f"{method}/wga"] - values["erm/wga"])) for values in cells.values()]
            panel.scatter(x, gain, s=18, color=colour, marker=marker, label=SHORT[method])
    panel.set_xlabel(title, fontsize=8)
    panel.axhline(0, color="0.5", linewidth=0.8)
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.25, linewidth=0.6)


@commands.ending()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="the folder of the sweep")
    parser.add_argument("--out", type=Path, default=Path("map.png"), help="the figure")
    options = parser.parse_args(argv)
    cells = read(options.dir)
    draw(options.out, cells)
    print(table(cells))


if __name__ == "__main__":
    main()
