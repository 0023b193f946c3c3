"""Adaptive search: Optuna proposes members from the space of a grid, guided by the results of those that have ended.

Its history is kept in WORKDIR/optuna.journal. After an interruption the members that were running continue, and
those that had failed are proposed again.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from absl import logging

from launch.reading import jsons
from launch.sweeps.members import Member, Sweep, SweepError, extend, member_name, save, status
from launch.sweeps.space import Grid, RandomValues, settled, zipped

METHODS = ("optuna",)
_JOURNAL = "optuna.journal"

# The distribution of one field, or a choice among overrides by their names.
Dimension = RandomValues | Mapping[str, Mapping[str, Any]]


def dimensions(grid: Grid | None, listed: Sequence[Mapping[str, Any]] = ()) -> dict[str, Dimension]:
    """What a search varies: every field with a distribution, and a choice among the values of every other term.

    Args:
      grid: its counts of random values are ignored; a search has one number of trials.
      listed: the members of the config's sweep(), which are one more choice.

    Raises:
      SweepError: a term zips random values with listed ones.
    """
    space: dict[str, Dimension] = {}
    if listed:
        space["sweep()"] = {member_name(overrides): overrides for overrides in listed}
    if grid is None:
        return space
    for term in grid.terms:
        drawn = {axis.key: axis.values for axis in term if isinstance(axis.values, RandomValues)}
        keys = ",".join(axis.key for axis in term)
        if drawn and len(drawn) < len(term):
            raise SweepError(f"--grid: {keys}: in a search, random values cannot be zipped with listed ones; use ;")
        space |= drawn or {keys: {member_name(row): row for row in zipped(grid, term, 0)}}
    return space


def described(space: Mapping[str, Dimension]) -> dict[str, str]:
    """A line for every dimension; equal for equal searches."""
    return {
        name: f"{'whole, ' if d.whole else ''}{d.distribution} from {d.low} to {d.high}"
        if isinstance(d, RandomValues)
        else ", ".join(d)
        for name, d in space.items()
    }


@dataclass
class Search:
    """An iterator of proposed members, with `ended` to report their results.

    Attributes:
      sweep: with the members proposed so far, as in sweep.json.
      space: the dimensions by name.
      trials: the number of proposals in all, over all continuations; failed ones do not count.
      objective: the key of a member's result.
      direction: "minimize" or "maximize".
      seed: of the sampler.
      open: the numbers of the trials that are not over, by the name of their member.
    """

    sweep: Sweep
    space: Mapping[str, Dimension]
    trials: int
    objective: str
    direction: Literal["minimize", "maximize"]
    seed: int
    open: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self):
        optuna = _optuna()
        from optuna.storages.journal import JournalFileBackend

        _mend(self.sweep.path / _JOURNAL)
        journal = JournalFileBackend(str(self.sweep.path / _JOURNAL))
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name="sweep",
            direction=self.direction,
            load_if_exists=True,
        )
        # The sampler's state is not in the journal; with the same seed, a continued search would repeat its proposals.
        seed = self.seed + len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def __iter__(self) -> Iterator[Member]:
        yield from self._taken_up()
        states = _optuna().trial.TrialState
        counted = self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.RUNNING))
        for _ in range(self.trials - len(counted)):
            member = self._asked()
            if member is not None:
                yield member

    def ended(self, member: Member) -> None:
        """Report a member's end to the study; a member that was stopped stays open.

        Raises:
          SweepError: its result lacks the objective.
        """
        now = status(member)
        if now.state not in ("done", "failed"):
            return
        value = None
        if now.result is not None:
            if self.objective not in now.result:
                raise SweepError(
                    f"the result of {member.name} has no {self.objective!r}; it has {', '.join(sorted(now.result))}: "
                    f"pass one of them to --{self.direction}; the search continues in the same folder"
                )
            value = now.result[self.objective]  # None if it was not finite
        failed = _optuna().trial.TrialState.FAIL
        for number in self.open.pop(member.name, ()):
            self.study.tell(number, value, state=None if value is not None else failed)

    def best(self) -> tuple[Member, float] | None:
        """The best member so far and its objective; None before the first result."""
        states = _optuna().trial.TrialState
        if not self.study.get_trials(deepcopy=False, states=(states.COMPLETE,)):
            return None
        return self._known()[self._name(self.study.best_trial) or ""], self.study.best_value

    def _known(self) -> dict[str, Member]:
        return {member.name: member for member in self.sweep.members}

    def _name(self, trial: Any) -> str | None:
        """The name of a trial's member; None if a kill came before all its parameters were noted."""
        whole = trial.params.keys() >= self.space.keys()
        return member_name(_overrides(trial.params, self.space)) if whole else None

    def _taken_up(self) -> Iterator[Member]:
        """The members that a stopped search left open; those that failed are queued again."""
        states = _optuna().trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        known = self._known()
        for trial in (t for t in trials if t.state == states.RUNNING):
            name = self._name(trial)
            if name is None or name not in known:  # killed between the proposal and its member
                self.study.tell(trial.number, state=states.FAIL)
                continue
            self.open[name].append(trial.number)
        for name in list(self.open):
            if status(known[name]).state == "done":
                self.ended(known[name])
            else:
                yield known[name]
        settled_names = {self._name(t) for t in trials if t.state in (states.COMPLETE, states.RUNNING)}
        failed = {self._name(t): t.params for t in trials if t.state == states.FAIL}
        for name, params in failed.items():
            if name is not None and name not in settled_names:
                self.study.enqueue_trial(params)

    def _asked(self) -> Member | None:
        """The member of a new proposal, or None if it is done or running."""
        trial = self.study.ask(_distributions(self.space))
        overrides = _overrides(trial.params, self.space)
        member = self._known().get(member_name(overrides))
        if member is None:
            self.sweep, member = extend(self.sweep, overrides)
            save(self.sweep)
        runs_already = member.name in self.open
        self.open[member.name].append(trial.number)
        if runs_already:
            return None
        if status(member).state == "done":
            self.ended(member)
            return None
        return member


def _mend(journal: Path) -> None:
    """Clear up after a killed writer or a full disk.

    A last line that was cut off is dropped: the next one would be glued to it. So is Optuna's lock, for which it would
    wait half a minute: the lock of the sweep folder keeps other searches away.

    Raises:
      SweepError: another line is damaged.
    """
    for lock in journal.parent.glob(f"{journal.name}.lock*"):  # while it is released, it has a longer name
        lock.unlink()
    if not journal.exists():
        return
    lines, sound = journal.read_bytes().splitlines(keepends=True), 0
    for number, line in enumerate(lines, 1):
        try:
            jsons.parse(line.decode() if line.endswith(b"\n") else "", top=dict)
        except ValueError as error:
            if number < len(lines):
                how = "delete it: the search starts over, and nothing that is trained is trained again"
                raise SweepError(f"{journal}, line {number} is damaged; {how}") from error
            logging.warning("%s, line %d is cut off; dropping it", journal, number)
            os.truncate(journal, sound)
        sound += len(line)


def _optuna():
    """Import Optuna with its log lines silenced.

    Raises:
      SweepError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise SweepError("--search=optuna needs Optuna: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # constant_liar
    return optuna


def _distributions(space: Mapping[str, Dimension]) -> dict[str, Any]:
    optuna = _optuna().distributions
    by_name = {}
    for name, dimension in space.items():
        if not isinstance(dimension, RandomValues):
            by_name[name] = optuna.CategoricalDistribution(tuple(dimension))
        elif dimension.whole:
            low, high = int(dimension.low), int(dimension.high)
            by_name[name] = optuna.IntDistribution(low, high, log=dimension.distribution == "log")
        else:
            log = dimension.distribution == "log"
            by_name[name] = optuna.FloatDistribution(dimension.low, dimension.high, log=log)
    return by_name


def _overrides(params: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any]:
    """The overrides for a trial's parameters."""
    overrides: dict[str, Any] = {}
    for name, dimension in space.items():
        value = params[name]
        overrides |= {name: settled(value, dimension)} if isinstance(dimension, RandomValues) else dimension[value]
    return overrides
