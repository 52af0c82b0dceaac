"""Starts a trainer in two processes on the CPU, by the launch files of configuration/accelerate."""

import importlib.util
import shutil
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
