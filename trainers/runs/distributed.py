"""Processes of a run: those that `accelerate launch` starts, and the workers that read data."""

import datetime
import gc
import multiprocessing
import sys

import torch
from accelerate import PartialState
from transformers import Trainer, TrainingArguments

# How long a finished process waits for the slowest one. Scenes may take hours longer elsewhere; the default is 10 min.
PATIENCE = datetime.timedelta(days=7)


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
        multiprocessing.set_forkserver_preload([module])
        args.dataloader_multiprocessing_context = args.dataloader_multiprocessing_context or "forkserver"


def end_run(trainer: Trainer):
    """Let go of what a finished run holds; every process calls it, last of all.

    DeepSpeed's engine holds process groups, whose threads would outlive the interpreter.
    """
    trainer.accelerator.free_memory()


def leave_process_group():
    """End the communication with the other processes of a finished run, and the threads that it needs."""
    gc.collect()  # models in reference cycles may hold groups
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        deepspeed = sys.modules.get("deepspeed")
        if deepspeed is not None and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()  # forgets its own references, too
        else:
            torch.distributed.destroy_process_group()
        gc.collect()
