"""Runs verbs in forks of processes that have imported everything: a launch and its imports cost more than a tiny run.

    with ReadyProcesses(launcher, folder) as processes:
        assert processes.start(["sft", *options], log).wait() == 0

The launcher is Python, or one of several processes. Runs of the same processes may go on at once. Each of them has a
group of processes of its own, in which all die at once if it is told to kill itself; see `killed_run`.

    python ready_processes.py FOLDER [--accelerator]

As a program, this is one of the processes. It takes orders from a folder, and ends with its standard input.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.05
PROGRAM = Path(__file__).resolve()


class ReadyProcesses:
    """Processes of a launcher; with `--accelerator` the CPU is declared to be one, as in `cpu_as_accelerator`."""

    def __init__(self, launcher: Sequence, folder: Path, *options: str):
        self.folder, self.num_orders = folder, 0
        folder.mkdir()
        with self.log.open("w") as log:
            command = [*map(str, launcher), str(PROGRAM), str(folder), *options]
            pipes = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
            self.launcher = subprocess.Popen(command, cwd=PROGRAM.parents[2], **pipes)

    def __enter__(self) -> "ReadyProcesses":
        return self

    def __exit__(self, *error):
        self.launcher.stdin.close()
        self.launcher.wait()

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def start(self, arguments: Sequence, log: Path, max_file_size: int | None = None, kill: tuple | None = None):
        """Start `spa3r` with these arguments.

        Args:
            max_file_size (`int`, *optional*): In bytes; a write beyond it fails as on a full disk.
            kill (`tuple`, *optional*): The arguments of `killed_run.kill_at_write`.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        order = {"arguments": [str(argument) for argument in arguments], "log": str(log), "port": port}
        order |= {"max_file_size": max_file_size, "kill": kill and [str(kill[0]), kill[1]]}
        log.write_text("")
        run = Run(self, self.folder / str(self.num_orders), log)
        _write(run.file.with_suffix(".order"), json.dumps(order))
        self.num_orders += 1
        return run


@dataclass
class Run:
    """One run; files beside `file` tell the process and the exit status of each rank."""

    processes: ReadyProcesses
    file: Path
    log: Path

    def wait(self) -> int:
        """The exit status of the run; the first rank that fails ends all."""
        while True:
            statuses = [int(file.read_text()) for file in self.file.parent.glob(f"{self.file.name}.status*")]
            if failed := [status for status in statuses if status != 0]:
                kill_groups(self.file)
                return failed[0]
            size = self.file.parent / "world_size"
            if size.exists() and len(statuses) == int(size.read_text()):
                return 0
            assert self.processes.launcher.poll() is None, self.processes.log.read_text()
            time.sleep(SECONDS_BETWEEN_LOOKS)


def kill_groups(file: Path):
    """Kill all processes of a run, the caller last."""
    groups = [int(each.read_text()) for each in file.parent.glob(f"{file.name}.pid*")]
    for group in sorted(groups, key=lambda group: group == os.getpgid(0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _write(file: Path, text: str):
    """Write a file that nobody sees half-written."""
    new = file.with_name(f"new_{file.name}")
    new.write_text(text)
    new.replace(file)


def serve(folder: Path, is_accelerator: bool):
    """Fork for each order, and return in the fork once it is done; end with the standard input."""
    rank, number, forks = os.environ.get("RANK", "0"), 0, {}
    if rank == "0":
        _write(folder / "world_size", os.environ.get("WORLD_SIZE", "1"))
    while not select.select([sys.stdin], [], [], SECONDS_BETWEEN_LOOKS)[0]:
        if (order := folder / f"{number}.order").exists():
            pid = os.fork()
            if pid == 0:
                os.setsid()
                _write(folder / f"{number}.pid{rank}", str(os.getpid()))
                return obey(order.with_suffix(""), json.loads(order.read_text()), is_accelerator)
            forks[pid] = number
            number += 1
        for pid in list(forks):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _write(folder / f"{forks.pop(pid)}.status{rank}", str(os.waitstatus_to_exitcode(status)))
    for pid in forks:
        os.killpg(pid, signal.SIGKILL)


def obey(file: Path, order: dict, is_accelerator: bool):
    """Run a verb in this process, as its program does."""
    with open(os.devnull) as nothing, open(order["log"], "a") as log:
        for source, stream in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), stream)
    # The store of the launcher holds the addresses of the run before.
    os.environ |= {"MASTER_PORT": str(order["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    if order["max_file_size"]:
        _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["max_file_size"], hard_limit))
    if order["kill"]:
        checkpoint, number = order["kill"]
        kill_at_write(Path(checkpoint), number, lambda: kill_groups(file))
    if is_accelerator:
        declare_cpu_an_accelerator()
    main(order["arguments"])
    if is_accelerator:
        require_no_busy_threads_of_gloo()


if __name__ == "__main__":
    from cpu_as_accelerator import declare_cpu_an_accelerator, require_no_busy_threads_of_gloo
    from killed_run import kill_at_write

    import spa3r.trainers.alignment.align
    import spa3r.trainers.pretraining.pretrain
    import spa3r.trainers.tuning.sft  # noqa: F401
    from spa3r.trainers.integrations.cli import main

    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed  # noqa: F401

    serve(Path(sys.argv[1]), "--accelerator" in sys.argv[2:])
