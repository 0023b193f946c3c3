"""What runs differ in, and their results as mean ± standard deviation over seeds."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.reports import metrics
from launch.reports.metrics import Meaning, Metric
from launch.reports.numbers import Spread, cut, exact, is_number, short, spread
from launch.reports.runs import FINISHED, ReportError, RunRecord, Study

ABSENT = None  # the value of a key that a config does not have
KEYS = 6  # swept keys that have room as columns; with more of them a table names the runs instead
HEADLINE = 8  # how many metrics an overview shows, unless the experiment or the reader chooses
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class MetricChoice:
    """What the reader asks for: regular expressions, searched for in the keys of metrics."""

    metrics: tuple[str, ...] = ()  # the columns of overviews, in this order; () leaves the choice to `headline`
    higher: tuple[str, ...] = ()  # of these higher values are better, whatever the experiment declares
    lower: tuple[str, ...] = ()

    def applied(self, meaning: Meaning) -> Meaning:
        """The meaning of keys with the directions that the reader asks for."""

        def of(key: str) -> Metric:
            up, down = (any(re.search(p, key) for p in patterns) for patterns in (self.higher, self.lower))
            metric = meaning(key)
            return dataclasses.replace(metric, direction="up" if up else "down") if up or down else metric

        return of


DEFAULT = MetricChoice()


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seeds."""

    values: Mapping[str, Any]  # of the swept keys; ABSENT where the config lacks one
    members: tuple[RunRecord, ...]  # finished or not
    label: str = ""  # the setting in few words: "l2_cosine", "cosine_weight=0.1, radius=4"

    @property
    def finished(self) -> list[RunRecord]:
        return [member for member in self.members if member.status == FINISHED]

    @property
    def overridden(self) -> dict[str, Any]:
        """What a sweep set for this setting, other than seeds."""
        return {key: value for key, value in (self.members[0].overrides or {}).items() if not is_seed(key)}

    @property
    def names(self) -> str:
        """The names of its runs."""
        names = [member.name for member in self.members]
        return ", ".join(names[:2]) + (f", … ({len(names)} runs)" if len(names) > 2 else "")


def spread_of(members: Sequence[RunRecord], key: str) -> Spread:
    """A metric over runs; runs without the key miss a value, unless all of them do."""
    present = any(key in member.result for member in members)
    return spread([member.result.get(key) for member in members] if present else [])


@dataclass(frozen=True)
class StudyResults:
    """A study with its runs grouped into settings: what tables, drawings and files are made from."""

    study: Study
    swept: tuple[str, ...]  # the config keys in which the runs differ
    settings: tuple[Setting, ...]
    meaning: Meaning  # of the keys of their results
    note: str = ""  # why the metrics have no titles and directions, one sentence

    @property
    def finished(self) -> list[Setting]:
        return [setting for setting in self.settings if setting.finished]


def group(study: Study, choice: MetricChoice = DEFAULT, untrusted: Path | None = None) -> StudyResults:
    """Group the runs of a study, and look up what its experiment declares; nothing is imported from `untrusted`."""
    keys = swept(study.compared, study.keys)
    describe, note = metrics.of_experiment(study.experiment, untrusted)
    meaning = choice.applied(metrics.meaning(describe))
    return StudyResults(study, keys, tuple(settings(study.compared, keys)), meaning, note)


def is_seed(key: str) -> bool:
    """Whether a config key only seeds randomness: "seed", "data.seed", "words.junk_seed"."""
    return re.split(r"[._]", key)[-1] == "seed"


def swept(members: Iterable[RunRecord], first: Sequence[str] = ()) -> tuple[str, ...]:
    """The config keys in which runs differ, those of `first` first, without seeds and the name of the experiment."""
    configs = [member.config for member in members]
    keys = dict.fromkeys([*first, *(key for config in configs for key in config)])
    texts = {key: {exact(config[key]) if key in config else "" for config in configs} for key in keys}
    return tuple(key for key in keys if not is_seed(key) and key != "experiment" and len(texts[key]) > 1)


def settings(members: Iterable[RunRecord], keys: Sequence[str]) -> list[Setting]:
    """Runs grouped by their values of the swept keys.

    Runs in which the same keys were set stand in the order of their values: absent ones first, then numbers, then
    texts as they came. Ablations, each of which sets other keys, stay in the order of the sweep.
    """
    groups: dict[tuple, list[RunRecord]] = {}
    for member in members:
        groups.setdefault(tuple(exact(member.config.get(key, ABSENT)) for key in keys), []).append(member)
    grouped = [Setting({key: runs[0].config.get(key, ABSENT) for key in keys}, tuple(runs)) for runs in groups.values()]
    if is_grid(grouped):
        places = {key: [exact(value) for value in levels(grouped, key)] for key in keys}
        grouped.sort(key=lambda setting: [places[key].index(exact(setting.values[key])) for key in keys])
    labels = [_label(setting, keys, grouped) for setting in grouped]
    unique = [label if labels.count(label) == 1 else at.names for label, at in zip(labels, grouped, strict=True)]
    return [dataclasses.replace(setting, label=label) for setting, label in zip(grouped, unique, strict=True)]


def is_grid(settings: Sequence[Setting]) -> bool:
    """Whether all settings set the same keys, so that a column per key shows them; always true outside of a sweep."""
    return len({frozenset(setting.overridden) for setting in settings}) < 2


def levels(settings: Sequence[Setting], key: str) -> list[Any]:
    """The values of a key over all settings, each once, in the order of `settings`."""
    values = {exact(setting.values[key]): setting.values[key] for setting in settings}.values()
    return sorted(values, key=lambda value: (0, 0) if value is ABSENT else (1, value) if is_number(value) else (2, 0))


def _label(setting: Setting, keys: Sequence[str], settings: Sequence[Setting]) -> str:
    """A setting in few words: the values that tell it apart, or the names of its runs."""
    shown: Mapping[str, Any] = setting.values
    if not is_grid(settings):
        shown = setting.overridden
        keys = list(dict.fromkeys([*keys, *(key for other in settings for key in other.overridden)]))
        if not shown:
            return "as configured"
    if not shown or len(shown) > KEYS:
        return setting.names
    if len(keys) == 1 and not any(is_number(other.values.get(keys[0])) for other in settings):
        return cut(short(next(iter(shown.values()))))
    names = names_of(keys)
    return ", ".join(f"{names[key]}={cut(short(value))}" for key, value in shown.items())


def names_of(keys: Sequence[str]) -> dict[str, str]:
    """Keys by as many of their last parts as tell them apart: "optimizer.learning_rate" -> "learning_rate"."""

    def name(key: str) -> str:
        parts = key.split(".")
        shortest = 2 if parts[-1] == "name" else 1  # "name" alone says nothing
        ends = [".".join(parts[-n:]) for n in range(shortest, len(parts) + 1)]
        return next((end for end in ends if not any(k != key and f".{k}".endswith(f".{end}") for k in keys)), key)

    return {key: name(key) for key in keys}


def keys_of(members: Iterable[RunRecord]) -> list[str]:
    """All keys of the results, each once: as they came, but numbers in them in increasing order."""
    keys = dict.fromkeys(key for member in members for key in member.result)
    shapes: dict[str, int] = {}  # of every beginning of a key, without its numbers -> when it came first
    places = {}
    for key in keys:
        parts = key.split("/")
        heads = [_NUMBERS.sub("#", "/".join(parts[: depth + 1])) for depth in range(len(parts))]
        numbers = [[float(number) for number in _NUMBERS.findall(part)] for part in parts]
        places[key] = [(shapes.setdefault(head, len(shapes)), n) for head, n in zip(heads, numbers, strict=True)]
    return sorted(keys, key=lambda key: places[key])


def distinguishing(settings: Iterable[Setting], keys: Sequence[str]) -> list[str]:
    """The metrics whose means differ between settings; all of them if none does."""
    finished = [setting.finished for setting in settings if setting.finished]
    means = {key: {repr(spread_of(members, key).mean) for members in finished} for key in keys}
    return [key for key in keys if len(means[key]) > 1] or list(keys)


def chosen(keys: Sequence[str], choice: MetricChoice) -> list[str]:
    """The metrics that `choice` names, in its order."""
    return list(dict.fromkeys(key for pattern in choice.metrics for key in keys if re.search(pattern, key)))


def headline(keys: Sequence[str], meaning: Meaning, choice: MetricChoice = DEFAULT, limit: int = HEADLINE) -> list[str]:
    """The metrics to show first: asked for, or declared as main, or the first `limit` that are no details.

    Of these, metrics with a better direction come first.

    Raises:
      ReportError: none matches what the reader asks for.
    """
    if choice.metrics:
        if asked := chosen(keys, choice):
            return asked
        patterns = " or ".join(map(repr, choice.metrics))
        raise ReportError(f"no metric matches {patterns}; valid metrics: {', '.join(keys)}")
    main, normal = ([key for key in keys if meaning(key).level == level] for level in ("main", "normal"))
    return main or sorted(normal, key=lambda key: not meaning(key).sign)[:limit]
