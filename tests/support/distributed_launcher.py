"""Starts a trainer, `pretrain` or `sft`, under DeepSpeed or FSDP on the CPU, for tests.

Accelerate runs these two on accelerators alone, so the CPU is declared to be one, with gloo instead of NCCL.
"""

import os
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from spa3r.trainers.integrations.cli import main

if __name__ == "__main__":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    main(sys.argv[1:])
