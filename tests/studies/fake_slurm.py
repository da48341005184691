"""What submitit needs of SLURM: sbatch, srun, sacct, scancel and scontrol, called by these names through links.

A job is a process group that outlives who submitted it; its state is a file in ``$FAKE_SLURM``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    job = str(1 + len(list(FOLDER.glob("*.sh"))))
    (FOLDER / f"{job}.sh").write_text(Path(script).read_text())
    set_state(job, "PENDING")
    command = [sys.executable, Path(__file__).with_name("fake_slurm.py"), "batch", job]
    nothing = subprocess.DEVNULL
    subprocess.Popen(command, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing)
    print(f"Submitted batch job {job}")


def batch(job: str) -> None:
    """Run a job, again while somebody puts it back in the queue."""
    ids = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here"}
    ranks = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
    while state(job) in {"PENDING", "REQUEUED"}:
        set_state(job, "RUNNING")
        code = subprocess.call(["bash", FOLDER / f"{job}.sh"], env={**os.environ, **ids, **ranks})
        if state(job) == "RUNNING":
            set_state(job, "FAILED" if code else "COMPLETED")


def srun(*arguments: str) -> None:
    """Become the step of a job; only ``--output`` and ``--error`` have a value of their own."""
    given = list(arguments)
    files = {}
    while given[0].startswith("-"):
        option = given.pop(0)
        if option in {"--output", "--error"}:
            files[option] = given.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
    (FOLDER / f"{os.environ['SLURM_JOB_ID']}.pid").write_text(str(os.getpid()))
    for number, option in ((1, "--output"), (2, "--error")):
        os.dup2(os.open(files[option], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.execvp(given[0], given)


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for option, job in pairwise(arguments):
        if option == "-j" and (FOLDER / f"{job}.state").exists():
            print(f"{job}|{state(job)}|here")


def scancel(job: str, option: str = "", name: str = "SIGTERM") -> None:
    if not option:
        set_state(job, "CANCELLED")
    os.kill(int((FOLDER / f"{job}.pid").read_text()), signal.Signals[f"SIG{name.removeprefix('SIG')}"])


def scontrol(command: str, job: str) -> None:
    set_state(job, {"requeue": "REQUEUED"}[command])


def state(job: str) -> str:
    return (FOLDER / f"{job}.state").read_text()


def set_state(job: str, value: str) -> None:
    temporary = FOLDER / f"{job}.{os.getpid()}"
    temporary.write_text(value)
    temporary.rename(FOLDER / f"{job}.state")


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    called, arguments = (sys.argv[1], sys.argv[2:]) if name == "fake_slurm.py" else (name, sys.argv[1:])
    globals()[called](*arguments)
