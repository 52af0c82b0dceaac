"""Has a run kill itself while it writes, so that no test has to hit the moment."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def half_written(folder: Path) -> Path | None:
    """A checkpoint with weights and without its mark."""
    from spa3r.trainers.runs.resume import is_complete

    checkpoints = (file.parent for file in folder.glob("checkpoint-*/*model.safetensors"))
    return next((checkpoint for checkpoint in checkpoints if not is_complete(checkpoint)), None)


def kill_at_write(checkpoint: Path, number: int, kill: Callable[[], object]):
    """Have this process kill its run before a write into its folder: the `number`-th after `checkpoint` is complete.

    A negative `number` counts the writes after that which find a later checkpoint with weights and without its mark.
    """
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
            kill()

    sys.addaudithook(count)
