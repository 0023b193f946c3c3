"""What the numbers of a result mean: declared once by each experiment, read by every table, drawing and file.

An experiment's result is flat: {"erm/wga": 0.27, "gradient/rps-4/pcc": 0.99}. Its module offers

    describe(key: str) -> Metric | None

usually built by `declare` in `<package>/results.py` from a short table of key patterns:

    describe = declare(
        {
            "test/accuracy": Metric("test accuracy", "up", level="main"),
            "{attribution}/{condition}/pcc": Metric("PCC", "up", table="{attribution}", condition="{condition}"),
            "{method}/wga": Metric("WGA", "up", table="Methods", row="{method}", level="main"),
        },
        names={"method": {"erm": "ERM", "oracle": "upper bound"}, "condition": condition_name},
        references={"method": ["oracle"]},
    )

Tables then follow from the data. The keys of one table that share condition and row stand in one line, one column per
metric. Of several runs, every line becomes one line per setting: mean ± standard deviation over seeds.
"""

import dataclasses
import importlib
import importlib.util
import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

Direction = Literal["up", "down", "neither"]
Level = Literal["main", "normal", "detail"]


@dataclass(frozen=True)
class Metric:
    """The meaning of one number of a result, and its place in the tables.

    "main" metrics come first and are drawn over what a sweep varies; "detail" ones, such as counts, appear in the list
    of all metrics and in CSV files only. Rows under the same condition compete for the best value, but for references.
    """

    title: str  # what is measured: "PCC"
    direction: Direction = "neither"  # which values are better; "neither" for a number with no better direction
    unit: str = ""  # printed with the title: "%", "s"; values are printed as they are, never scaled
    digits: int | None = None  # decimals shown at least; None leaves them to the table
    table: str = ""  # title of the table that it belongs to; "" for the experiment's first, unnamed table
    condition: str = ""  # what it was measured under: "RPS ε=4"
    row: str = ""  # the method or variant, within one run, that was measured: "ERM"; "" if the run as a whole was
    column: str = ""  # heading of the column; "" takes `title`
    help: str = ""  # one sentence, shown on hover
    level: Level = "normal"
    reference: bool = False  # such as an upper bound
    order: int = 0  # the place of the column; `declare` counts patterns

    def __post_init__(self) -> None:
        for field, choices in (("direction", get_args(Direction)), ("level", get_args(Level))):
            value = getattr(self, field)
            if value not in choices:
                valid = ", ".join(map(repr, choices))
                raise ValueError(f"metric {self.title!r}: {field}={value!r} is unknown; valid values: {valid}")

    @property
    def sign(self) -> int:
        """1 where higher values are better, -1 where lower ones are, 0 otherwise."""
        return {"up": 1, "down": -1, "neither": 0}[self.direction]

    @property
    def heading(self) -> str:
        """The title of the column with its unit: "R@1 (%)"."""
        title = self.column or self.title
        return f"{title} ({self.unit})" if self.unit else title


class Describe(Protocol):
    """The declaration of an experiment: what a key of its results means, None for a key it does not know."""

    def __call__(self, key: str, /) -> Metric | None: ...


class Titles(Protocol):
    """From a part of a key to how it is printed: "aam-8" -> "AAM ε=8"."""

    def __call__(self, part: str, /) -> str: ...


class Meaning(Protocol):
    """What any key means; keys that nobody declared get a neutral `Metric`."""

    def __call__(self, key: str, /) -> Metric: ...


# what `launch.training` logs by itself
LOOP = {
    "train/loss": Metric("training loss", "down"),
    "train/steps_per_second": Metric("steps per second", "up", level="detail"),
    "train/examples_per_second": Metric("examples per second", "up", level="detail"),
    "train/flops_per_second": Metric("FLOP/s", "up", level="detail"),
    "train/peak_share": Metric("share of the peak rate", "up", level="detail"),
    "train/peak_memory": Metric("peak memory", "down", unit="GB", level="detail"),
    "train/gradient_norm": Metric("gradient norm"),
    "train/compile_seconds": Metric("compilation", unit="s", level="detail"),
}


def declare(
    metrics: Mapping[str, Metric],
    *,
    names: Mapping[str, Mapping[str, str] | Titles] | None = None,
    references: Mapping[str, Collection[str]] | None = None,
) -> Describe:
    """Build an experiment's `describe` from patterns of keys.

    Args:
      metrics: pattern -> metric. In a pattern, "{method}" stands for a part of the key without "/", and
        "{radius:[0-9.]+}" for a part that matches a regular expression. "{method}" in a text of the metric is replaced
        by what it stood for. The first pattern that matches a key counts, so put special ones first; the order of the
        patterns is the order of the columns.
      names: placeholder -> how its values are printed, as a mapping or a function; values without a name are printed
        with spaces for underscores.
      references: placeholder -> values whose metrics are references, see `Metric`.

    Raises:
      ValueError: a text uses a placeholder that its pattern lacks, or a pattern is not valid.
    """
    names, references = names or {}, references or {}
    patterns = [
        (_compiled(pattern, metric), dataclasses.replace(metric, order=at))
        for at, (pattern, metric) in enumerate(metrics.items())
    ]

    def describe(key: str) -> Metric | None:
        for pattern, metric in patterns:
            if match := pattern.fullmatch(key):
                parts = match.groupdict()
                reference = any(parts.get(name) in values for name, values in references.items())
                titles = {name: _title(names.get(name, {}), part) for name, part in parts.items()}
                texts = {name: getattr(metric, name).format(**titles) for name in _TEXTS}
                return dataclasses.replace(metric, **texts, reference=metric.reference or reference)
        return None

    return describe


def of_experiment(name: str, untrusted: Path | None = None) -> tuple[Describe | None, str]:
    """The declaration of an experiment by its dotted name, or None and the reason, one sentence.

    Without a declaration a report still shows every number, only without titles and directions.

    Args:
      name: as a config has it, perhaps one that came with somebody else's runs.
      untrusted: the folder of the runs, from which nothing is imported.
    """
    describe: Describe | None = None
    problem = f"{name} has no describe(key)"
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        problem = f"experiment {name!r} is not the name of a module"
    else:
        try:
            if untrusted and _lies_in(name.partition(".")[0], untrusted):
                problem = f"{name} lies among the runs and is not imported"
            else:
                describe = getattr(importlib.import_module(name), "describe", None)
        except Exception as error:  # a package that is not installed, or a broken one
            problem = f"{name} cannot be imported ({type(error).__name__}: {error})"
    return (describe, "") if callable(describe) else (None, f"{problem}: its metrics are shown under their keys")


def _lies_in(package: str, folder: Path) -> bool:
    """Whether a package would be imported from a folder."""
    spec = importlib.util.find_spec(package)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return any(place and Path(place).resolve().is_relative_to(folder.resolve()) for place in places)


def meaning(describe: Describe | None) -> Meaning:
    """What any key means: as declared, as the loop logs it, or a metric without a better direction.

    What the loop logs is known of every stage: the curve "train/loss" of a stage φ is shown as "phi/train/loss".
    """

    def of(key: str) -> Metric:
        stage, _, name = key.partition("/")
        known = describe(key) if describe else None
        if known is None and name in LOOP:
            return dataclasses.replace(LOOP[name], title=f"{stage}: {LOOP[name].title}")
        return known or LOOP.get(key) or Metric(key)

    return of


_TEXTS = ("title", "unit", "table", "condition", "row", "column", "help")


def _compiled(pattern: str, metric: Metric) -> re.Pattern[str]:
    """A pattern of keys as a regular expression with a group per placeholder."""
    parts, placeholders = [], set()
    for text, name, expression, _ in string.Formatter().parse(pattern):
        parts.append(re.escape(text))
        if name:
            parts.append(f"(?P={name})" if name in placeholders else f"(?P<{name}>{expression or '[^/]+?'})")
            placeholders.add(name)
    for field in _TEXTS:
        unknown = {name for _, name, _, _ in string.Formatter().parse(getattr(metric, field)) if name is not None}
        unknown -= placeholders
        if unknown:
            raise ValueError(
                f"pattern {pattern!r}: {field} uses {{{sorted(unknown)[0]}}}, which the pattern lacks; "
                f"it has: {', '.join(sorted(placeholders)) or 'no placeholders'}"
            )
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not valid: {error}") from error


def _title(names: Mapping[str, str] | Titles, part: str) -> str:
    if isinstance(names, Mapping):
        return names.get(part, part.replace("_", " "))
    return names(part)
