"""Build a Spa3-VLM from a vision-language model and a Spa3R, and the processor that belongs to it."""

import os
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..spa3_vlm.bases import require_base
from ..spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..spa3_vlm.processing_spa3_vlm import CHAT_TEMPLATE, PLAIN_CHAT_TEMPLATE, Spa3VLMProcessor
from ..spa3r.modeling_spa3r import Spa3RModel
from .loading import blame_checkpoint, load_config, load_whole, require_checkpoint, require_tokens

__all__ = ["BASES", "assemble_spa3_vlm", "load_base_vlm", "load_tokenizer", "make_processor", "plain_vlm"]

QWEN3_IMAGES = {
    "do_resize": True,
    "size": {"shortest_edge": 256**2, "longest_edge": 4096**2},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# The prompt of each base and its rules for images, as its own processor has them: the type of a model -> a chat
# template, and settings of `Spa3VLMImageProcessor`.
BASES = {
    "qwen2_vl": (CHAT_TEMPLATE, {}),
    "qwen2_5_vl": (CHAT_TEMPLATE, {}),
    "qwen3_vl": (PLAIN_CHAT_TEMPLATE, QWEN3_IMAGES),
    "qwen3_vl_moe": (PLAIN_CHAT_TEMPLATE, QWEN3_IMAGES),
}


def assemble_spa3_vlm(vlm: PreTrainedModel, spa3r: Spa3RModel | None, **settings) -> Spa3VLMForConditionalGeneration:
    """Join a vision-language model and a Spa3R with a new adapter, which adds nothing until it is trained (paper
    Eq. 14-15).

    The result holds the two models themselves, not copies; Spa3R takes the dtype of the VLM.

    Args:
        vlm (`PreTrainedModel`):
            A Qwen2.5-VL, Qwen3-VL or another of `BASES`, with its head; on the meta device nothing is computed.
        spa3r (`Spa3RModel`, *optional*): Spatial encoder; `fusion="none"` needs none.
        settings (*optional*): `fusion` and `spatial_representation` of `Spa3VLMConfig`.

    Raises:
        ValueError: If the vision-language model is of another type.
    """
    _require_base(vlm.config)
    spatial = {}
    if spa3r is not None:
        spa3r.config.teachers_included = True  # its VGGT is loaded, whichever checkpoint it came from
        spatial["spatial_config"] = spa3r.config
    config = Spa3VLMConfig(vlm_config=vlm.config, **spatial, **settings)
    with torch.device("meta"):
        model = Spa3VLMForConditionalGeneration(config)
    inner = model.model
    inner.vlm, model.lm_head, model.generation_config = vlm.model, vlm.lm_head, vlm.generation_config
    if config.fusion != "none":
        encoder = spa3r if config.spatial_representation == "spa3r" else spa3r.vggt
        inner.spatial_encoder.load_state_dict(encoder.state_dict(), assign=True)
        inner.fusion.to_empty(device=vlm.device).apply(model._init_weights)
        inner.fusion.to(vlm.dtype)
        inner.spatial_encoder.to(vlm.dtype)
    model.tie_weights()
    return model.eval()


def _require_base(config: PreTrainedConfig):
    """Refuse another type of model than those in `BASES`, and name what it lacks of their interface, if anything."""
    if config.model_type in BASES:
        return
    if "vision_config" in config.sub_configs:
        with torch.device("meta"):
            require_base(AutoModel.from_config(config))
    raise ValueError(
        f"A `{config.model_type}` is no base of Spa3-VLM: neither its prompt nor its rules for images are known here; "
        f"give one of {', '.join(f'`{name}`' for name in BASES)}."
    )


def make_processor(
    config: Spa3VLMConfig, tokenizer: PreTrainedTokenizerBase, image_width: int = 518
) -> Spa3VLMProcessor:
    """Make the processor of a model.

    Args:
        config (`Spa3VLMConfig`): Configuration of the model.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the vision-language model; set to pad on the left.
        image_width (`int`, *optional*, defaults to 518):
            Width in pixels that images are resized to: the width that the spatial encoder was trained with.

    Raises:
        ValueError: If the vision-language model is not in `BASES`, the tokenizer's special tokens have other ids than
            the model's, or `image_width` is not a multiple of the spatial encoder's patch size.
    """
    vlm_config = config.vlm_config
    _require_base(vlm_config)
    require_tokens(tokenizer, vlm_config)
    chat_template, rules = BASES[vlm_config.model_type]
    vision_config, geometry_patch_size = vlm_config.vision_config, config.spatial_config.vggt_config.patch_size
    if vision_config.patch_size != geometry_patch_size:
        rules = rules | {"geometry_patch_size": geometry_patch_size, "do_resize": True}
    tokenizer.padding_side = "left"
    image_processor = Spa3VLMImageProcessor(
        image_width=image_width,
        patch_size=vision_config.patch_size,
        merge_size=vision_config.spatial_merge_size,
        temporal_patch_size=vision_config.temporal_patch_size,
        **rules,
    )
    return Spa3VLMProcessor(
        image_processor, tokenizer, chat_template=chat_template, num_appended_tokens=config.num_appended_tokens
    )


def load_base_vlm(name: str, **options) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a complete vision-language model and its tokenizer; of a Spa3-VLM, the one inside.

    Args:
        name (`str`): Folder, or name on the Hub.
        options (*optional*): Passed to `from_pretrained` of the model.

    Raises:
        FileNotFoundError: If there is no such checkpoint, or it has no tokenizer.
        ValueError: If it holds a model that is not in `BASES`, or an incomplete one.
    """
    require_checkpoint(name)
    config = load_config(AutoConfig, name)
    if config.model_type != Spa3VLMConfig.model_type:
        _require_base(config)
    tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise FileNotFoundError(
            f"There is no tokenizer in `{name}`; give the whole folder of a `{config.model_type}`."
        )
    model = load_whole(AutoModelForImageTextToText, name, **options)
    return plain_vlm(model) if config.model_type == Spa3VLMConfig.model_type else model, tokenizer


def plain_vlm(model: Spa3VLMForConditionalGeneration) -> PreTrainedModel:
    """The vision-language model in a Spa3-VLM, without adapter and spatial encoder; holds the modules themselves."""
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(model.config.vlm_config)
    vlm.model, vlm.lm_head, vlm.generation_config = model.model.vlm, model.lm_head, model.generation_config
    return vlm.eval()


def load_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a checkpoint; `None` for a folder without one, where transformers makes an empty one."""
    if Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file():
        return None
    with blame_checkpoint(str(name)):
        return AutoTokenizer.from_pretrained(name)
