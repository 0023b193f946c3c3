"""Results as Markdown: all of one run, and what matters of several runs side by side."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

_TITLES = {"pcc": "PCC", "ssim": "SSIM", "mse": "MSE", "ssim_published": "SSIM (published)", "nonfinite": "not finite"}
_COUNTS = ("examples", "nonfinite", "best_step")
_COMPARED = ("cosine", "pcc", "ssim")
# the order of rows and columns; what is not here comes after, by name
_KINDS = ("rps", "aam", "top_k", "mass_center", "pgd", "random_sign", "insertion", "deletion", "-insertion")
_METRICS = (*_COMPARED, "ssim_published", "spearman", "top_k", "mse", "signed_cosine", "accuracy", "area")
_GROUP = re.compile(r"(?P<kind>.+?)-(?P<radius>[\d.e+-]*\d)(?P<curve>-insertion)?")


def title(metric: str) -> str:
    """A metric's name as it is printed: "target_pcc" -> "target PCC"."""
    before, target, name = metric.rpartition("target_")
    return target.replace("_", " ") + _TITLES.get(name, name.replace("_", " "))


def setting(group: str) -> str:
    """What a metric was measured under, as it is printed: "aam-8" -> "AAM ε=8", "aam-8-insertion" -> …"""
    found = _GROUP.fullmatch(group)
    if not found:
        return group.replace("_", " ")
    kind = {"rps": "RPS", "aam": "AAM"}.get(found["kind"], found["kind"].replace("_", " "))
    curve = "insertion, order of " if found["curve"] else ""
    return f"{curve}{kind} ε={found['radius']}"


def split(key: str) -> tuple[str, str, str] | None:
    """A key as (attribution, setting, metric); None for one that is of no attribution."""
    parts = tuple(key.split("/"))
    return parts if len(parts) == 3 else None


def ordered(result: Mapping[str, float]) -> dict[tuple[str, str, str], float]:
    """(attribution, setting, metric) -> value, in the order of tables: by attribution, setting, radius and metric."""
    found = {parts: value for key, value in result.items() if (parts := split(key))}
    attributions = list(dict.fromkeys(attribution for attribution, _, _ in found))

    def place(parts: tuple[str, str, str]):
        attribution, group, metric = parts
        match = _GROUP.fullmatch(group)
        kind, radius, curve = match.group("kind", "radius", "curve") if match else (group, "0", None)
        of_metric = _rank(_METRICS, metric), metric in _COUNTS, metric
        return attributions.index(attribution), _rank(_KINDS, curve or kind), kind, float(radius), of_metric

    return {parts: found[parts] for parts in sorted(found, key=place)}


def _rank(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _number(key: str, value: float) -> str:
    if np.isnan(value):
        return "nan"
    return f"{value:.0f}" if key.split("/")[-1] in _COUNTS else f"{value:.4g}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- |", "|---|").replace(" --- |", "---|")


def one_run(result: Mapping[str, float]) -> str:
    """Every number of a result: those of the network, then a table for each kind of measurement of its attributions.

    Args:
      result: key -> value; keys of attributions are "gradient/rps-4/pcc".
    """
    plain = [
        (key.replace("/", " ").replace("_", " "), _number(key, value))
        for key, value in result.items()
        if split(key) is None
    ]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for (attribution, group, metric), value in ordered(result).items():
        rows.setdefault((attribution, group), {})[metric] = _number(metric, value)
    tables: dict[tuple[str, ...], list] = {}  # by their columns
    for (attribution, group), cells in rows.items():
        tables.setdefault(tuple(cells), []).append((attribution, group, cells))
    parts = [_markdown(("", "value"), plain)] if plain else []
    for columns, found in tables.items():
        header = ("attribution", "under", *map(title, columns))
        parts.append(_markdown(header, [(a, setting(g), *(cells[c] for c in columns)) for a, g, cells in found]))
    return "\n".join(parts)


def compared(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """What is compared, a row each, and a column a regulariser: mean ± standard deviation over its seeds.

    The rows are test accuracy, cosine, PCC and SSIM under every perturbation, accuracy under attack, the areas of
    curves, and all sensitivities.

    Args:
      results: regulariser -> one result a seed; all of them have the same keys.
    """
    keys = list(ordered(next(iter(results.values()))[0]))
    several = len({attribution for attribution, _, _ in keys}) > 1
    labels = {"test/accuracy": "accuracy"} | {"/".join(key): _row(*key, several) for key in keys}
    rows = [
        (label, *(_spread([result[key] for result in found]) for found in results.values()))
        for key, label in labels.items()
        if label
    ]
    return _markdown(("", *results), rows)


def _row(attribution: str, group: str, metric: str, name_attribution: bool) -> str:
    """The row label of a key; "" if it has no row."""
    if metric in _COUNTS:
        return ""
    kind = group.split("-")[0]
    wanted = metric in _COMPARED or metric == "area" or kind == "sensitivity"
    wanted |= metric == "accuracy" and kind != "rps"
    prefix = f"{attribution}: " if name_attribution else ""
    return f"{prefix}{setting(group)}, {title(metric)}" if wanted else ""


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
