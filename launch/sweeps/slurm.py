"""Members as jobs of a SLURM cluster, one array of them, submitted by submitit: `--slurm=partition=gpu,nodes=2,…`.

Each job runs `launch.train` in every task; JAX finds the other tasks by itself. The sweep folder is on a file system
that all nodes see. Job files and the jobs' own output go to WORKDIR/.slurm, a member's output to its log.txt.

The sweep watches the queue, and may be stopped at any time: the jobs go on, the same command watches them again.
Whether a member is done, its result.json says; the scheduler is only asked which jobs it still has.
"""

import contextlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from launch.files import write_atomically
from launch.run import Preempted
from launch.sweeps.local import stopping
from launch.sweeps.members import Member, Options, Sweep, SweepError, command, fail, start, status
from launch.sweeps.slurm_task import Task

_QUEUE_EVERY = 10.0  # seconds between two looks at the queue
_WATCH_EVERY = 1.0
_LOOKS = 2  # a job that the queue lacks so often in turn has left it: one look can come between two states
_FOLDER, _JOBS = ".slurm", "jobs.json"
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")
_STOPPED = ("COMPLETED", "CANCELLED", "PREEMPTED", "RUNNING", "COMPLETING")

# Ours: (sbatch's, as submitit calls it; its type)
_SETTINGS = {
    "partition": ("partition", str),
    "account": ("account", str),
    "qos": ("qos", str),
    "constraint": ("constraint", str),
    "nodelist": ("nodelist", str),
    "exclude": ("exclude", str),
    "nodes": ("nodes", int),
    "tasks_per_node": ("ntasks_per_node", int),
    "gpus_per_node": ("gpus_per_node", int),
    "cpus_per_task": ("cpus_per_task", int),
    "mem": ("mem", str),
    "time": ("time", int),
    "grace": ("signal_delay_s", int),
    "parallel": ("array_parallelism", int),
    "restarts": (None, int),
}
_OTHER = "sbatch."  # what begins so goes to sbatch as it is


@dataclass(frozen=True)
class Settings:
    """What is asked of the scheduler.

    Attributes:
      parameters: submitit's.
      nodes, tasks, gpus: nodes of a member; tasks and GPUs of each.
      restarts: how often a member starts again because one of its processes was killed.
    """

    parameters: Mapping[str, Any]
    nodes: int
    tasks: int
    gpus: int
    restarts: int


def settings(given: Mapping[str, str], processes: int = 0) -> Settings:
    """Read `--slurm=name=value,…`.

    Args:
      given: partition, account, qos, constraint, nodelist, exclude, nodes, tasks_per_node, gpus_per_node,
        cpus_per_task and mem as sbatch has them; time in minutes, after which a member saves and queues again (240);
        grace, the seconds that it has to save (120); parallel, how many jobs run at once; restarts (3); and
        "sbatch.NAME" for any other option of sbatch.
      processes: the same as parallel, which goes before it; 0 is no limit.

    Raises:
      SweepError: an unknown name, or a value that cannot be.
    """
    parameters: dict[str, Any] = {"time": 240, "signal_delay_s": 120, "array_parallelism": processes or sys.maxsize}
    extra: dict[str, Any] = {"requeue": True}
    restarts = 3
    for name, text in given.items():
        if name.startswith(_OTHER) and len(name) > len(_OTHER):
            extra[name.removeprefix(_OTHER)] = text or True
            continue
        if name not in _SETTINGS:
            raise SweepError(f"--slurm has no {name!r}; there are {', '.join(_SETTINGS)}, and {_OTHER}NAME for others")
        theirs, kind = _SETTINGS[name]
        lowest = 0 if name in ("restarts", "gpus_per_node") else 1
        if not text or (kind is int and not (text.isascii() and text.isdecimal() and int(text) >= lowest)):
            wanted = f"a number from {lowest}" if kind is int else "a value"
            raise SweepError(f"--slurm={name}={text}: wants {wanted}")
        if theirs is None:
            restarts = int(text)
        else:
            parameters[theirs] = kind(text)
    if parameters["signal_delay_s"] >= 60 * parameters["time"]:
        raise SweepError(f"--slurm: grace={parameters['signal_delay_s']} s is all of time={parameters['time']} min")
    nodes, tasks = parameters.get("nodes", 1), parameters.setdefault("ntasks_per_node", 1)
    gpus = parameters.get("gpus_per_node", 0)
    if gpus % tasks:
        raise SweepError(f"--slurm: gpus_per_node={gpus} does not divide over tasks_per_node={tasks}")
    if not gpus:
        parameters.pop("gpus_per_node", None)
    # One task that ends badly ends the step: the others would wait for it. And srun does not ask for what sbatch did.
    srun = ["--kill-on-bad-exit=1"]
    srun += [f"--cpus-per-task={parameters['cpus_per_task']}"] if "cpus_per_task" in parameters else []
    return Settings(parameters | {"srun_args": srun, "additional_parameters": extra}, nodes, tasks, gpus, restarts)


# -- the queue ------------------------------------------------------------------------------------------------------


def queue() -> dict[str, str]:
    """{job id: state} of this user's jobs, those of arrays one by one.

    Raises:
      OSError: the scheduler does not answer.
    """
    asked = ["squeue", "--me", "--array", "--noheader", "--format=%i|%T"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    if found.returncode:
        raise OSError(f"squeue: {found.stderr.strip()}")
    return dict(line.strip().split("|", 1) for line in found.stdout.splitlines() if "|" in line)


def queued(sweep: Sweep) -> list[str]:
    """The jobs of a sweep that the scheduler still has; none where there is no scheduler to ask."""
    stored = _stored(sweep.path / _FOLDER)
    if not stored:
        return []
    try:
        here = queue()
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [job for job in stored.values() if job in here]


def ending(job: str) -> str:
    """The state in which a job ended, as long as the scheduler remembers it, or ""."""
    found = subprocess.run(
        ["scontrol", "show", "job", job, "--oneliner"], capture_output=True, text=True, timeout=120, check=False
    )
    states = re.findall(r"\bJobState=(\w+)", found.stdout)
    return states[0] if len(states) == 1 else ""


def array_limit() -> int:
    """How many jobs one array may have."""
    found = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=120, check=False)
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", found.stdout, re.MULTILINE)
    return max(1, int(limit[1])) if limit else 1000


# -- the executor ---------------------------------------------------------------------------------------------------


def execute(sweep: Sweep, members: Iterable[Member], options: Options) -> None:
    """Submit the members that the queue does not have yet, and watch them all; see `members` for the contract.

    Raises:
      SweepError: no scheduler, no submitit, a setting that is wrong, or a submission that is refused.
      Preempted: the sweep was asked to stop; the jobs go on.
    """
    for program in ("sbatch", "srun", "squeue", "scontrol"):
        if not shutil.which(program):
            raise SweepError(
                f"--executor=slurm: {program} is not here; start it where jobs are submitted, or take --executor=local"
            )
    asked_for = settings(options.slurm, options.processes)
    members = list(members)
    folder = sweep.path / _FOLDER
    folder.mkdir(exist_ok=True)
    with stopping() as asked:
        try:
            here = queue()
        except OSError as error:
            raise SweepError(f"--executor=slurm: the scheduler does not answer ({error})") from error
        jobs = {name: job for name, job in _stored(folder).items() if job in here}
        missing = [m for m in members if m.name not in jobs]
        for part in _parts(missing, array_limit()):
            jobs |= submit(sweep, part, asked_for, folder)
            write_atomically(folder / _JOBS, json.dumps(_stored(folder) | jobs, indent=2) + "\n")
        watching = {member.name: member for member in members}
        left = _watch(watching, jobs, options, asked)
    if left:
        raise Preempted(
            f"no longer watching; {len(left)} jobs stay in the queue (`scancel {' '.join(left)}` takes them out)"
        )


def _stored(folder: Path) -> dict[str, str]:
    """{member: job} as last submitted from this folder."""
    path = folder / _JOBS
    return json.loads(path.read_text()) if path.exists() else {}


def _parts(members: Sequence[Member], most: int) -> list[Sequence[Member]]:
    """Parts of nearly equal size, none larger than `most`."""
    count = math.ceil(len(members) / most)
    return [members[i * len(members) // count : (i + 1) * len(members) // count] for i in range(count)]


def submit(sweep: Sweep, members: Sequence[Member], asked_for: Settings, folder: Path) -> dict[str, str]:
    """Submit members as one array; {member: job}.

    Raises:
      SweepError: submitit is not installed, or sbatch refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise SweepError("--executor=slurm wants submitit: pip install -e '.[slurm]'") from error
    executor = submitit.SlurmExecutor(folder, python=shlex.quote(sys.executable))
    executor.update_parameters(
        **asked_for.parameters | {"array_parallelism": min(asked_for.parameters["array_parallelism"], len(members))},
        job_name=re.sub(r"\W", "_", sweep.path.name),
    )
    for member in members:
        start(member)
        _losses(folder, member).unlink(missing_ok=True)
    try:
        with executor.batch():
            found = [
                executor.submit(
                    Task(
                        member,
                        command(sweep, member),
                        asked_for.gpus if asked_for.nodes * asked_for.tasks > 1 else 0,
                        asked_for.tasks,
                        asked_for.restarts,
                        _losses(folder, member),
                    )
                )
                for member in members
            ]
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if "sbatch:" in line] or str(error).splitlines()[-3:]
        raise SweepError("--executor=slurm: the submission is refused\n  " + "\n  ".join(lines)) from error
    jobs = {member.name: job.job_id for member, job in zip(members, found, strict=True)}
    logging.info("%d members submitted as job %s", len(jobs), found[0].job_id.split("_")[0])
    return jobs


def _losses(folder: Path, member: Member) -> Path:
    return folder / f"{member.name}.losses"


def _watch(members: dict[str, Member], jobs: Mapping[str, str], options: Options, asked: Sequence[int]) -> list[str]:
    """Watch until every member has ended, or the sweep is asked to stop; the jobs that are then left."""
    absent = dict.fromkeys(members, 0)
    here: Mapping[str, str] = {}
    looked, silent = -math.inf, False
    while members and not asked:
        if time.monotonic() - looked >= _QUEUE_EVERY:
            looked = time.monotonic()
            try:
                here, silent = queue(), False
            except (OSError, subprocess.TimeoutExpired) as error:
                if not silent:
                    logging.warning("the scheduler does not answer (%s); trying on", error)
                silent = True
            else:
                for name in list(members):
                    absent[name] = 0 if jobs[name] in here else absent[name] + 1
        over = [n for n, m in members.items() if absent[n] >= _LOOKS or status(m).state == "done"]
        for name in over:
            member = members.pop(name)
            if status(member).state in ("waiting", "started"):  # some jobs end before they come to the member
                _note(member, jobs[name])
            options.ended(member)
        options.watch({name for name in members if here.get(jobs[name]) in _RUNNING})
        if members:
            time.sleep(min(_WATCH_EVERY, _QUEUE_EVERY))
    return [jobs[name] for name in members]


def _note(member: Member, job: str) -> None:
    """A member whose job has left the queue without a result: failed, unless it was asked to stop."""
    state = ending(job)
    if state in _STOPPED:
        return
    with contextlib.suppress(OSError):
        fail(
            member,
            f"job {job} has left the queue without a result"
            + (f" ({state})" if state else "")
            + f"; its output is in {member.path.parent / _FOLDER}",
        )
