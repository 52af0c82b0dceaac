"""Processes of a run: those that `accelerate launch` starts, and the workers that read data."""

import contextlib
import datetime
import gc
import sys
import time
from pathlib import Path

import torch
import torch.distributed.nn  # before there is a process group: its functions' defaults would keep the group alive
from accelerate import PartialState
from transformers import Trainer, TrainingArguments

from ...data_scripts.common.processes import start_fork_server

# How long a finished process waits for the slowest one. Scenes may take hours longer elsewhere; the default is 10 min.
PATIENCE = datetime.timedelta(days=7)
# The name of the threads that carry out gloo's collectives.
GLOO_THREAD = "pt_gloo_runloop"


def join_processes() -> PartialState:
    """Join the other processes of a launch that trains nothing, on the accelerator or else on the CPU."""
    # Without an accelerator, processes find each other only if they are told to run on CPUs.
    has_accelerator = torch.accelerator.current_accelerator(check_available=True) is not None
    return PartialState(cpu=not has_accelerator, timeout=PATIENCE)


def start_workers_from_clean_server(args: TrainingArguments, module: str):
    """Start data workers from a server process without threads.

    A process with threads (progress bar, NCCL) can deadlock in a fork. The server imports `module` once, before it
    starts the first worker.
    """
    if args.dataloader_num_workers:
        start_fork_server(module)
        args.dataloader_multiprocessing_context = args.dataloader_multiprocessing_context or "forkserver"


def end_run(trainer: Trainer):
    """Let go of the engine of a finished run; every process calls it, last of all.

    DeepSpeed's engine holds process groups, whose threads must not outlive a run; see `leave_process_group`.
    """
    trainer.accelerator.free_memory()
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    # ZeRO-3 leaves the model there, where the version of DeepSpeed has it.
    getattr(offload, "FWD_MODULE_STACK", []).clear()


def leave_process_group():
    """End the communication with the other processes of a finished run, and the threads that did it.

    A thread of gloo that lets go of a tensor while Python exits aborts the process ("terminate called without an
    active exception"). The threads end with the last reference to their group. Some libraries keep one, such as the
    caches of DTensor; then the threads must at least have nothing to do.
    """
    gc.collect()  # models in reference cycles hold groups
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # forgets its own references, too
    else:
        torch.distributed.destroy_process_group()
    gc.collect()
    while "R" in states_of_threads(GLOO_THREAD):
        time.sleep(0.01)


def states_of_threads(name: str) -> list[str]:
    """Whether threads of this process run (R) or sleep (S), on Linux; elsewhere there are none to see.

    Python's lock is free for a moment before they are looked at, so a thread that sleeps does not wait for it.
    """
    time.sleep(0.01)
    states = []
    for task in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            _, _, rest = task.read_text().partition("(")
            comm, _, fields = rest.rpartition(") ")
            states += [fields[0]] if comm == name else []
    return states
