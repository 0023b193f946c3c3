"""A SLURM cluster of two nodes on this machine, for tests: a process for each daemon, all state in one folder.

Debian has them: `apt-get install --no-install-recommends slurmctld slurmd slurm-client munge`. They run as whoever runs
the tests, and listen on the loopback interface.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
NODES = 2
_CONFIG = """
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName={host}-b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [program for program in PROGRAMS if not shutil.which(program, path=path)]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The cluster; gives what the environment needs for sbatch and the others to find it.

    The first node has this machine's name, which resolves: JAX asks for the first node of a job.
    """
    host = socket.gethostname().split(".")[0]
    environment = {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]),
    }
    (folder / "state").mkdir(parents=True)
    for name in (host, f"{host}-b"):
        (folder / name).mkdir()
    text = _CONFIG.format(host=host, user=getpass.getuser(), folder=folder, ports=free_ports(3))
    (folder / "slurm.conf").write_text(text.strip() + "\n")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    files = {"pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key", "socket": "socket"}
    commands = [
        ["munged", "--force", "--foreground", *(f"--{k}={folder}/munge.{v}" for k, v in files.items())],
        ["slurmctld", "-D", "-c"],
        *(["slurmd", "-D", "-N", name] for name in (host, f"{host}-b")),
    ]
    started = []
    try:
        for command in commands:
            log = open(folder / f"{command[0]}-{len(started)}.out", "wb")  # noqa: SIM115 - the daemon's
            started.append(
                subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
            )
            log.close()
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), started, folder)
        _wait(lambda: _idle(environment) == NODES, started, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=os.environ | environment, capture_output=True, timeout=30)
        deadline = time.monotonic() + 20
        while _jobs(environment) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _idle(environment: dict[str, str]) -> int:
    asked = ["sinfo", "--noheader", "--Node", "--format=%T"]
    found = subprocess.run(asked, env=os.environ | environment, capture_output=True, text=True, timeout=30)
    return found.stdout.split().count("idle")


def _jobs(environment: dict[str, str]) -> str:
    asked = ["squeue", "--noheader"]
    return subprocess.run(asked, env=os.environ | environment, capture_output=True, text=True, timeout=30).stdout


def _wait(ready, started, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        dead = [process.args for process in started if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            logs = "\n".join(f"{p.name}:\n{p.read_text()[-2000:]}" for p in folder.glob("*.out"))
            raise RuntimeError(f"the cluster does not start: {dead or 'nodes are not idle'}\n{logs}")
        time.sleep(0.05)
