"""Commands that share work out over the processes of `accelerate launch`, and train nothing."""

import datetime

import torch
from accelerate import PartialState

__all__ = ["PATIENCE", "join_processes"]

# Who is done waits for the last one, whose scenes may take hours longer; the library would end the run in ten minutes.
PATIENCE = datetime.timedelta(days=7)


def join_processes() -> PartialState:
    """This process among the others, on its accelerator or else the CPU."""
    # Without an accelerator several processes know of each other only if they are told that they are on CPUs.
    has_accelerator = torch.accelerator.current_accelerator(check_available=True) is not None
    return PartialState(cpu=not has_accelerator, timeout=PATIENCE)
