"""Results as Markdown: the methods of one run, or of many runs with mean and standard deviation."""

from collections.abc import Mapping, Sequence

import numpy as np

METRICS = {"wga": "WGA", "mean": "mean", "weighted_mean": "mean, training-weighted", "class_balanced": "class-balanced"}
TITLES = {
    "erm": "ERM",
    "zero_shot": "zero-shot CLIP",
    "class_balanced": "class-balanced last layer (validation images)",
    "afr": "AFR",
    "dfr": "DFR (validation images with groups)",
    "tldr": "TLDR, chosen by validation WGA",
    "tldr_class_balanced": "TLDR, chosen by class-balanced accuracy",
    "no_gap": "without the gap constraint",
    "no_clip_filter": "without the CLIP filter",
    "no_classifier_filter": "without the classifier filter",
    "no_filters": "without filters",
    "mlp_projector": "MLP projector",
}


def title(method: str) -> str:
    """A method's name as it is printed."""
    if method in TITLES:
        return TITLES[method]
    base = method.removesuffix("_class_balanced")
    return f"{TITLES.get(base, base)}, chosen by class-balanced accuracy" if base != method else method


def methods(result: Mapping[str, float]) -> list[str]:
    """The methods that a result has, in its order: those with a key "METHOD/wga"."""
    return [key.removesuffix("/wga") for key in result if key.endswith("/wga") and key.count("/") == 1]


def summary(results: Sequence[Mapping[str, float]]) -> str:
    """A row a method, a column a metric and a group; of several results mean ± standard deviation.

    Args:
      results: "METHOD/metric" -> value, the same keys in all.

    Raises:
      ValueError: results with different keys.
    """
    first = results[0]
    if any(result.keys() != first.keys() for result in results):
        raise ValueError("the results have different keys: they are of different methods or groups")
    names = methods(first)
    groups = [key.removeprefix(f"{names[0]}/group/") for key in first if key.startswith(f"{names[0]}/group/")]
    columns = [*METRICS.items(), *((f"group/{group}", group.replace("/", " on ")) for group in groups)]
    header = ["", *(shown for _, shown in columns)]
    cells = lambda name, key: spread([result[f"{name}/{key}"] for result in results])
    rows = [[title(name), *(cells(name, key) for key, _ in columns)] for name in names]
    return markdown(header, rows)


def grid(corner: str, cells: Mapping[tuple[str, str], Sequence[float | None]]) -> str:
    """(row, column) -> the values of many runs, as a table of `spread`s."""
    rows, columns = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    shown = {key: spread(values) for key, values in cells.items()}
    body = [[row, *(shown.get((row, column), "") for column in columns)] for row in rows]
    return markdown([corner, *columns], body)


def one_run(result: Mapping[str, float]) -> str:
    """The table of one run's methods, then its other numbers."""
    rest = [(key, f"{value:.4g}") for key, value in result.items() if key.split("/")[0] not in methods(result)]
    return summary([result]) + ("\n" + markdown(["", "value"], rest) if rest else "")


def spread(values: Sequence[float | None]) -> str:
    """ "0.612", or "0.612 ± 0.034" of several values (sample standard deviation).

    None is a run that has no value, because a filter left a list without words: "0.612 ± 0.034 (4 of 5)".
    """
    found = [value for value in values if value is not None]
    if not found:
        return f"none (0 of {len(values)})"
    shown = f"{np.mean(found):.3f}" + (f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else "")
    return shown + (f" ({len(found)} of {len(values)})" if len(found) < len(values) else "")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
