"""Fingerprints of weights, by which a run recognizes what another network has made."""

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def hash_weights(module: nn.Module) -> str:
    """Hash of the names, shapes and bits of all parameters. Under ZeRO-3 every process must call this."""
    weights = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        with _whole(parameter):
            weights.update(f"{name} {tuple(parameter.shape)}".encode())
            weights.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return weights.hexdigest()


def _whole(parameter: Tensor) -> AbstractContextManager:
    """Gather a parameter that ZeRO-3 has sharded."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameter)
