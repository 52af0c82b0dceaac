"""What a vision-language model must offer to be the base of Spa3-VLM.

`BaseVLM` is the whole interface; `require_base` names what a model lacks of it. A base may also return DeepStack
features: those of earlier layers of its vision tower, which it adds to the first layers of its language model. They
reach it unchanged, because only the merged features are fused with the scene.
"""

import inspect
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

__all__ = [
    "BaseVLM",
    "add_empty_features",
    "deepstack_features",
    "missing_in_base",
    "pack_features",
    "require_base",
    "unpack_features",
]

CONFIG_FIELDS = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
VISION_FIELDS = ("patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels")


class BaseVLM(Protocol):
    """The model that `AutoModel` makes of `vlm_config`: a vision-language model of transformers without its head.

    Its configuration has the fields `CONFIG_FIELDS`, its `vision_config` has `VISION_FIELDS`, and `get_text_config()`
    is that of the language model. It takes patches of images as Qwen2-VL's image processor makes them.
    """

    visual: nn.Module
    """The vision tower, which tuning freezes."""
    language_model: nn.Module
    """The language model without its head; Spa3-VLM finds embeddings and decoder under this name. Each layer attends
    to all earlier tokens, so that padding between a cached scene and a question can be masked out."""
    rope_deltas: Tensor | None
    """Offset from token index to text position of each row of the last batch, of shape `(batch_size, 1)`."""

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """Features of images: `pooler_output` holds the tokens of each image, of shape `(num_tokens, hidden_size)`
        with the language model's size. With DeepStack, `deepstack_features` holds such a list for each layer."""

    def get_rope_index(
        self, input_ids: Tensor, mm_token_type_ids: Tensor, image_grid_thw: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions of shape `(3, batch_size, sequence_length)`, and `rope_deltas`."""

    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values,
        inputs_embeds: Tensor | None,
        image_grid_thw: Tensor | None,
        mm_token_type_ids: Tensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
    ) -> BaseModelOutputWithPast:
        """Run the language model. `mm_encoder_outputs["image"]` is what `get_image_features` returned, with the fused
        features in it, and is used in place of pixels."""


def missing_in_base(vlm: nn.Module) -> list[str]:
    """Names of what a model lacks of `BaseVLM`; nothing is run, so it may lie on the meta device."""
    config: PreTrainedConfig = vlm.config
    missing = [f"config.{name}" for name in CONFIG_FIELDS if not hasattr(config, name)]
    if hasattr(config, "vision_config"):
        fields = (name for name in VISION_FIELDS if not hasattr(config.vision_config, name))
        missing += [f"config.vision_config.{name}" for name in fields]
    if "linear_attention" in (getattr(config.get_text_config(), "layer_types", None) or ()):
        missing.append("attention in every layer")
    missing += [name for name in ("visual", "language_model", "rope_deltas") if not hasattr(vlm, name)]
    for name in ("get_image_features", "get_rope_index", "forward"):
        if not hasattr(vlm, name):
            missing.append(f"{name}()")
            continue
        needed = list(inspect.signature(getattr(BaseVLM, name)).parameters)[1:]
        given = inspect.signature(getattr(vlm, name)).parameters
        missing += [f"{name}({parameter})" for parameter in needed if parameter not in given]
    return missing


def require_base(vlm: nn.Module):
    """Refuse a model that cannot be the base of Spa3-VLM.

    Raises:
        ValueError: If it lacks something of `BaseVLM`; the message names it.
    """
    if missing := missing_in_base(vlm):
        raise ValueError(
            f"A `{vlm.config.model_type}` cannot be the vision-language model of Spa3-VLM, because it lacks "
            f"{', '.join(f'`{name}`' for name in missing)}; use a Qwen2.5-VL, a Qwen3-VL or another model with the "
            "interface of `spa3r.modeling_spa3r.spa3_vlm.bases.BaseVLM`."
        )


def deepstack_features(output: BaseModelOutputWithPooling) -> list[Sequence[Tensor]]:
    """DeepStack features: for each layer, those of each image. Empty for a base without them."""
    return list(getattr(output, "deepstack_features", None) or [])


def pack_features(output: BaseModelOutputWithPooling) -> Tensor:
    """All features of images in one tensor of shape `(num_image_tokens, (1 + num_deepstack_layers) * hidden_size)`."""
    layers = [output.pooler_output, *deepstack_features(output)]
    return torch.cat([torch.cat(list(images)) for images in layers], dim=-1)


def unpack_features(packed: Tensor, num_tokens: list[int], hidden_size: int) -> BaseModelOutputWithPooling:
    """The inverse of `pack_features`, for images with these numbers of tokens."""
    merged, *deepstack = (layer.split(num_tokens) for layer in packed.split(hidden_size, dim=-1))
    output = BaseModelOutputWithPooling(pooler_output=merged)
    if deepstack:
        output.deepstack_features = deepstack  # beam search takes an empty list for a layer
    return output


def add_empty_features(output: BaseModelOutputWithPooling):
    """Give the latents after an image DeepStack features of zero, which add nothing to the language model."""
    if deepstack := deepstack_features(output):
        lengths = [len(image) for image in output.pooler_output]
        output.deepstack_features = [
            [F.pad(image, (0, 0, 0, length - len(image))) for image, length in zip(layer, lengths, strict=True)]
            for layer in deepstack
        ]
