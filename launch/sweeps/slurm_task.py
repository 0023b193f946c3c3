"""What runs in a SLURM job: a process for each task, which starts the member's command and handles its end.

A job whose time runs out receives SIGUSR2: the member saves, and the job goes back to the queue. The same happens if
one of its processes is killed, at most `restarts` times. At SIGTERM, from scancel or a preemption, the member saves;
whether the job comes back is up to the scheduler.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from absl import logging

from launch.sweeps.members import Member, fail, last_lines, start, status

TIME_IS_UP = signal.SIGUSR2  # what submitit asks SLURM to send before the end
LOST_PEER = os.EX_TEMPFAIL  # `launch.processes.hosts.EXIT_STATUS`
_OTHERS_FIRST = 5.0  # seconds: a process that loses its peers fails with errors that are not the cause


@dataclass(frozen=True)
class SlurmTask:
    """A member as a job runs it; called once in every task.

    Attributes:
      member: what is trained.
      command: the command that trains it.
      gpus: of each node.
      tasks: on each node.
      restarts: how often the job may start again because one of its processes was killed.
      losses: the file that counts those processes.
    """

    member: Member
    command: Sequence[str]
    gpus: int
    tasks: int
    restarts: int
    losses: Path

    def __call__(self) -> None:
        """Run the member, and exit with its status."""
        number, restarted = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_RESTART_COUNT", 0))
        log = self.member.path / (f"log.{number}.txt" if number else "log.txt")
        if number == 0 and restarted:
            start(self.member)  # removes the error that was noted when the job last ended
        elif number == 0 and status(self.member).state == "done":
            return
        with open(log, "ab") as output:
            output.write(f"$ {shlex.join(self.command)}\n# job {job_id(os.environ)}, start {restarted + 1}\n".encode())
            output.flush()
            with _asked() as (asked, child):
                child.append(self._process(output))
                if asked:
                    child[0].terminate()  # the signal came before the process
                code = child[0].wait()
                self._end(number, code, asked)

    def _process(self, output) -> subprocess.Popen:
        environment = {"PYTHONUNBUFFERED": "1", **os.environ, **devices(os.environ, self.gpus, self.tasks)}
        # The scheduler signals whole process groups; the signal that means "save" here would kill the child.
        before = signal.signal(TIME_IS_UP, signal.SIG_IGN)
        try:
            return subprocess.Popen(
                list(self.command), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        finally:
            signal.signal(TIME_IS_UP, before)

    def _end(self, number: int, code: int, asked: Sequence[int]) -> None:
        """Requeue the job, note a failure, or do nothing."""
        if asked and code in (0, -signal.SIGTERM):
            if TIME_IS_UP in asked and number == 0 and status(self.member).state != "done":
                requeue(os.environ)
            return
        if code == 0 and not asked:
            return
        if code in (-signal.SIGKILL, LOST_PEER) and not asked and self._may_restart(number, code):
            requeue(os.environ)
            _wait(asked, 60)  # until the scheduler ends all tasks, so that this one's exit status does not end the step
            return
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            _wait(asked, _OTHERS_FIRST * (1 if number == 0 else 2))
        if not asked and status(self.member).state != "failed":
            fail(self.member, self._reason(number, code))
        sys.exit(1)

    def _may_restart(self, number: int, code: int) -> bool:
        """Count a loss, once per start however many processes see it; returns whether the job may start again."""
        begun = f"start {int(os.environ.get('SLURM_RESTART_COUNT', 0)) + 1}:"
        with open(self.losses, "a") as file:
            file.write(f"{begun} {time.strftime('%Y-%m-%d %H:%M:%S')} {self._reason(number, code)}\n")
        return len({line.partition(":")[0] for line in self.losses.read_text().splitlines()}) <= self.restarts

    def _reason(self, number: int, code: int) -> str:
        how = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (out of memory? --slurm=mem=… asks for more)"
        if number == 0:
            return how
        where = f"process {number} on {os.environ.get('SLURMD_NODENAME', 'its node')}, see log.{number}.txt"
        end = last_lines(self.member.path / f"log.{number}.txt", 1)
        return f"{how} of {where}" + (f": {end[0]}" if end else "")


@contextmanager
def _asked() -> Iterator[tuple[list[int], list[subprocess.Popen]]]:
    """Collect the signals that ask to stop in a list, and pass them on as SIGTERM to the processes in another list."""
    asked: list[int] = []
    child: list[subprocess.Popen] = []

    def ask(number, frame):
        del frame
        logging.warning("received %s: the member saves and stops", signal.Signals(number).name)
        asked.append(number)
        for process in child:
            process.terminate()

    for number in (TIME_IS_UP, signal.SIGTERM):
        signal.signal(number, ask)
    try:
        yield asked, child
    finally:
        for number in (TIME_IS_UP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # until this process ends


def _wait(asked: Sequence[int], seconds: float) -> None:
    """Wait for a signal, at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not asked and time.monotonic() < deadline:
        time.sleep(0.1)


def devices(environment: Mapping[str, str], gpus: int, tasks: int) -> dict[str, str]:
    """The environment that gives this task its share of the node's GPUs; on its own, JAX gives every task one GPU.

    Args:
      environment: of a task.
      gpus: of each node.
      tasks: on each node.
    """
    if not gpus or "JAX_LOCAL_DEVICE_IDS" in environment:
        return {}
    mine, share = int(environment.get("SLURM_LOCALID", 0)), gpus // tasks
    return {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(mine * share, (mine + 1) * share)))}


def job_id(environment: Mapping[str, str]) -> str:
    """This job's id as the queue shows it: "12", or "12_3" in an array."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def requeue(environment: Mapping[str, str]) -> None:
    """Send this job back to the queue, which ends this process."""
    subprocess.run(["scontrol", "requeue", job_id(environment)], check=True, timeout=60)
