"""Runs `spa3r VERB`, and has the run kill itself while it writes, so that no test has to hit the moment.

    python killed_run.py CHECKPOINT NUMBER VERB [OPTIONS]

All processes of the run die at once, before a write into its folder: the NUMBER-th after CHECKPOINT is complete, or
the NUMBER-th after that which finds a later checkpoint with weights and without its mark, if NUMBER is negative.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def run_until_killed(launcher: Sequence, checkpoint: Path, number: int, arguments: Sequence):
    """Run a verb until it kills itself; `launcher` is Python, or a launcher of several processes."""
    command = [*launcher, __file__, checkpoint, number, *arguments]
    # The pipe ends when the last process has.
    ended = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stdout


def half_written(folder: Path) -> Path | None:
    """A checkpoint with weights and without its mark."""
    from spa3r.trainers.runs.resume import is_complete

    checkpoints = (file.parent for file in folder.glob("checkpoint-*/*model.safetensors"))
    return next((checkpoint for checkpoint in checkpoints if not is_complete(checkpoint)), None)


def kill_at_write(checkpoint: Path, number: int):
    """Have this process kill its run before a write."""
    from spa3r.trainers.runs.resume import is_complete

    own, folder, num_writes, has_begun = os.getpid(), str(checkpoint.parent), 0, False

    def count(event: str, arguments: tuple):
        nonlocal num_writes, has_begun
        is_write = event in WRITES or event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not (is_write and str(arguments[0]).startswith(folder) and os.getpid() == own):
            return
        has_begun = has_begun or is_complete(checkpoint)
        num_writes += has_begun and (number > 0 or half_written(checkpoint.parent) is not None)
        if num_writes == abs(number):
            _kill_run()

    sys.addaudithook(count)


def _kill_run():
    own = psutil.Process()
    first = own.parent() if "TORCHELASTIC_RUN_ID" in os.environ else own
    family = [first, *first.children(recursive=True)]
    for member in sorted(family, key=lambda member: member.pid == own.pid):
        member.kill()


if __name__ == "__main__":
    from spa3r.trainers.integrations.cli import main

    kill_at_write(Path(sys.argv[1]), int(sys.argv[2]))
    main(sys.argv[3:])
