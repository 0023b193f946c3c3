"""Members as a SLURM job array, submitted by submitit: `--slurm=partition=gpu,nodes=2,…`.

Each job runs `launch.train` in every task; JAX finds the other tasks by itself. The sweep folder must be on a file
system that all nodes see. Job files and the jobs' own output go to WORKDIR/.slurm, a member's output to its log.txt.

The sweep watches the queue and can be stopped at any time: the jobs continue, and the same command watches them again.
The scheduler is asked only which jobs it still has; a member is done when it has a result.json.
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

from launch.files import load_json, write_atomically
from launch.processes.stop import Preempted
from launch.sweeps.local import stopping
from launch.sweeps.members import Member, Options, Sweep, SweepError, command, fail, start, status
from launch.sweeps.slurm_task import SlurmTask

_QUEUE_EVERY = 10.0  # seconds between two looks at the queue
_WATCH_EVERY = 1.0
_LOOKS = 2  # looks in a row without a job after which it has left the queue: one can fall between two states
_FOLDER, _JOBS = ".slurm", "jobs.json"
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")
_STOPPED = ("COMPLETED", "CANCELLED", "PREEMPTED", "RUNNING", "COMPLETING")

# Our name -> (submitit's name of sbatch's option, type)
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
_OTHER = "sbatch."  # the prefix of options that are passed to sbatch unchanged


@dataclass(frozen=True)
class SlurmSettings:
    """The resources of each member's job.

    Attributes:
      parameters: of submitit.
      nodes: of a job.
      tasks: on each node.
      gpus: on each node.
      restarts: how often a job may start again because one of its processes was killed.
    """

    parameters: Mapping[str, Any]
    nodes: int
    tasks: int
    gpus: int
    restarts: int


def settings(options: Mapping[str, str], processes: int = 0) -> SlurmSettings:
    """Parse `--slurm=name=value,…`.

    Args:
      options: partition, account, qos, constraint, nodelist, exclude, nodes, tasks_per_node, gpus_per_node,
        cpus_per_task and mem as in sbatch; time, in minutes, after which a member saves and queues again (240); grace,
        the seconds that it has to save (120); parallel, the number of jobs that run at once; restarts (3); and
        "sbatch.NAME" for any other option of sbatch.
      processes: the number of jobs that run at once unless `parallel` says it; 0 is no limit.

    Raises:
      SweepError: a name or a value is not valid.
    """
    parameters: dict[str, Any] = {"time": 240, "signal_delay_s": 120, "array_parallelism": processes or sys.maxsize}
    extra: dict[str, Any] = {"requeue": True}
    restarts = 3
    for name, text in options.items():
        if name.startswith(_OTHER) and len(name) > len(_OTHER):
            extra[name.removeprefix(_OTHER)] = text or True
            continue
        if name not in _SETTINGS:
            raise SweepError(
                f"unknown --slurm setting {name!r}; valid names: {', '.join(_SETTINGS)}, and {_OTHER}NAME for others"
            )
        theirs, kind = _SETTINGS[name]
        lowest = 0 if name in ("restarts", "gpus_per_node") else 1
        if not text or (kind is int and not (text.isascii() and text.isdecimal() and int(text) >= lowest)):
            valid = f"a number from {lowest}" if kind is int else "a value"
            raise SweepError(f"--slurm={name}={text}: needs {valid}")
        if theirs is None:
            restarts = int(text)
        else:
            parameters[theirs] = kind(text)
    if parameters["signal_delay_s"] >= 60 * parameters["time"]:
        raise SweepError(
            f"--slurm: grace={parameters['signal_delay_s']} s is not less than time={parameters['time']} min"
        )
    nodes, tasks = parameters.get("nodes", 1), parameters.setdefault("ntasks_per_node", 1)
    gpus = parameters.get("gpus_per_node", 0)
    if gpus % tasks:
        raise SweepError(f"--slurm: gpus_per_node={gpus} is not a multiple of tasks_per_node={tasks}")
    if not gpus:
        parameters.pop("gpus_per_node", None)
    # A task that fails ends the step, as the others would wait for it. And srun does not inherit the cores from sbatch.
    srun = ["--kill-on-bad-exit=1"]
    srun += [f"--cpus-per-task={parameters['cpus_per_task']}"] if "cpus_per_task" in parameters else []
    return SlurmSettings(parameters | {"srun_args": srun, "additional_parameters": extra}, nodes, tasks, gpus, restarts)


# -- the queue ------------------------------------------------------------------------------------------------------


def queue() -> dict[str, str]:
    """{job id: state} of this user's jobs, with an entry for each job of an array.

    Raises:
      OSError: the scheduler does not answer.
    """
    command_line = ["squeue", "--me", "--array", "--noheader", "--format=%i|%T"]
    answer = subprocess.run(command_line, capture_output=True, text=True, timeout=120, check=False)
    if answer.returncode:
        raise OSError(f"squeue: {answer.stderr.strip()}")
    return dict(line.strip().split("|", 1) for line in answer.stdout.splitlines() if "|" in line)


def queued(sweep: Sweep) -> list[str]:
    """The jobs of a sweep that the scheduler still has; [] where there is no scheduler."""
    stored = _stored(sweep.path / _FOLDER)
    if not stored:
        return []
    try:
        here = queue()
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [job for job in stored.values() if job in here]


def ending(job: str) -> str:
    """The state in which a job ended; "" once the scheduler has forgotten it."""
    answer = subprocess.run(
        ["scontrol", "show", "job", job, "--oneliner"], capture_output=True, text=True, timeout=120, check=False
    )
    states = re.findall(r"\bJobState=(\w+)", answer.stdout)
    return states[0] if len(states) == 1 else ""


def array_limit() -> int:
    """The largest number of jobs in an array."""
    answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=120, check=False)
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return max(1, int(limit[1])) if limit else 1000


# -- the executor ---------------------------------------------------------------------------------------------------


def execute(sweep: Sweep, members: Iterable[Member], options: Options) -> None:
    """Submit the members that are not in the queue, and watch all; see `launch.sweeps.members.Executor`.

    Raises:
      SweepError: there is no scheduler or no submitit, a setting is not valid, or the submission is refused.
      Preempted: the sweep was asked to stop; the jobs continue.
    """
    for program in ("sbatch", "srun", "squeue", "scontrol"):
        if not shutil.which(program):
            raise SweepError(
                f"--executor=slurm: {program} is not installed here; use a login node, or --executor=local"
            )
    resources = settings(options.slurm, options.processes)
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
            jobs |= submit(sweep, part, resources, folder, options.flags)
            write_atomically(folder / _JOBS, json.dumps(_stored(folder) | jobs, indent=2) + "\n")
        watching = {member.name: member for member in members}
        left = _watch(watching, jobs, options, asked)
    if left:
        raise Preempted(
            f"no longer watching; {len(left)} jobs stay in the queue (`scancel {' '.join(left)}` removes them)",
            asked[0],
        )


def _stored(folder: Path) -> dict[str, str]:
    """{member: job} of the last submissions from this folder."""
    path = folder / _JOBS
    remedy = "`scancel` the jobs that `squeue --me` shows, and delete it to continue"
    return load_json(path, remedy=remedy) if path.exists() else {}


def _parts(members: Sequence[Member], most: int) -> list[Sequence[Member]]:
    """The members in parts of nearly equal size, at most `most` each."""
    count = math.ceil(len(members) / most)
    return [members[i * len(members) // count : (i + 1) * len(members) // count] for i in range(count)]


def submit(
    sweep: Sweep, members: Sequence[Member], resources: SlurmSettings, folder: Path, given: Sequence[str] = ()
) -> dict[str, str]:
    """Submit members as one array.

    Args:
      sweep: the sweep that they belong to.
      members: at most `array_limit()`.
      resources: of each job.
      folder: for submitit's files.
      given: flags of the members' commands.

    Returns:
      {member: job}.

    Raises:
      SweepError: submitit is not installed, or sbatch refuses the submission.
    """
    try:
        import submitit
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError
    except ImportError as error:
        raise SweepError("--executor=slurm needs submitit: pip install -e '.[slurm]'") from error
    executor = submitit.SlurmExecutor(folder, python=shlex.quote(sys.executable))
    parallel = min(resources.parameters["array_parallelism"], len(members))
    executor.update_parameters(
        **{**resources.parameters, "array_parallelism": parallel}, job_name=re.sub(r"\W", "_", sweep.path.name)
    )
    for member in members:
        start(member)
        _losses(folder, member).unlink(missing_ok=True)
    try:
        with executor.batch():
            submitted = [
                executor.submit(
                    SlurmTask(
                        member,
                        command(sweep, member, given),
                        resources.gpus if resources.nodes * resources.tasks > 1 else 0,
                        resources.tasks,
                        resources.restarts,
                        _losses(folder, member),
                    )
                )
                for member in members
            ]
    except (UncompletedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if "sbatch:" in line] or str(error).splitlines()[-3:]
        raise SweepError("--executor=slurm: sbatch refused the submission\n  " + "\n  ".join(lines)) from error
    jobs = {member.name: job.job_id for member, job in zip(members, submitted, strict=True)}
    logging.info("%d members submitted as job %s", len(jobs), submitted[0].job_id.split("_")[0])
    return jobs


def _losses(folder: Path, member: Member) -> Path:
    return folder / f"{member.name}.losses"


def _watch(members: dict[str, Member], jobs: Mapping[str, str], options: Options, asked: Sequence[int]) -> list[str]:
    """Watch until every member has ended or the sweep is asked to stop; returns the jobs that are left."""
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
                    logging.warning("the scheduler does not answer (%s); trying again", error)
                silent = True
            else:
                for name in list(members):
                    absent[name] = 0 if jobs[name] in here else absent[name] + 1
        over = [n for n, m in members.items() if absent[n] >= _LOOKS or status(m).state == "done"]
        for name in over:
            member = members.pop(name)
            if status(member).state in ("waiting", "started"):  # some jobs end before they start the member
                _note(member, jobs[name])
            options.ended(member)
        options.watch({name for name in members if here.get(jobs[name]) in _RUNNING})
        if members:
            time.sleep(min(_WATCH_EVERY, _QUEUE_EVERY))
    return [jobs[name] for name in members]


def _note(member: Member, job: str) -> None:
    """Note a member as failed if its job left the queue without a result and was not asked to stop."""
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
