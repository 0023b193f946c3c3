"""Compile a config for machines that are not here: `python -m launch.compile --config=FILE --topology=v5e:4x8 …`.

What the run would compile on a TPU slice or on the GPUs of a host goes through the compiler of that device: the step of
every trained stage, several steps as one call where it would have such calls, and the frozen passes, with the batches
and shardings that they would have there. Nothing runs, and nothing is allocated. One table says what fits, what a step
costs, and what devices send each other.

    --topology=v5e:16x16 --topology=h100x8    may be repeated: v4, v5e, v5p, v6e; a100, h100, h200
    --config.a.b=v                            as in launch.train
    --grid "seed=0:16"                        the members of a sweep, as launch.sweep --executor=vmap stacks them
    --sweep                                   the same for the config file's own sweep(), without --grid
    --only REGEX                              of what is compiled: "Classifier", "aam", "^(?!Clean)"
    --json FILE                               the same numbers in full
    --effort=0                                as launch.train has it: what a run with that --effort would compile

Needs the compilers (`pip install -e '.[aot]'`), neither TPU nor GPU. The exit status is 1 if something does not fit.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jax
from absl import app, flags
from ml_collections import config_flags

from launch import sweep, train
from launch.aot import programs, table, topologies
from launch.aot.cost import cost
from launch.aot.topologies import Topology
from launch.files import write_atomically
from launch.processes import commands, compiling, versions
from launch.reading import paths
from launch.stages import Stage, walk
from launch.sweeps.members import SweepError, config_of
from launch.sweeps.stacked import planned
from launch.sweeps.stacks import explain, group
from launch.training.program import Pass

_TOPOLOGY = flags.DEFINE_multi_string("topology", None, "machines to compile for", required=True)
_ONLY = flags.DEFINE_string("only", "", "regular expression of the names of programs")
_SWEEP = flags.DEFINE_bool("sweep", False, "compile the members of the config file's sweep(), not the config alone")
_JSON = flags.DEFINE_string("json", "", "file for the numbers in full")
# Of the flags that belong to launch.train and launch.sweep.
_SHARED = {"config", "effort", "grid", "config_sweep", "sample_seed"}


@dataclass(frozen=True)
class PlannedStack:
    """Plans that are compiled together.

    Attributes:
      roots: one, or those of members that stack.
      precision: of their products, `config.precision`.
    """

    roots: list[Stage]
    precision: str


def check_flags() -> None:
    """Raise ValueError for flags of commands that run something."""
    by_module = flags.FLAGS.flags_by_module_dict()
    foreign = {flag.name for module in (train.__name__, sweep.__name__) for flag in by_module[module]} - _SHARED
    given = sorted(name for name in foreign if flags.FLAGS[name].present)
    if given:
        raise ValueError(f"--{given[0]}: launch.compile runs nothing and writes no run directory; leave it out")
    if _JSON.value:
        paths.path(_JSON.value, "--json")
    try:
        re.compile(_ONLY.value)
    except re.error as error:
        raise ValueError(f"--only={_ONLY.value}: not a regular expression: {error}") from error


def plans() -> list[PlannedStack]:
    """The plan of the config; with --grid or --sweep those of the members, by stacks.

    Raises:
      ValueError: settings that cannot be used.
    """
    if not flags.FLAGS.grid and not _SWEEP.value:
        config, file = flags.FLAGS.config, config_flags.get_config_filename(flags.FLAGS["config"])
        if flags.FLAGS.config_sweep and sweep.listed(file):
            print(f"{file} has a sweep(): this compiles the config alone, --sweep its members", file=sys.stderr)
        return [PlannedStack([train.planned(config)[1]], compiling.precision_of(config))]
    swept, _ = sweep.from_flags()
    members, refused = planned(swept.members)
    if refused:
        raise refused[0][1]
    stacks = group(members)
    try:
        text = explain(stacks)
    except SweepError:  # nothing that --executor=vmap could train
        text = "no two members make a stack: each is compiled as a run by itself" if len(members) > 1 else ""
    if text:
        print(text, file=sys.stderr)
    precision = lambda stack: compiling.precision_of(config_of(stack[0].member))
    return [PlannedStack([member.root for member in stack], precision(stack)) for stack in stacks]


def passes(roots: list[Stage], topology: Topology) -> list[Pass]:
    """What some plans compile for a topology.

    Raises:
      ValueError: a batch does not divide over it, or nothing is compiled.
    """
    try:
        found = programs.of_stack(roots, topology) if len(roots) > 1 else programs.of_plan(roots[0], topology)
    except ValueError as error:
        error.add_note(f"on the {len(topology.devices)} devices of {topology.name}")
        raise
    if not found:
        names = ", ".join(type(stage).__name__ for stage in walk(roots[0]))
        raise ValueError(f"nothing in this plan is compiled ahead of time; its stages are {names}")
    chosen = [one for one in found if re.search(_ONLY.value, one.name)]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.name for one in found))
        raise ValueError(f"--only={_ONLY.value}: matches none of the programs, which are {known}")
    return chosen


def compiled(found: Iterable[tuple[Topology, str, list[Pass]]]) -> Iterator[table.CompiledRow]:
    """The rows of the table, one after the other, from (topology, precision of products, passes)."""
    for topology, precision, wanted in found:
        with compiling.products(precision):
            for one in programs.lower(wanted):
                print(f"{topology.name}: compiling {one.name}", file=sys.stderr, flush=True)
                yield table.CompiledRow(one.name, topology.name, one.calls, cost(one.program, one.arguments, topology))


@commands.ending()
def main(argv: list[str]) -> None:
    train.check_understood(argv)
    check_flags()
    jax.config.update("jax_platforms", "cpu")  # nothing runs, least of all on a device that another process uses
    effort = flags.FLAGS.effort
    jax.config.update("jax_exec_time_optimization_effort", effort)
    targets = [topologies.topology(name) for name in dict.fromkeys(_TOPOLOGY.value)]
    stacks = plans()
    wanted = [(target, stack.precision, passes(stack.roots, target)) for target in targets for stack in stacks]
    rows = list(compiled(wanted))
    holder = flags.FLAGS["config"]
    file, fixed = config_flags.get_config_filename(holder), config_flags.get_override_values(holder)
    settings = " ".join(f"--config.{key}={value}" for key, value in fixed.items())
    about = {"config": file, "overrides": settings, "grid": flags.FLAGS.grid, "sweep": _SWEEP.value, "effort": effort}
    members = "--sweep" if _SWEEP.value else ""
    print(f"{' '.join(filter(None, (file, settings, members, flags.FLAGS.grid)))}, compiled with --effort={effort:g}\n")
    print(table.text(rows), flush=True)
    if _JSON.value:
        content = about | {"versions": versions.collect(), "programs": [table.as_json(row) for row in rows]}
        write_atomically(_JSON.value, json.dumps(content, indent=1) + "\n")
    sys.exit(0 if all(row.cost.fits for row in rows) else commands.FAILURE)


def parse(argv: list[str]) -> list[str]:
    """The flags of launch.train and launch.sweep, of which --workdir is not needed: nothing is written."""
    flags.FLAGS.set_default("workdir", "")
    return train.parse(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
