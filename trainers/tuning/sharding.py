"""What ZeRO-3 and FSDP2 must be told of a Spa3-VLM before its weights are shared out over processes."""

import torch
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import is_deepspeed_zero3_enabled

from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration

__all__ = ["prepare_for_sharding"]


def prepare_for_sharding(model: Spa3VLMForConditionalGeneration):
    """What ZeRO-3 and FSDP2 must be told of processes whose batches differ, and of a head that is never called."""
    if is_deepspeed_zero3_enabled() and model.model.spatial_encoder is not None:
        from deepspeed.utils import set_z3_leaf_modules

        # Gathered whole: processes with other scenes would gather its layers another number of times.
        set_z3_leaf_modules(model, [type(model.model.spatial_encoder)])

    def gather_head(*_):
        head = model.get_output_embeddings()
        if isinstance(head, FSDPModule) and torch.is_grad_enabled():
            head.unshard()

    # TRL reads the head's weight without calling the head; of a sharded one, the gradient is of this process alone.
    model.model.register_forward_pre_hook(gather_head)
