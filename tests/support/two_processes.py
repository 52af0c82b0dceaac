"""Starts a trainer in two processes on the CPU, by the launch files of configuration/accelerate."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# DeepSpeed compiles its communication between CPUs on first use.
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("c++") is None,
    reason="DeepSpeed or a C++ compiler is not installed",
)


def launch(topology: str, program: str, options: list, log: Path, precision: str = "no") -> subprocess.Popen:
    """Start a verb of `spa3r`, with its output in a log file."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"configuration/accelerate/{topology}.yaml"]
    command += ["--num_processes", "2", "--mixed_precision", precision, "--main_process_port", "0"]
    if topology == "ddp":  # runs on CPUs as it is
        command += ["-m", "spa3r", program]
        command += ["--use_cpu", "true"] if program in ("pretrain", "sft") else []
    else:
        command += ["tests/support/distributed_launcher.py", program]
    command += [str(option) for option in options]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)


# Two nodes of SLURM on the loopback address, each with its own launcher.
SRUN = """#!/bin/sh
shift  # --kill-on-bad-exit
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@" && wait $other
"""
SCONTROL = """#!/bin/sh
printf '127.0.0.1\\n127.0.0.1\\n'
"""


def launch_on_two_nodes(program: str, options: list, log: Path) -> subprocess.Popen:
    """Run nodes.sbatch as SLURM does for a job of two nodes with one processor each, with its output in a log file."""
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
    command = ["bash", "configuration/accelerate/nodes.sbatch", "--mixed_precision", "no", "-m", "spa3r", program]
    command += ["--use_cpu", "true", *map(str, options)]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)
