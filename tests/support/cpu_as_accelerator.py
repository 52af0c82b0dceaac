"""Runs DeepSpeed and FSDP on the CPU, for tests.

Accelerate runs these two on accelerators alone, so the CPU is declared to be one, with gloo instead of NCCL. A run
that leaves threads of gloo with work to do behind fails: they could abort the process while Python exits.
"""

import os
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from spa3r.trainers.runs.distributed import GLOO_THREAD, states_of_threads


def require_no_busy_threads_of_gloo():
    """End with an error if threads of gloo that outlive a run have work to do; see `leave_process_group`."""
    if "R" in (left := states_of_threads(GLOO_THREAD)):
        sys.exit(f"Threads of gloo outlive the run and work: {left}.")


def declare_cpu_an_accelerator():
    """Have Accelerate take the CPU for an accelerator, with gloo instead of NCCL."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
