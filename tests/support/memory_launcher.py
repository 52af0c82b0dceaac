"""Train like `spa3r sft`, and print the bytes of live tensors between two records of the second step.

For tests on the CPU, which is declared to be an accelerator as in `cpu_as_accelerator.py`. The garbage collector
finds the tensors; each storage is counted once.
"""

import gc
import sys
import warnings

import torch
from cpu_as_accelerator import declare_cpu_an_accelerator, require_no_busy_threads_of_gloo
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from spa3r.trainers.runs.distributed import end_run, leave_process_group
from spa3r.trainers.tuning.sft import build_trainer, parse_arguments


def bytes_alive() -> int:
    """Bytes of all tensors in this process."""
    gc.collect()
    with warnings.catch_warnings():
        # Some objects of the collector warn on inspection.
        warnings.simplefilter("ignore")
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
        # A gradient becomes a Python object on first access.
        tensors += [each.grad for each in tensors if each.is_leaf and each.grad is not None]
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in parts}
    return sum(storages.values())


class CountBytes(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 1 and state.is_world_process_zero:
            print(f"bytes alive: {bytes_alive()}", flush=True)


if __name__ == "__main__":
    declare_cpu_an_accelerator()
    trainer = build_trainer(*parse_arguments(sys.argv[1:]))
    trainer.add_callback(CountBytes())
    trainer.train()
    end_run(trainer)
    del trainer
    leave_process_group()
    require_no_busy_threads_of_gloo()
