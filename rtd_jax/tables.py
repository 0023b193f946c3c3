"""Results as Markdown: a row for every way of making queries, a column for every metric."""

from collections.abc import Mapping, Sequence

import numpy as np

TITLES = {
    "image": "image only",
    "text": "text only",
    "image_text": "image + text",
    "phi": "φ",
    "rtd": "φ + RTD",
    "oracle": "oracle: the target's caption",
}


def metric_title(metric: str) -> str:
    """ "unseen_recall_at_1" -> "R@1, unseen phrasing"."""
    unseen = metric.startswith("unseen_")
    name = metric.removeprefix("unseen_")
    subset = name.startswith("subset_")
    name = name.removeprefix("subset_").replace("recall_at_", "R@").replace("map_at_", "mAP@")
    name = name.replace("_edits_1", ", one edit").replace("_edits_2", ", two edits")
    return f"{'subset ' if subset else ''}{name}{', unseen phrasing' if unseen else ''}"


def by_task(result: Mapping[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """ "TASK/ROW/METRIC" keys as task -> row -> metric -> value, rows in the order of `TITLES`, others after them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in result.items():
        parts = key.rsplit("/", 2)
        if len(parts) == 3:
            found.setdefault(parts[0], {}).setdefault(parts[1], {})[parts[2]] = value
    order = list(TITLES)
    place = lambda row: order.index(row) if row in TITLES else len(order)
    return {task: {row: rows[row] for row in sorted(rows, key=place)} for task, rows in found.items()}


def one_run(result: Mapping[str, float]) -> str:
    """All tasks of a result, a table each; other values in one more."""
    parts = []
    tasks = by_task(result)
    for task, rows in tasks.items():
        cells = {row: {metric: [value] for metric, value in values.items()} for row, values in rows.items()}
        parts.append(_table(task, cells))
    rest = {key: value for key, value in result.items() if len(key.rsplit("/", 2)) < 3}
    if rest:
        lines = [f"| {key.replace('/', ' ').replace('_', ' ')} | {value:.4g} |" for key, value in rest.items()]
        parts.append("\n".join(["| | value |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


def over_seeds(rows: Mapping[str, Sequence[Mapping[str, float]]], task: str) -> str:
    """Rows of a task, mean ± standard deviation over seeds.

    Args:
      rows: title -> metric -> value, one mapping a seed.
      task: its name, for the corner.
    """
    shown = lambda seeds: [metric for metric in seeds[0] if "_edits_" not in metric]  # those are in the members' tables
    cells = {row: {metric: [seed[metric] for seed in seeds] for metric in shown(seeds)} for row, seeds in rows.items()}
    return _table(task, cells)


def _table(task: str, cells: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    metrics = list(dict.fromkeys(metric for values in cells.values() for metric in values))
    lines = [f"| {task} | {' | '.join(map(metric_title, metrics))} |", "|---" * (1 + len(metrics)) + "|"]
    for row, values in cells.items():
        shown = [_spread(values[metric]) if metric in values else "" for metric in metrics]
        lines.append(f"| {TITLES.get(row, row)} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"
