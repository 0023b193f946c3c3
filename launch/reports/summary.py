"""What runs differ in, and their results as mean ± standard deviation over seeds."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.reports.runs import FINISHED, Found, ReportError

ABSENT = None  # the value of a key that a config does not have
HEADLINE = 8  # how many metrics a table of settings shows
_COUNTS = {"examples", "nonfinite", "step", "steps", "epoch", "epochs", "count", "seconds", "time"}
_LOWER = {
    *("loss", "entropy", "error", "mse", "mae", "rmse", "perplexity", "distance", "divergence"),
    *("max_sensitivity", "average_sensitivity", "relative_input_stability", "lipschitz", "infidelity"),
}
_HIGHER = {
    *("accuracy", "acc", "wga", "balanced", "auc", "auroc", "recall", "precision", "f1", "map", "mrr", "ndcg", "iou"),
    *("cosine", "pcc", "spearman", "kendall", "ssim", "psnr", "similarity"),
}
# what says that a number is one for an attacker, or a difference without a good side
_UNCLEAR = {"target", "change", "gap"}
_RANKS = {"test": 0, "val": 2, "train": 3}
# among the metrics of one group, which to show first
_TELLING = ("wga", "recall", "map", "pcc", "cosine", "ssim", "accuracy", "area", "loss", "entropy")


@dataclass(frozen=True)
class Choice:
    """What the reader asks for: regular expressions, searched for in the names of metrics.

    Attributes:
      metrics: the columns of tables of settings, in this order; () leaves the choice to `headline`.
      higher, lower: where a higher or a lower value is better, before what `direction` knows.
    """

    metrics: tuple[str, ...] = ()
    higher: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()


DEFAULT = Choice()


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seed.

    Attributes:
      values: of the swept keys; ABSENT where the config lacks one.
      members: the runs, finished or not.
    """

    values: Mapping[str, Any]
    members: tuple[Found, ...]

    @property
    def finished(self) -> list[Found]:
        return [member for member in self.members if member.status == FINISHED]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over `count` seeds; std is NaN for fewer than two, the mean for none."""

    mean: float
    std: float
    count: int


def is_seed(key: str) -> bool:
    """Whether a config key only seeds randomness."""
    return key.rpartition(".")[2] == "seed"


def swept(members: Iterable[Found], first: Sequence[str] = ()) -> tuple[str, ...]:
    """The config keys in which runs differ, seeds and the experiment's name left out.

    Args:
      members: the runs.
      first: keys that come first, if they are among them.
    """
    configs = [member.config for member in members]
    keys = dict.fromkeys([*first, *(key for config in configs for key in config)])
    absent = object()

    def differs(key: str) -> bool:
        return len({_exact(seedless(config[key])) if key in config else absent for config in configs}) > 1

    return tuple(key for key in keys if not is_seed(key) and key != "experiment" and differs(key))


def settings(members: Iterable[Found], keys: Sequence[str], own: Found | None = None) -> list[Setting]:
    """Runs grouped by their values of the swept keys, in the order of these.

    An absent value comes first, then numbers, then texts, in the order that the run around them lists them in (a
    comparison has such a list in its config), or else as they came.
    """
    value = lambda member, key: seedless(member.config.get(key, ABSENT))
    groups: dict[tuple, list[Found]] = {}
    for member in members:
        groups.setdefault(tuple(_exact(value(member, key)) for key in keys), []).append(member)
    found = [Setting({key: value(group[0], key) for key in keys}, tuple(group)) for group in groups.values()]
    lists = [value for value in own.config.values() if isinstance(value, list)] if own else []
    ranks = {key: _ranks([setting.values[key] for setting in found], lists) for key in keys}
    return sorted(found, key=lambda setting: [ranks[key][_exact(setting.values[key])] for key in keys])


def levels(found: Sequence[Setting], key: str) -> list[Any]:
    """The values of a key over all settings, each once, in the order of `settings`."""
    values = list({_exact(setting.values[key]): setting.values[key] for setting in found}.values())
    ranks = _ranks(values, [])
    return sorted(values, key=lambda value: ranks[_exact(value)])


def _ranks(values: Sequence[Any], lists: Sequence[list]) -> dict[str, tuple]:
    texts = [_exact(value) for value in values if value is not ABSENT and not is_number(value)]
    exact_lists = (list(map(_exact, known)) for known in lists)
    order = next((known for known in exact_lists if set(texts) <= set(known)), texts)
    ranks = {}
    for value in values:
        exact = _exact(value)
        ranks[exact] = (0, 0) if value is ABSENT else (1, value) if is_number(value) else (2, order.index(exact))
    return ranks


def seedless(value: Any) -> Any:
    """A text without the seed in it: runs that go on from "phi-seed0" and "phi-seed1" differ in their seed alone."""
    return re.sub(r"(seed[=_-]?)\d+", r"\1…", value) if isinstance(value, str) else value


def _exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def is_number(value: Any) -> bool:
    """Whether a config value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metrics_of(found: Iterable[Found]) -> list[str]:
    """All metrics of the results, each once, in their order."""
    return list(dict.fromkeys(key for member in found for key in member.result))


def spread(found: Iterable[Found], metric: str) -> Spread:
    """Over the runs that have the metric; a NaN among them makes both mean and std NaN."""
    values = [member.result[metric] for member in found if metric in member.result]
    mean = float(np.mean(values)) if values else math.nan
    return Spread(mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def is_count(metric: str) -> bool:
    """Whether a metric only counts what was measured or how long it took."""
    return bool(_words(metric) & _COUNTS)


def direction(metric: str, choice: Choice = DEFAULT) -> int:
    """1 where a higher value is better, -1 where a lower one is, 0 where the name does not say."""
    for sign, patterns in ((1, choice.higher), (-1, choice.lower)):
        if any(re.search(pattern, metric) for pattern in patterns):
            return sign
    words = _words(metric)
    if is_count(metric) or words & _UNCLEAR:
        return 0
    if words & _LOWER:
        return -1
    if "area" in words:  # under a curve of pixels put in, or taken out
        return 1 if "insertion" in metric else -1 if "deletion" in metric else 0
    return 1 if words & _HIGHER else 0


def _words(metric: str) -> set[str]:
    """A metric's own name and its words: "gradient/aam-8/target_pcc" -> {"target_pcc", "target", "pcc"}."""
    name = metric.rpartition("/")[2].lower()
    return {name, *re.split(r"[^a-z0-9]+", name)}


def best(spreads: Sequence[Spread], sign: int) -> set[int]:
    """The places of the best mean, several if they are equal; none if there is nothing to choose from."""
    known = {at: sign * cell.mean for at, cell in enumerate(spreads) if math.isfinite(cell.mean)}
    if not sign or len(known) < 2 or len(set(known.values())) == 1:
        return set()
    return {at for at, value in known.items() if value == max(known.values())}


def telling_apart(found: Iterable[Setting], metrics: Sequence[str]) -> list[str]:
    """The metrics whose means are not the same in all settings; all of them, if none is."""
    finished = [setting.finished for setting in found if setting.finished]
    means = {metric: {repr(spread(runs, metric).mean) for runs in finished} for metric in metrics}
    return [metric for metric in metrics if len(means[metric]) > 1] or list(metrics)


def asked_for(metrics: Sequence[str], choice: Choice) -> list[str]:
    """Those of the metrics that `choice` names, in its order."""
    return list(dict.fromkeys(m for pattern in choice.metrics for m in metrics if re.search(pattern, m)))


def headline(metrics: Sequence[str], choice: Choice = DEFAULT, limit: int = HEADLINE) -> list[str]:
    """The metrics to show first: those asked for, or of every group ("test/…", "gradient/rps-8/…") the most telling.

    Raises:
      ReportError: none fits what is asked for.
    """
    if choice.metrics:
        found = asked_for(metrics, choice)
        if not found:
            there = ", ".join(metrics)
            raise ReportError(f"no metric fits {' or '.join(map(repr, choice.metrics))}; there are: {there}")
        return found
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        if not is_count(metric):
            groups.setdefault(metric.rpartition("/")[0], []).append(metric)
    turns = [
        (place, direction(metric, choice) == 0, _known_late(group), metric)
        for group, members in groups.items()
        for place, metric in enumerate(sorted(members, key=lambda m: _telling(m, choice)))
    ]
    return [metric for *_, metric in sorted(turns, key=lambda turn: turn[:3])[:limit]]


def _telling(metric: str, choice: Choice) -> tuple:
    words = _words(metric)
    rank = next((at for at, word in enumerate(_TELLING) if word in words), len(_TELLING))
    return direction(metric, choice) == 0, rank


def _known_late(group: str) -> int:
    """Test data before anything else, what was trained or chosen on last."""
    return next((rank for part, rank in _RANKS.items() if part in group.split("/")), 1)
