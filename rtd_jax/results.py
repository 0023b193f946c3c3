"""What the numbers of a result mean; see `launch.reports.metrics`."""

from typing import Any

from launch.reports.metrics import Metric, declare

WAYS = {
    "image": "image only",
    "text": "text only",
    "image_text": "image + text",
    "phi": "φ",
    "rtd": "φ + RTD",
    "oracle": "oracle: the target's caption",
}
BENCHMARKS = {"scenes": "Scenes", "cirr": "CIRR", "circo": "CIRCO", "fashioniq": "FashionIQ", "genecis": "GeneCIS"}


def task_title(name: str) -> str:
    """ "fashioniq/dress" -> "FashionIQ, dress"."""
    benchmark, _, part = name.partition("/")
    title = BENCHMARKS.get(benchmark, benchmark)
    return f"{title}, {part.replace('_', ' ')}" if part else title


def _retrieval() -> dict[str, Metric]:
    """The metrics of tasks, "TASK/WAY/METRIC"."""
    key = "{task:.+}/{way:image|text|image_text|phi|rtd|oracle}/"
    place: dict[str, Any] = dict(table="{task}", row="{way}", unit="%", digits=1)
    kinds = {
        "recall_at_{k:[0-9]+}": ("R@{k}", "share of queries whose target is among the first {k}"),
        "map_at_{k:[0-9]+}": ("mAP@{k}", "mean average precision of the first {k} over all right answers"),
        "subset_recall_at_{k:[0-9]+}": ("subset R@{k}", "recall at {k} among the reference's group of images"),
    }
    metrics: dict[str, Metric] = {}
    for pattern, (title, explanation) in kinds.items():
        metrics[key + pattern] = Metric(title, "up", help=explanation, level="main", **place)
    for pattern, (title, explanation) in kinds.items():
        unseen = f"{explanation}, in phrasings that RTD was not trained on"
        metrics[f"{key}unseen_{pattern}"] = Metric(f"{title}, unseen phrasing", "up", help=unseen, **place)
    for prefix, suffix in (("", ""), ("unseen_", ", unseen phrasing")):
        for edits, title in ((1, "one edit"), (2, "two edits")):
            title = f"R@1, {title}{suffix}"
            metrics[f"{key}{prefix}recall_at_1_edits_{edits}"] = Metric(title, "up", level="detail", **place)
    return metrics


def _missing() -> dict[str, Metric]:
    """How much of a benchmark was left out because images are missing."""
    place: dict[str, Any] = dict(table="{task}", row="images missing", digits=0, level="main")
    return {
        "{task:.+}/missing/images": Metric("images left out", help="gallery images whose files are missing", **place),
        "{task:.+}/missing/queries": Metric("queries left out", help="queries that need one of them", **place),
    }


def _training(stage: str, title: str) -> dict[str, Metric]:
    """Validation of a training on its own held-back examples."""
    place: dict[str, Any] = dict(table="Training", condition=title)
    return {
        f"{stage}/val/recall": Metric("validation R@1", "up", "%", 1, **place),
        f"{stage}/val/recall_at_10": Metric("validation R@10", "up", "%", 1, **place),
        f"{stage}/val/cosine": Metric("validation cosine", "up", digits=3, **place),
        f"{stage}/best_step": Metric("best step", level="detail", digits=0, **place),
    }


describe = declare(
    {**_retrieval(), **_missing(), **_training("phi", "φ"), **_training("rtd", "RTD")},
    names={"way": WAYS, "task": task_title},
    references={"way": ["oracle"]},
)
