"""Fingerprints of weights, by which a run recognizes what another network has made."""

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def hash_weights(module: nn.Module) -> str:
    """Hash of the names, shapes and bits of all that checkpoints hold. Under ZeRO-3 every process must call this."""
    weights, saved = hashlib.sha256(), module.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in module.named_buffers() if name in saved]
    for name, parameter in sorted([*module.named_parameters(), *buffers]):
        with _whole(parameter):
            weights.update(f"{name} {tuple(parameter.shape)}".encode())
            weights.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy())
    return weights.hexdigest()


def _whole(parameter: Tensor) -> AbstractContextManager:
    """Gather a parameter that ZeRO-3 has sharded."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameter)
