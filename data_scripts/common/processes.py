"""Calls spread over processes, which end when the main process does, or wants them to."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import Any


def call_in_processes(function: Callable[..., Any], calls: Iterable[tuple], workers: int) -> Iterator[Any]:
    """Call a function of a module again and again, in this process or in several.

    Calls are taken from `calls` as they are needed, and no more than two for each process are held. Where a call fails
    or the caller stops early, other calls end at once, unfinished: whatever they write must be moved into place when
    it is complete.

    Args:
        function (`Callable`): What to call; it is handed to the processes, as are its arguments and results.
        calls (`Iterable[tuple]`): Arguments of each call.
        workers (`int`): Number of processes; 1 calls in this one.

    Yields:
        `Any`: Results, in the order in which they are there.
    """
    if workers == 1:
        for arguments in calls:
            yield function(*arguments)
        return
    # A forked child of a process that runs threads, as PyTorch's, may hang; a spawned one does not.
    context = multiprocessing.get_context("spawn")
    leash, end_of_leash = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow, initargs=(leash,))
    pending = set()
    try:
        for arguments in calls:
            pending.add(pool.submit(function, *arguments))
            if len(pending) >= 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        if pending:
            end_of_leash.close()
        pool.shutdown(cancel_futures=True)
        end_of_leash.close()
        leash.close()


def _follow(leash: Connection) -> None:
    """End this worker when the main process lets go of its end, as it also does when it is killed."""

    def watch() -> None:
        leash.poll(None)
        os._exit(1)

    # Ctrl-C reaches all processes of a terminal; the main one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
