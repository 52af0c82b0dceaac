"""Calls in several processes: what comes back, and that no process outlives its use."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from spa3r.data_scripts.common.processes import call_in_processes, load_ahead

# Two calls that never end by themselves; the ids of the processes that run them are said when both are running.
PROGRAM = """
import os, signal, sys, time
from spa3r.data_scripts.common.processes import call_in_processes

def sleep(index):
    open(f"{index}.{os.getpid()}", "w").close()
    time.sleep(1e6)

if __name__ == "__main__":
    # Tests that are started in the background ignore Ctrl-C, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        list(call_in_processes(sleep, ((index,) for index in range(9)), 2))
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""

# Workers are asked before they run any code of ours.
HANDLERS = """
import multiprocessing, signal
from spa3r.data_scripts.common.processes import start_fork_server

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_fork_server()
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        print(pool.apply(signal.getsignal, (signal.SIGINT,)) == signal.SIG_IGN)
    print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)
"""


def test_ctrl_c_is_left_to_the_main_process_from_the_start(tmp_path):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    said = subprocess.run([sys.executable, "handlers.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True"]


def double(number):
    return 2 * number


def fail_at_once_or_sleep(seconds):
    if not seconds:
        raise ValueError("no seconds")
    time.sleep(seconds)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_call_has_its_result(workers):
    assert sorted(call_in_processes(double, ((index,) for index in range(9)), workers)) == list(range(0, 18, 2))


def test_calls_are_taken_as_they_are_needed():
    taken = []
    results = call_in_processes(double, ((taken.append(index) or index,) for index in range(100)), 2)
    next(results)
    assert len(taken) <= 5
    results.close()


def test_a_call_that_fails_ends_the_others_at_once():
    # Without an end, the other call would take days.
    with pytest.raises(ValueError, match="no seconds"):
        list(call_in_processes(fail_at_once_or_sleep, [(1e6,), (0,)], 2))


def is_running(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_main_process_and_leave_the_last_word_to_it(tmp_path, signal_sent):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(running := list(tmp_path.glob("[01].*"))) < 2:
        time.sleep(0.01)
    if signal_sent == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    # Workers that outlive it would never end, and neither would this test.
    _, errors = process.communicate()
    assert signal_sent == signal.SIGKILL or errors == "interrupted\n"
    while any(is_running(int(path.suffix[1:])) for path in running):
        time.sleep(0.01)


def test_the_next_item_is_loaded_while_the_caller_uses_one():
    started = [threading.Event() for _ in range(3)]
    results = load_ahead(lambda index: started[index].set() or 10 * index, range(3))
    for index in range(3):
        item, loading = next(results)
        assert (item, loading.result()) == (index, 10 * index)
        assert all(event.wait() for event in started[: index + 2])
        assert not any(event.is_set() for event in started[index + 2 :])
    assert not list(results)


def test_an_item_that_cannot_be_loaded_does_not_stop_the_others():
    errors = [loading.exception() for _, loading in load_ahead(lambda number: 1 / number, [1, 0, 2])]
    assert [type(error) for error in errors] == [type(None), ZeroDivisionError, type(None)]
