"""Starts verbs in two processes on the CPU, by the launch files of configuration/accelerate."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ready_processes import ReadyProcesses

REPOSITORY = Path(__file__).resolve().parents[2]
# DeepSpeed compiles its communication between CPUs on first use.
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("c++") is None,
    reason="DeepSpeed or a C++ compiler is not installed",
)


def launcher_of(topology: str, precision: str = "no") -> list[str]:
    """The command that starts a program in two processes; all topologies but `ddp` need an accelerator."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"configuration/accelerate/{topology}.yaml"]
    return [*command, "--num_processes", "2", "--mixed_precision", precision, "--main_process_port", "0"]


def launch(program: str, options: list, log: Path) -> subprocess.Popen:
    """Start a verb of `spa3r` under plain data parallelism, with its output in a log file."""
    command = [*launcher_of("ddp"), "-m", "spa3r", program, *map(str, options)]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)


def ready_processes(topology: str, folder: Path, precision: str = "no") -> ReadyProcesses:
    """Two processes that a launch file started."""
    options = [] if topology == "ddp" else ["--accelerator"]
    return ReadyProcesses(launcher_of(topology, precision), folder, *options)


def ready_on_cpu(num_processes: int, folder: Path) -> ReadyProcesses:
    """Processes that `torchrun` started, or Python alone."""
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}"]
        launcher += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    return ReadyProcesses(launcher, folder)


# Two nodes of SLURM on the loopback address, each with its own launcher.
SRUN = """#!/bin/sh
shift  # --kill-on-bad-exit
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@" && wait $other
"""
SCONTROL = """#!/bin/sh
printf '127.0.0.1\\n127.0.0.1\\n'
"""


def launch_on_two_nodes(arguments: list, log: Path) -> subprocess.Popen:
    """Run `spa3r` by nodes.sbatch, as SLURM does for a job of two nodes with one processor each."""
    tools = log.with_suffix(".bin")
    tools.mkdir()
    for name, script in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = (str(tools), str(Path(sys.executable).parent), os.environ["PATH"])
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    environment = os.environ | job | {"PATH": ":".join(paths), "MAIN_PORT": str(port)}
    command = ["bash", "configuration/accelerate/nodes.sbatch", "--mixed_precision", "no", "-m", "spa3r"]
    command += [str(argument) for argument in arguments]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)
