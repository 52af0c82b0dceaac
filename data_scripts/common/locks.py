"""One run in a folder at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def only_run_in(folder: str | os.PathLike, is_main_process: bool = True) -> Iterator[None]:
    """Keep other runs out of a folder; the operating system opens it again even if this process is killed.

    Args:
        folder (`str` or `os.PathLike`): What the run writes; it is made if need be.
        is_main_process (`bool`, *optional*, defaults to `True`): One process of a launch keeps the others' folder.

    Raises:
        ValueError: If another run is writing to it.
    """
    if not is_main_process:
        yield
        return
    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Another run is writing to `{folder}`: wait until it has ended, or choose another output folder."
        ) from None
    try:
        yield
    finally:
        if is_new and os.listdir(folder) == [LOCK]:  # a run that was refused leaves nothing
            (folder / LOCK).unlink()
            folder.rmdir()
        lock.release()
