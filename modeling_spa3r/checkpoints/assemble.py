"""Build a Spa3-VLM from a Qwen2.5-VL and a Spa3R, and the processor that belongs to it."""

import os
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ..spa3r.modeling_spa3r import Spa3RModel
from .loading import blame_checkpoint, load_config, load_whole, require_checkpoint, require_tokens

__all__ = ["assemble_spa3_vlm", "load_qwen", "load_tokenizer", "make_processor", "plain_qwen"]


def assemble_spa3_vlm(
    vlm: Qwen2_5_VLForConditionalGeneration, spa3r: Spa3RModel | None, **settings
) -> Spa3VLMForConditionalGeneration:
    """Join a Qwen2.5-VL and a Spa3R with a new adapter, which adds nothing until it is trained (paper Eq. 14-15).

    The result holds the two models themselves, not copies; Spa3R takes the dtype of the VLM.

    Args:
        vlm (`Qwen2_5_VLForConditionalGeneration`): Vision-language model; on the meta device nothing is computed.
        spa3r (`Spa3RModel`, *optional*): Spatial encoder; `fusion="none"` needs none.
        settings (*optional*): `fusion` and `spatial_representation` of `Spa3VLMConfig`.

    Raises:
        ValueError: If the two do not fit together.
    """
    spatial = {}
    if spa3r is not None:
        spa3r.config.teachers_included = True  # its VGGT is loaded, whichever checkpoint it came from
        spatial["spatial_config"] = spa3r.config
    config = Spa3VLMConfig(vlm_config=vlm.config, **spatial, **settings)
    _require_compatible_parts(config)
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


def _require_compatible_parts(config: Spa3VLMConfig):
    vlm_config = config.vlm_config
    if vlm_config.model_type != "qwen2_5_vl":
        raise ValueError(
            f"The vision-language model must be a Qwen2.5-VL (`qwen2_5_vl`), got a `{vlm_config.model_type}`."
        )
    vlm_size, spatial_size = vlm_config.vision_config.patch_size, config.spatial_config.vggt_config.patch_size
    if vlm_size != spatial_size:
        raise ValueError(
            "The vision-language model and Spa3R share images, so their `patch_size` must be equal, got "
            f"{vlm_size} and {spatial_size} pixels; choose another Spa3R."
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
        ValueError: If the tokenizer's special tokens have other ids than the model's, or `image_width` is not a
            multiple of the patch size.
    """
    vlm_config = config.vlm_config
    require_tokens(tokenizer, vlm_config)
    vision_config = vlm_config.vision_config
    tokenizer.padding_side = "left"
    image_processor = Spa3VLMImageProcessor(
        image_width=image_width,
        patch_size=vision_config.patch_size,
        merge_size=vision_config.spatial_merge_size,
        temporal_patch_size=vision_config.temporal_patch_size,
    )
    return Spa3VLMProcessor(image_processor, tokenizer, num_appended_tokens=config.num_appended_tokens)


def load_qwen(name: str, **options) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerBase]:
    """Load a complete Qwen2.5-VL and its tokenizer; of a Spa3-VLM, the Qwen2.5-VL inside.

    Args:
        name (`str`): Folder, or name on the Hub.
        options (*optional*): Passed to `from_pretrained` of the model.

    Raises:
        FileNotFoundError: If there is no such checkpoint, or it has no tokenizer.
        ValueError: If it holds another kind of model, or an incomplete one.
    """
    require_checkpoint(name)
    model_type = load_config(AutoConfig, name).model_type
    if model_type not in ("qwen2_5_vl", "spa3_vlm"):
        raise ValueError(f"`{name}` holds a `{model_type}` model; give a Qwen2.5-VL (`qwen2_5_vl`) or a Spa3-VLM.")
    tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise FileNotFoundError(f"There is no tokenizer in `{name}`; give the whole folder of a Qwen2.5-VL.")
    model = load_whole(AutoModelForImageTextToText, name, **options)
    return plain_qwen(model) if model_type == "spa3_vlm" else model, tokenizer


def plain_qwen(model: Spa3VLMForConditionalGeneration) -> Qwen2_5_VLForConditionalGeneration:
    """The Qwen2.5-VL inside a Spa3-VLM, without adapter and spatial encoder; holds the modules themselves.

    Raises:
        ValueError: If the vision-language model is another.
    """
    config = model.config.vlm_config
    if config.model_type != "qwen2_5_vl":
        raise ValueError(f"The Spa3-VLM holds a `{config.model_type}`; give one with a Qwen2.5-VL (`qwen2_5_vl`).")
    with torch.device("meta"):
        qwen = Qwen2_5_VLForConditionalGeneration(config)
    qwen.model, qwen.lm_head, qwen.generation_config = model.model.vlm, model.lm_head, model.generation_config
    return qwen.eval()


def load_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a checkpoint; `None` for a folder without one, where transformers makes an empty one."""
    if Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file():
        return None
    with blame_checkpoint(str(name)):
        return AutoTokenizer.from_pretrained(name)
