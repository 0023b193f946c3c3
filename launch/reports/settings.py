"""What runs differ in, and their results as mean ± standard deviation over seeds."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.reports import metrics
from launch.reports.metrics import Meaning, Metric
from launch.reports.numbers import Spread, cut, exact, is_number, spread
from launch.reports.records import FINISHED, ReportError, RunRecord
from launch.reports.runs import Study

ABSENT = None  # the value of a key that a config does not have
KEYS = 6  # swept keys that have room as columns; with more of them a table names the runs instead
HEADLINE = 8  # how many metrics an overview shows, unless the experiment or the reader chooses
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class MetricChoice:
    """What the reader asks for: regular expressions, searched for in the keys of metrics.

    Attributes:
      metrics: the columns of overviews, in this order; () leaves the choice to `headline`.
      higher, lower: metrics of which higher or lower values are better, whatever the experiment declares.
    """

    metrics: tuple[str, ...] = ()
    higher: tuple[str, ...] = ()
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
    """Runs that differ in nothing but their seeds.

    Attributes:
      values: of the swept keys; ABSENT where the config lacks one.
      members: the runs, finished or not.
      label: the setting in few words: "l2_cosine", "cosine_weight=0.1, radius=4".
    """

    values: Mapping[str, Any]
    members: tuple[RunRecord, ...]
    label: str = ""

    @property
    def finished(self) -> list[RunRecord]:
        return [member for member in self.members if member.status == FINISHED]


def spread_of(members: Sequence[RunRecord], key: str) -> Spread:
    """A metric over runs; runs without the key miss a value, unless all of them do."""
    present = any(key in member.result for member in members)
    return spread([member.result.get(key) for member in members] if present else [])


@dataclass(frozen=True)
class StudyResults:
    """A study with its runs grouped into settings: what tables, drawings and files are made from.

    Attributes:
      study: the runs.
      swept: the config keys in which they differ.
      settings: the runs that differ in nothing but their seeds.
      meaning: of the keys of their results.
      note: why the metrics have no titles and directions, one sentence, or "".
    """

    study: Study
    swept: tuple[str, ...]
    settings: tuple[Setting, ...]
    meaning: Meaning
    note: str = ""


def group(study: Study, choice: MetricChoice = DEFAULT, untrusted: Path | None = None) -> StudyResults:
    """Group the runs of a study, and look up what its experiment declares of its metrics.

    Args:
      study: the runs.
      choice: what the reader asks for.
      untrusted: a folder from which no experiment is imported.
    """
    keys = swept(study.compared, study.keys)
    describe, note = metrics.of_experiment(study.experiment, untrusted)
    meaning = choice.applied(metrics.meaning(describe))
    return StudyResults(study, keys, tuple(settings(study.compared, keys)), meaning, note)


# -- settings -------------------------------------------------------------------------------------------------------


def is_seed(key: str) -> bool:
    """Whether a config key only seeds randomness: "seed", "data.seed", "words.junk_seed"."""
    return key.rpartition(".")[2].rpartition("_")[2] == "seed"


def swept(members: Iterable[RunRecord], first: Sequence[str] = ()) -> tuple[str, ...]:
    """The config keys in which runs differ, without seeds and the name of the experiment.

    Args:
      members: the runs.
      first: keys that come first, if they are among them.
    """
    configs = [member.config for member in members]
    keys = dict.fromkeys([*first, *(key for config in configs for key in config)])
    absent = object()

    def differs(key: str) -> bool:
        return len({exact(config[key]) if key in config else absent for config in configs}) > 1

    return tuple(key for key in keys if not is_seed(key) and key != "experiment" and differs(key))


def settings(members: Iterable[RunRecord], keys: Sequence[str]) -> list[Setting]:
    """Runs all_settings by their values of the swept keys.

    Runs in which the same keys were set stand in the order of their values: absent ones first, then numbers, then
    texts as they came. Ablations, each of which sets other keys, stay in the order of the sweep.
    """
    groups: dict[tuple, list[RunRecord]] = {}
    for member in members:
        groups.setdefault(tuple(exact(member.config.get(key, ABSENT)) for key in keys), []).append(member)
    all_settings = [
        Setting({key: group[0].config.get(key, ABSENT) for key in keys}, tuple(group)) for group in groups.values()
    ]
    if is_grid(all_settings):
        ranks = {key: _ranks([setting.values[key] for setting in all_settings]) for key in keys}
        all_settings.sort(key=lambda setting: [ranks[key][exact(setting.values[key])] for key in keys])
    labels = [_label(setting, keys, all_settings) for setting in all_settings]
    unique = [label if labels.count(label) == 1 else _names(at) for label, at in zip(labels, all_settings, strict=True)]
    return [dataclasses.replace(setting, label=label) for setting, label in zip(all_settings, unique, strict=True)]


def is_grid(all_settings: Sequence[Setting]) -> bool:
    """Whether all settings set the same keys, so that a column per key shows them; always true outside of a sweep."""
    return len({frozenset(_overridden(setting)) for setting in all_settings}) < 2


def levels(all_settings: Sequence[Setting], key: str) -> list[Any]:
    """The values of a key over all settings, each once, in the order of `settings`."""
    values = list({exact(setting.values[key]): setting.values[key] for setting in all_settings}.values())
    ranks = _ranks(values)
    return sorted(values, key=lambda value: ranks[exact(value)])


def _ranks(values: Sequence[Any]) -> dict[str, tuple]:
    texts = [exact(value) for value in values if value is not ABSENT and not is_number(value)]
    ranks = {}
    for value in values:
        text = exact(value)
        ranks[text] = (0, 0) if value is ABSENT else (1, value) if is_number(value) else (2, texts.index(text))
    return ranks


def _overridden(setting: Setting) -> list[str]:
    """The keys, other than seeds, that a sweep set for this setting."""
    return [key for key in setting.members[0].overrides or {} if not is_seed(key)]


def _label(setting: Setting, keys: Sequence[str], all_settings: Sequence[Setting]) -> str:
    """A setting in few words: the values that tell it apart, or the names of its runs."""
    shown = {key: setting.values[key] for key in keys}
    if not is_grid(all_settings):
        overrides = setting.members[0].overrides or {}
        shown = {key: overrides[key] for key in _overridden(setting)}
        if not shown:
            return "as configured"
        keys = list(dict.fromkeys([*keys, *(key for other in all_settings for key in _overridden(other))]))
    if not shown or len(shown) > KEYS:
        return _names(setting)
    if len(keys) == 1 and not any(is_number(other.values.get(keys[0])) for other in all_settings):
        return cut(next(iter(shown.values())))
    names = names_of(keys)
    return ", ".join(f"{names[key]}={cut(value)}" for key, value in shown.items())


def _names(setting: Setting) -> str:
    names = [member.name for member in setting.members]
    return ", ".join(names[:2]) + (f", … ({len(names)} runs)" if len(names) > 2 else "")


def names_of(keys: Sequence[str]) -> dict[str, str]:
    """Keys by as many of their last parts as tell them apart: "optimizer.learning_rate" -> "learning_rate"."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        unique = (end for end in ends if not any(k != key and f".{k}".endswith(f".{end}") for k in keys))
        name = next(unique, key)
        names[key] = ".".join(parts[-2:]) if name == "name" else name  # "name" alone says nothing
    return names


# -- metrics --------------------------------------------------------------------------------------------------------


def keys_of(members: Iterable[RunRecord]) -> list[str]:
    """All keys of the results, each once: as they came, but numbers in them in increasing order.

    "gradient/rps-16/pcc" comes after "gradient/rps-4/pcc", wherever a result has them.
    """
    keys = list(dict.fromkeys(key for member in members for key in member.result))
    shapes: dict[str, int] = {}
    for key in keys:
        parts = key.split("/")
        for depth in range(len(parts)):
            shapes.setdefault(_shape("/".join(parts[: depth + 1])), len(shapes))

    def place(key: str) -> list[tuple]:
        parts = key.split("/")
        heads = [_shape("/".join(parts[: depth + 1])) for depth in range(len(parts))]
        return [
            (shapes[head], [float(n) for n in _NUMBERS.findall(part)]) for head, part in zip(heads, parts, strict=True)
        ]

    return sorted(keys, key=place)


def _shape(text: str) -> str:
    return _NUMBERS.sub("#", text)


def distinguishing(all_settings: Iterable[Setting], keys: Sequence[str]) -> list[str]:
    """The metrics whose means differ between settings; all of them if none does."""
    finished = [setting.finished for setting in all_settings if setting.finished]
    means = {key: {repr(spread_of(members, key).mean) for members in finished} for key in keys}
    return [key for key in keys if len(means[key]) > 1] or list(keys)


def chosen(keys: Sequence[str], choice: MetricChoice) -> list[str]:
    """Those of the metrics that `choice` names, in its order."""
    return list(dict.fromkeys(key for pattern in choice.metrics for key in keys if re.search(pattern, key)))


def headline(keys: Sequence[str], meaning: Meaning, choice: MetricChoice = DEFAULT, limit: int = HEADLINE) -> list[str]:
    """The metrics to show first.

    Those that the reader asks for; or those that the experiment declares as main; or the first `limit`, those with a
    better direction first, counts and other details never.

    Raises:
      ReportError: none fits what the reader asks for.
    """
    if choice.metrics:
        asked = chosen(keys, choice)
        if not asked:
            patterns = " or ".join(map(repr, choice.metrics))
            raise ReportError(f"no metric fits {patterns}; valid metrics: {', '.join(keys)}")
        return asked
    of = {key: meaning(key) for key in keys}
    main = [key for key in keys if of[key].level == "main"]
    normal = [key for key in keys if of[key].level == "normal"]
    return main or sorted(normal, key=lambda key: not of[key].sign)[:limit]
