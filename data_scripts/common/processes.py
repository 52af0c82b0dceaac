"""Spread calls over worker processes, and load what comes next in a thread."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any


def call_in_processes(function: Callable[..., Any], calls: Iterable[tuple], workers: int) -> Iterator[Any]:
    """Call a function again and again, in this process or in several.

    At most two calls per process are taken from `calls` in advance. When a call fails, the caller stops early or this
    process dies, the workers end at once, in the middle of their calls: whatever they write must be moved into place
    when it is complete.

    Args:
        function (`Callable`): A function of a module, or a `functools.partial` of one.
        calls (`Iterable[tuple]`): Arguments of each call.
        workers (`int`): Number of processes; 1 calls in this one.

    Yields:
        `Any`: Results, in the order in which calls end.
    """
    if workers == 1:
        for arguments in calls:
            yield function(*arguments)
        return
    # Forking this process can deadlock, as PyTorch runs threads in it. The fork server only imports what the function
    # needs, once for all workers.
    start_fork_server("__main__", getattr(function, "func", function).__module__)
    context = multiprocessing.get_context("forkserver")
    leash, end_of_leash = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_main_process, initargs=(leash,))
    calls, pending = iter(calls), set()
    try:
        while True:
            for arguments in itertools.islice(calls, 2 * workers - len(pending)):
                pending.add(pool.submit(function, *arguments))
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        if pending:
            end_of_leash.close()
        pool.shutdown(cancel_futures=True)
        end_of_leash.close()
        leash.close()


def start_fork_server(*modules: str):
    """Start the server that forks workers, unless it runs, and have it import some modules first.

    Ctrl-C reaches every process of a terminal, but the main one decides what happens: the server and what it forks
    ignore it, also while they import.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()  # handlers can be set in the main thread alone
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def load_ahead(load: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Future]]:
    """Load each item in a thread while the caller uses the one before it.

    Args:
        load (`Callable`): Called with each item, one at a time.
        items (`Iterable`): What to load.

    Yields:
        `tuple[Any, Future]`: An item, and the future of what was loaded or of the error that was raised.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        loading = deque()
        for item in items:
            loading.append((item, executor.submit(load, item)))
            if len(loading) > 1:
                yield loading.popleft()
        yield from loading


def _end_with_main_process(leash: Connection) -> None:
    """End this worker when the main process closes its end of the pipe; the system closes it when that dies."""

    def watch() -> None:
        leash.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `start_fork_server`, which cannot do it in a thread
    threading.Thread(target=watch, daemon=True).start()
