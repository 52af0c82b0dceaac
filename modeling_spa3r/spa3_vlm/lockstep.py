"""Keeps ranks in lockstep when only some of them have images in their batch.

Ranks that train together reduce the gradients of the same weights in the same order, and ranks that shard the weights
(FSDP, ZeRO-3) gather them together. A rank without images must therefore run the image path too, on dummy input.
"""

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from .bases import deepstack_features

__all__ = ["dummy_fusion_pass", "dummy_image_pass", "needs_dummy_pass", "unsplit_classes"]


def needs_dummy_pass(model: PreTrainedModel, past_key_values: Cache | None = None) -> bool:
    """Whether a forward pass without images must run a dummy image pass to stay in lockstep with other ranks."""
    weight = next(model.parameters())
    is_sharded = hasattr(weight, "device_mesh") or hasattr(weight, "ds_id")  # by FSDP2, by ZeRO-3
    if is_sharded:
        return past_key_values is None or not past_key_values.get_seq_length()
    # `generate` needs none, even for a model in training mode.
    return model.training and torch.is_grad_enabled()


def dummy_image_pass(model: PreTrainedModel, device: torch.device, has_latents: bool, has_features: bool) -> Tensor:
    """Run the image path on dummy input and return zero, so every rank issues the same collectives.

    Args:
        model (`Spa3VLMModel`): The model.
        device (`torch.device`): Device of the text.
        has_latents (`bool`): Whether the ranks with images get `spatial_latents` and skip the spatial encoder.
        has_features (`bool`): Whether the ranks with images get `vision_features` and skip the vision tower.

    Returns:
        `torch.Tensor`: A zero that depends on the image path. Add it to the output, so that its backward pass runs.
    """
    if has_features:
        hidden_size = model.config.get_text_config().hidden_size
        image_tokens = torch.zeros(1, hidden_size, device=device, dtype=model.dtype)
        deepstack = []
    else:
        # The smallest image: one square of merged patches.
        config = model.config.vlm_config.vision_config
        side = config.spatial_merge_size
        patch_size = config.in_channels * config.temporal_patch_size * config.patch_size**2
        patches = torch.zeros(side**2, patch_size, device=device)
        grid = torch.tensor([[1, side, side]], device=device)
        output = model.vlm.get_image_features(patches, grid, return_dict=True)
        (image_tokens,), deepstack = output.pooler_output, deepstack_features(output)
    zero = 0 * image_tokens.sum() if model.fusion is None else dummy_fusion_pass(model, image_tokens, has_latents)
    for (tokens,) in deepstack:
        zero = zero + 0 * tokens.sum()
    return zero


def dummy_fusion_pass(model: PreTrainedModel, image_tokens: Tensor, has_latents: bool) -> Tensor:
    """Run the spatial encoder and the fusion on dummy input and return zero; see `dummy_image_pass`."""
    if not has_latents:
        model.spatial_encoder([])
    latents = image_tokens.new_zeros(1, model.config.latent_size)
    return 0 * model.fusion([image_tokens], [latents])[0].sum()


def unsplit_classes(model: PreTrainedModel, encoder_classes: tuple[type[nn.Module], ...]) -> set[str]:
    """Names of the classes in `_no_split_modules` that FSDP can wrap in this model.

    FSDP refuses classes that the model does not contain. It must wrap a spatial encoder as a whole: ranks with
    different numbers of scenes would gather single layers a different number of times.
    """
    modules = dict(model.named_modules())
    inside_encoders = tuple(f"{name}." for name, module in modules.items() if isinstance(module, encoder_classes))
    wrapped = {type(module).__name__ for name, module in modules.items() if not name.startswith(inside_encoders)}
    return model._no_split_modules & wrapped
