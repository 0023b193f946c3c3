"""Adaptive search: Optuna proposes members out of the space of a grid, by the results of those that have ended.

What it has learned is in WORKDIR/optuna.journal. After an interruption the members that were running go on, and those
that had failed are proposed once more.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.sweeps.members import Member, Sweep, SweepError, extend, member_name, save, status
from launch.sweeps.space import Draws, Grid, settled, zipped

METHODS = ("optuna",)
_JOURNAL, _MEMBER = "optuna.journal", "member"

# Under a name, draws of one field, or a choice among overrides that have names.
Dimension = Draws | Mapping[str, Mapping[str, Any]]


def dimensions(grid: Grid | None, listed: Sequence[Mapping[str, Any]] = ()) -> dict[str, Dimension]:
    """What a search varies: every field that is drawn, and one choice among the values of every other term.

    Args:
      grid: its counts of draws are left aside: the number of trials is one for the whole search.
      listed: overrides given as a list, by the config's sweep(): one choice more.

    Raises:
      SweepError: a term zips draws with listed values.
    """
    found: dict[str, Dimension] = {}
    if listed:
        found["sweep()"] = {member_name(overrides): overrides for overrides in listed}
    for term in grid.terms if grid else ():
        drawn = {axis.key: axis.values for axis in term if isinstance(axis.values, Draws)}
        keys = ",".join(axis.key for axis in term)
        if drawn and len(drawn) < len(term):
            raise SweepError(f"--grid: {keys}: in a search, draws cannot be zipped with listed values; use ;")
        found |= drawn or {keys: {member_name(row): row for row in zipped(grid, term, 0)}}
    return found


def described(space: Mapping[str, Dimension]) -> dict[str, str]:
    """One line for every dimension; what a stored search is compared by."""
    return {
        name: f"{'whole, ' if d.whole else ''}{d.distribution} from {d.low} to {d.high}"
        if isinstance(d, Draws)
        else ", ".join(d)
        for name, d in space.items()
    }


@dataclass
class Search:
    """The members of a search, as they are proposed: iterate, and tell it what has ended.

    Attributes:
      sweep: with the members so far; sweep.json follows it.
      trials: how many proposals there are in all, however often it is stopped; those that failed do not count.
      objective: the key of a member's result.
      direction: "minimize" or "maximize".
    """

    sweep: Sweep
    space: Mapping[str, Dimension]
    trials: int
    objective: str
    direction: str
    seed: int
    open: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # member -> trials that wait for it

    def __post_init__(self):
        optuna = _optuna()
        journal = optuna.storages.journal.JournalFileBackend(str(self.sweep.path / _JOURNAL))
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name="sweep",
            direction=self.direction,
            load_if_exists=True,
        )
        # The sampler's state is not in the journal: a seed of its own keeps a resumed search from repeating itself.
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
        """Tell the study how a member has ended; one that was stopped stays open.

        Raises:
          SweepError: its result lacks the objective.
        """
        found = status(member)
        if found.state not in ("done", "failed"):
            return
        value = None
        if found.state == "done":
            if self.objective not in found.result:
                raise SweepError(
                    f"the result of {member.name} has no {self.objective!r}; it has {', '.join(sorted(found.result))}"
                )
            value = found.result[self.objective]  # None: it was not finite
        failed = _optuna().trial.TrialState.FAIL
        for number in self.open.pop(member.name, ()):
            self.study.tell(number, value, state=None if value is not None else failed)

    def best(self) -> tuple[Member, float] | None:
        """The best member so far and its objective."""
        states = _optuna().trial.TrialState
        if not self.study.get_trials(deepcopy=False, states=(states.COMPLETE,)):
            return None
        trial = self.study.best_trial
        return self._known()[trial.user_attrs[_MEMBER]], trial.value

    def _known(self) -> dict[str, Member]:
        return {member.name: member for member in self.sweep.members}

    def _taken_up(self) -> Iterator[Member]:
        """The members that a stopped search left open; what failed in it is queued again."""
        states = _optuna().trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        known = self._known()
        for trial in (t for t in trials if t.state == states.RUNNING):
            name = trial.user_attrs.get(_MEMBER)
            if name not in known:  # killed between the proposal and its member
                self.study.tell(trial.number, state=states.FAIL)
                continue
            self.open[name].append(trial.number)
        for name in list(self.open):
            if status(known[name]).state == "done":
                self.ended(known[name])
            else:
                yield known[name]
        settled_names = {t.user_attrs.get(_MEMBER) for t in trials if t.state in (states.COMPLETE, states.RUNNING)}
        failed = {t.user_attrs.get(_MEMBER): t.params for t in trials if t.state == states.FAIL and t.params}
        for name, params in failed.items():
            if name not in settled_names:
                self.study.enqueue_trial(params)

    def _asked(self) -> Member | None:
        """A new proposal's member, or None if there is nothing to train: its result is there, or on its way."""
        trial = self.study.ask(_distributions(self.space))
        overrides = _overrides(trial.params, self.space)
        member = self._known().get(member_name(overrides))
        if member is None:
            self.sweep, member = extend(self.sweep, overrides)
            save(self.sweep)
        trial.set_user_attr(_MEMBER, member.name)
        runs_already = member.name in self.open
        self.open[member.name].append(trial.number)
        if runs_already:
            return None
        if status(member).state == "done":
            self.ended(member)
            return None
        return member


def _optuna():
    """The optional package, quiet."""
    try:
        import optuna
    except ImportError as error:
        raise SweepError("--search=optuna needs Optuna: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # constant_liar
    return optuna


def _distributions(space: Mapping[str, Dimension]) -> dict[str, Any]:
    made = _optuna().distributions
    found = {}
    for name, dimension in space.items():
        if isinstance(dimension, Draws):
            make = made.IntDistribution if dimension.whole else made.FloatDistribution
            found[name] = make(dimension.low, dimension.high, log=dimension.distribution == "log")
        else:
            found[name] = made.CategoricalDistribution(tuple(dimension))
    return found


def _overrides(params: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any]:
    """The overrides that a trial's parameters stand for."""
    found: dict[str, Any] = {}
    for name, dimension in space.items():
        found |= {name: settled(params[name], dimension)} if isinstance(dimension, Draws) else dimension[params[name]]
    return found
