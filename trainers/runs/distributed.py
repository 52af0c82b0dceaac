"""Processes of a run: those that `accelerate launch` starts, and the workers that read data."""

import datetime
import multiprocessing

import torch
from accelerate import PartialState
from transformers import TrainingArguments

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


def leave_process_group():
    """End the communication with the other processes of a finished run, if there are any; NCCL warns otherwise."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
