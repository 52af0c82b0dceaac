"""Run verbs in forked processes, kill them at any moment, and compare what they leave.

A fork of a process that has imported everything starts in milliseconds. A kill is drawn in terms of the run itself,
not of the clock: before one of the times that it writes, or after a share of its CPU time. So it does not depend on
how busy the machine is.
"""

import contextlib
import hashlib
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from spa3r.trainers.integrations import cli
from spa3r.trainers.world import world

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
SECONDS_BETWEEN_LOOKS = 0.02
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Moment:
    """When to kill: before a write, counted from 1, or after some seconds of CPU time."""

    write: int | None = None
    cpu_seconds: float | None = None

    def __str__(self) -> str:
        return f"before write {self.write}" if self.write else f"after {self.cpu_seconds:.2f} s of CPU"


@dataclass(frozen=True)
class Ended:
    """How a process ended: status, negative for a signal; how often it wrote into the folder; its CPU time."""

    status: int
    num_writes: int
    cpu_seconds: float


def run_verb(arguments: Sequence[str], folder: Path, log: Path, moment: Moment = Moment()) -> Ended:
    """Run `spa3r` with these arguments; count its writes into the folder, and kill it and its children at a moment.

    A verb is done when it returns; the interpreter's own exit is left out.
    """
    return run(lambda: cli.main(list(map(str, arguments))), folder, log, moment)


def run(function: Callable[[], object], folder: Path, log: Path, moment: Moment = Moment()) -> Ended:
    """As `run_verb`, for any function."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become(function, folder, log, moment.write, writer)
    os.close(writer)
    process, seconds = psutil.Process(pid), 0.0
    while True:
        seconds = max(seconds, _cpu_seconds(process))
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        if moment.cpu_seconds is not None and seconds >= moment.cpu_seconds:
            _kill_group(pid)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _kill_group(pid)  # workers that outlive their parent
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as pipe:
        num_writes = len(pipe.read())
    return Ended(os.waitstatus_to_exitcode(status), num_writes, seconds)


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process, of its living descendants, and of the children that it has waited for."""
    seconds = 0.0
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        seconds += times.children_user + times.children_system
        for member in (process, *process.children(recursive=True)):
            times = member.cpu_times()
            seconds += times.user + times.system
    return seconds


def _kill_group(pid: int):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _become(function: Callable[[], object], folder: Path, log: Path, last_write: int | None, writer: int):
    """Be the process: call the function in a group of its own, and end without returning."""
    os.setsid()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(1, "w", closefd=False), open(2, "w", closefd=False)
    num_writes, own = 0, os.getpid()

    def count(event: str, arguments: tuple):
        nonlocal num_writes
        is_write = event in WRITES or event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not (is_write and str(arguments[0]).startswith(str(folder)) and os.getpid() == own):
            return
        num_writes += 1
        os.write(writer, b".")
        if num_writes == last_write:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(count)
    world.start_process = _start_stage
    status = 0
    try:
        function()
    except SystemExit as end:
        if end.code is not None:
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Stage:
    """A stage of the world in a fork; the part of `Popen` that the world uses."""

    def __init__(self, pid: int):
        self.pid, self.status = pid, None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)

    def wait(self):
        while self.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _start_stage(stage: world.Stage, log: Path, environment: dict[str, str]) -> _Stage:
    """Start a stage as the world does, in a fork instead of a new interpreter."""
    pid = os.fork()
    if pid:
        return _Stage(pid)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    status = 1
    try:
        sys.argv = list(stage.command)
        runpy.run_module(stage.command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        status = 0 if end.code in (None, 0) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def draw_moment(rng: random.Random, whole: Ended, share: float = 1.0) -> Moment:
    """A moment within the first share of a run that took so many writes and so long: one of its writes, or any."""
    if whole.num_writes and rng.random() < 0.5:
        return Moment(write=rng.randint(1, max(1, int(share * whole.num_writes))))
    return Moment(cpu_seconds=rng.uniform(0.05, 0.95) * share * whole.cpu_seconds)


def bytes_of(folder: Path, ignored: Sequence[str] = ()) -> dict[str, str]:
    """A hash of each file of a folder, by its path in it, except those that match a pattern."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if not any(file.match(pattern) for pattern in ignored)
    }


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Files that are missing, additional or different."""
    return (
        [f"-{name}" for name in before.keys() - after.keys()]
        + [f"+{name}" for name in after.keys() - before.keys()]
        + [f"~{name}" for name in before.keys() & after.keys() if before[name] != after[name]]
    )
