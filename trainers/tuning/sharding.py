"""Prepare a Spa3-VLM for ZeRO-3 and FSDP2, which shard its weights over processes."""

import torch
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import is_deepspeed_zero3_enabled

from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration


def prepare_for_sharding(model: Spa3VLMForConditionalGeneration):
    """Register the modules whose weights must be gathered whole, or without their forward being called."""
    if is_deepspeed_zero3_enabled() and model.model.spatial_encoder is not None:
        from deepspeed.utils import set_z3_leaf_modules

        # Processes with different scenes would gather its layers a different number of times.
        set_z3_leaf_modules(model, [type(model.model.spatial_encoder)])

    def gather_head(*_):
        head = model.get_output_embeddings()
        if isinstance(head, FSDPModule) and torch.is_grad_enabled():
            head.unshard()

    # TRL reads the weight of the head without calling the head. If it is sharded, its gradient lacks other processes'.
    model.model.register_forward_pre_hook(gather_head)
