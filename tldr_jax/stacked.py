"""Several configs of `tldr_jax.experiment` with one text stage: all their heads are trained as one program.

What comes before, data, classifier, embeddings, is made once for all members that it is the same for, and put into the
run directories of the others under the keys of `tldr_jax.stages`, where each finds it as if it had made it. Heads that
a filter leaves other words for are a program of their own; multi-layer projectors are left to each member.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from launch.run import Preempted, Run
from tldr_jax import experiment, inputs, method, projector, retrain, stages
from tldr_jax.heads import Head
from tldr_jax.words import filters

# What members of a stack may differ in. The first two give each member a classifier of its own, which is trained
# before, one after the other.
STACKABLE = (
    "seed",
    "data.seed",
    "projector.ridge",
    "projector.gap_rows",
    "retrain.learning_rate",
    "retrain.weight_decay",
    "retrain.seed",
)
OFF_AT_ZERO = ()


@dataclass(frozen=True)
class _Task:
    """Heads to be trained: of a member, or of one of its ablations."""

    config: Mapping
    run: Run
    inputs: inputs.Inputs
    plan: method.Plan


def run(configs: Sequence[Mapping], runs: Sequence[Run]) -> Iterator[tuple[int, dict[str, float] | Exception]]:
    """Train the heads of all configs, which differ in fields of `STACKABLE`, as one program, then measure each config.

    Args:
      configs: of the members.
      runs: their run directories, in the same order.

    Yields:
      (member, its result, or the error that ended it), each member once.

    Raises:
      Preempted: a run was asked to stop; what there is was kept.
    """
    prepared: dict[int, inputs.Inputs] = {}
    tasks: list[_Task] = []
    read: dict[Any, Any] = {}
    texts: dict[bytes, Any] = {}
    for index, (config, run) in enumerate(zip(configs, runs, strict=True)):
        try:
            experiment.check(config)
            _share(runs[:index], run, config)
            prepared[index] = _prepare(config, run, read)
            tasks += list(_tasks(config, run, prepared[index], texts))  # all or none
        except Preempted:
            raise
        except Exception as error:  # the others can still be trained
            prepared.pop(index, None)
            yield index, error
    _train(tasks)
    for index, found in prepared.items():
        try:
            _share(runs[:index], runs[index], configs[index])  # the baselines
            yield index, experiment.finish(configs[index], runs[index], found)
        except Preempted:
            raise
        except Exception as error:
            yield index, error


def _prepare(config, run: Run, read: dict[Any, Any]) -> inputs.Inputs:
    """`inputs.prepare`, with data and CLIPs that were read for another member."""
    data, clip = repr(config.data), config.clip.source
    if data not in read:
        read[data] = inputs.read(config.data)
    if clip not in read:
        read[clip] = inputs.load_clip(clip)
    return inputs.prepare(config, run, data=read[data], clip=read[clip])


def _variants(config) -> list[Mapping]:
    """The config and those of its ablations."""
    return [config, *(experiment.changed(config, experiment.ABLATIONS[name]) for name in config.ablations)]


def _tasks(config, run: Run, found: inputs.Inputs, texts: dict[bytes, Any]) -> Iterator[_Task]:
    """The heads that are not in the run directory yet; equal text sets become one object of `texts`."""
    for own in _variants(config):
        if own.projector.kind != "linear" or (run.path / "artifacts" / f"{stages.key(own, 'retrain')}.npz").exists():
            continue
        run.check_stop()
        try:
            plan = method.plan(own, run, found)
        except filters.EmptyWordListError:
            continue  # said by the member itself, when it comes to measure
        retrain.check_rates(plan.members)  # here it is this member's error, in the program it would be everybody's
        yield _Task(own, run, found, plan.with_texts(texts.setdefault(_digest(plan.texts), plan.texts)))


def _train(tasks: Sequence[_Task]) -> None:
    """Train the heads, those of equal words as one program, and keep them in the run directories."""
    groups: dict[tuple[int, int], list[_Task]] = {}
    for task in tasks:
        groups.setdefault((id(task.plan.texts), task.plan.steps), []).append(task)
    for group in groups.values():
        for task in group:
            task.run.check_stop()
        for task, trained in zip(group, together(group[0].config, [task.plan for task in group]), strict=True):
            make = lambda task=task, trained=trained: method.settle(task.inputs, task.plan, trained)
            stages.keep(task.run, task.config, "retrain", make)


def together(config, plans: Sequence[method.Plan]) -> list[retrain.Trained]:
    """The heads of several plans with the same texts and steps, by one sweep; equal projectors are one of it."""
    known: dict[bytes, int] = {}
    mappings, members = [], []
    for plan in plans:
        places = []
        for mapping in plan.mappings:
            place = known.setdefault(_digest(mapping), len(mappings))
            if place == len(mappings):
                mappings.append(mapping)
            places.append(place)
        members.append(plan.members._replace(projector=np.array(places)[plan.members.projector]))
    counts = [len(own.seed) for own in members]
    logging.info("text stage: %d heads, %d projectors, as one program", sum(counts), len(mappings))
    trained = method.sweep(
        config,
        plans[0],
        projector.stack(mappings),
        retrain.Members(*(np.concatenate(parts) for parts in zip(*members, strict=True))),
    )
    ends = np.cumsum(counts)
    cut = lambda a, end, count: a[end - count : end]
    return [
        retrain.Trained(Head(*(cut(a, e, c) for a in trained.heads)), cut(trained.loss, e, c), trained.steps)
        for e, c in zip(ends, counts, strict=True)
    ]


def _digest(tree: Any) -> bytes:
    """Of arrays: equal for equal ones."""
    found = hashlib.blake2b(repr(jax.tree.structure(tree)).encode())
    for leaf in map(np.ascontiguousarray, jax.tree.leaves(tree)):
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(leaf)
    return found.digest()


# -- what members have in common ------------------------------------------------------------------------------------


def _share(others: Sequence[Run], run: Run, config) -> None:
    """Put into a run directory what others have made that has the same key, and so is the same."""
    wanted = {stages.key(own, stage) for own in _variants(config) for stage in stages.STAGES}
    for other in others:
        for folder in ("artifacts", "stages"):
            for path in sorted((other.path / folder).glob("[!.]*")):
                if path.name.removesuffix(path.suffix) in wanted or path.name == "texts":
                    _copy(path, run.path / folder / path.name)


def _copy(source: Path, target: Path) -> None:
    """A file or a folder, at once or not at all; what nobody writes to any more is linked rather than copied."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        whole = Path(folder) / target.name
        if source.is_dir():
            ignore = shutil.ignore_patterns(".lock")
            shutil.copytree(source, whole, copy_function=_link, ignore=ignore)
        else:
            _link(source, whole)
        os.replace(whole, target)


def _link(source: str | Path, target: str | Path) -> None:
    fixed = Path(source).suffix in (".npy", ".npz") or "checkpoints" in Path(source).parts
    if fixed:
        with contextlib.suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    shutil.copy2(source, target)
