"""Build models from published weights: VGGT-1B, the official Spa3R and Spa3-VLM, and DINOv3 as Meta publishes it.

A tensor of unknown name, a parameter that no tensor fills, or a tensor of the wrong shape raises a `ValueError` that
lists the names. Tensors that are left out on purpose are returned with the reason.
"""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
)

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...configuration.configuration_spa3r import Spa3RConfig
from ...configuration.configuration_vggt import VGGTConfig
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..spa3r.modeling_spa3r import Spa3RForPreTraining
from ..vggt.modeling_vggt import VGGTForGeometry
from .names import (
    convert_dinov3_state_dict,
    convert_spa3_vlm_state_dict,
    convert_spa3r_state_dict,
    convert_vggt_state_dict,
)
from .tensors import State, require_exact_tensors

__all__ = ["dinov3_from_official", "spa3_vlm_from_official", "spa3r_from_official", "vggt_from_official"]


def vggt_from_official(state: State, **config) -> tuple[VGGTForGeometry, dict[str, str]]:
    """Build `VGGTForGeometry` from an official checkpoint.

    Args:
        state (`dict[str, torch.Tensor]`): Tensors by their official names; on the meta device only shapes are checked.
        config (*optional*):
            Fields of `VGGTConfig` that shapes do not determine, where they differ from VGGT-1B's:
            `patch_embedding_heads`, `camera_heads`, `camera_iterations`, `dense_layers`, and `image_size` without a
            vision transformer.

    Returns:
        `tuple[VGGTForGeometry, dict[str, str]]`: The model, and by official name why a tensor was left out.
    """
    converted, reasons = convert_vggt_state_dict(state)
    return _filled(VGGTForGeometry, _vggt_config(converted, "vggt.", config), converted), reasons


def spa3r_from_official(state: State, **config) -> tuple[Spa3RForPreTraining, dict[str, str]]:
    """Build `Spa3RForPreTraining`, teachers included, from the `state_dict` of an official checkpoint.

    Args:
        state (`dict[str, torch.Tensor]`): As for `vggt_from_official`.
        config (*optional*):
            Fields of `Spa3RConfig` that shapes do not determine; `vggt_config` (`dict`) as for `vggt_from_official`.
    """
    converted, reasons = convert_spa3r_state_dict(state)
    spa3r_config = _spa3r_config(converted, state, config)
    return _filled(Spa3RForPreTraining, spa3r_config, converted), reasons


def dinov3_from_official(state: State, **config) -> tuple[DINOv3ViTModel, dict[str, str]]:
    """Build transformers' `DINOv3ViTModel` from an official checkpoint; see `vggt_from_official`."""
    converted, reasons = convert_dinov3_state_dict(state)
    dinov3_config = _dinov3_config(converted, "", state, "", config)
    return _filled(DINOv3ViTModel, dinov3_config, converted), reasons


def spa3_vlm_from_official(
    state: State, config: Mapping[str, Any], **spatial_config
) -> tuple[Spa3VLMForConditionalGeneration, dict[str, str]]:
    """Build `Spa3VLMForConditionalGeneration` from an official checkpoint, which transformers 4.50 wrote.

    Args:
        state (`dict[str, torch.Tensor]`): As for `vggt_from_official`.
        config (`dict`): Its `config.json`: Qwen2.5-VL's with a few more fields.
        spatial_config (*optional*): As for `spa3r_from_official`.
    """
    converted, reasons = convert_spa3_vlm_state_dict(state)
    vlm_config = _qwen_config(config)
    if vlm_config.tie_word_embeddings and "lm_head.weight" in converted:
        head, embeddings = converted.pop("lm_head.weight"), state.get("model.embed_tokens.weight")
        if embeddings is not None and not head.is_meta and not torch.equal(head, embeddings):
            raise ValueError(
                "`config.json` says `tie_word_embeddings`, but `lm_head.weight` differs from "
                "`model.embed_tokens.weight`; set it to false to keep both."
            )
        reasons["lm_head.weight"] = "it is tied to the word embeddings"
    # Sizes are inferred from all of Spa3R, including the tensors that are left out.
    prefix = "geometry_encoder.spa3r."
    spa3r = {f"model.{name.removeprefix(prefix)}": state[name] for name in state if name.startswith(prefix)}
    spa3r_config = _spa3r_config(convert_spa3r_state_dict(spa3r)[0], spa3r, spatial_config)
    spa3_vlm_config = Spa3VLMConfig(vlm_config=vlm_config, spatial_config=spa3r_config)
    return _filled(Spa3VLMForConditionalGeneration, spa3_vlm_config, converted), reasons


# Configurations, inferred from the shapes of converted tensors. `given` adds fields, or overrides inferred ones.


@contextlib.contextmanager
def _explain_missing_sizes():
    """Turn the errors of a lookup in an incomplete or different checkpoint into a `ValueError`."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"The checkpoint is incomplete: it lacks the tensor {error}, whose shape determines the architecture; "
            "download it again."
        ) from error
    except IndexError as error:
        raise ValueError(
            "The checkpoint is of another architecture: a tensor has too few dimensions; check which model it holds."
        ) from error


@_explain_missing_sizes()
def _vggt_config(state: State, prefix: str, given: Mapping[str, Any]) -> VGGTConfig:
    size = state[f"{prefix}camera_token"].shape[-1]
    frame_block = f"{prefix}frame_blocks.0."
    inferred = {
        "hidden_size": size,
        "num_hidden_layers": _count(state, f"{prefix}frame_blocks."),
        "num_attention_heads": size // state[f"{frame_block}attention.q_norm.weight"].shape[0],
        "mlp_ratio": state[f"{frame_block}mlp.fc1.weight"].shape[0] / size,
        "num_register_tokens": state[f"{prefix}register_tokens"].shape[2],
        "global_qk_norm": "layer_norm" if f"{prefix}global_blocks.0.attention.q_norm.bias" in state else "rms_norm",
        "camera_layers": _count(state, "camera_head.layers."),
        "dense_hidden_size": state["depth_head.level_convs.0.weight"].shape[0],
        "dense_channels": [state[f"depth_head.level_convs.{level}.weight"].shape[1] for level in range(4)],
    }
    vit = f"{prefix}patch_embedding.vit."
    if f"{vit}embeddings.position_embeddings" in state:
        patch_size = state[f"{vit}embeddings.patch_embeddings.projection.weight"].shape[-1]
        num_positions = state[f"{vit}embeddings.position_embeddings"].shape[1] - 1
        inferred |= {
            "patch_embedding": "vit",
            "patch_size": patch_size,
            "image_size": round(num_positions**0.5) * patch_size,
            "patch_embedding_layers": _count(state, f"{vit}encoder.layer."),
            "patch_embedding_mlp_ratio": state[f"{vit}encoder.layer.0.mlp.fc1.weight"].shape[0] // size,
        }
    else:
        patch_size = state[f"{prefix}patch_embedding.projection.weight"].shape[-1]
        inferred |= {"patch_embedding": "conv", "patch_size": patch_size}
    return VGGTConfig(**(inferred | dict(given)))


@_explain_missing_sizes()
def _dinov3_config(
    state: State, prefix: str, official: State, official_prefix: str, given: Mapping[str, Any]
) -> DINOv3ViTConfig:
    size, _, patch_size, _ = state[f"{prefix}embeddings.patch_embeddings.weight"].shape
    inferred = {
        "hidden_size": size,
        "intermediate_size": state[f"{prefix}model.layer.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": _count(state, f"{prefix}model.layer."),
        # Each rotary period serves four channels of a head.
        "num_attention_heads": size // (4 * official[f"{official_prefix}rope_embed.periods"].shape[0]),
        "num_register_tokens": state[f"{prefix}embeddings.register_tokens"].shape[1],
        "patch_size": patch_size,
    }
    return DINOv3ViTConfig(**(inferred | dict(given)))


@_explain_missing_sizes()
def _spa3r_config(state: State, official: State, given: Mapping[str, Any]) -> Spa3RConfig:
    given = dict(given)
    size = state["model.projection.weight"].shape[0]
    vggt_config = _vggt_config(state, "model.vggt.", given.pop("vggt_config", {}))
    dinov3_config = _dinov3_config(state, "teachers.semantic.model.", official, "model.dino.", {})
    inferred = {
        "vggt_config": vggt_config.to_dict(),
        "teachers": {"semantic": {"vision_config": dinov3_config.to_dict()}},
        "hidden_size": size,
        "num_attention_heads": size // state["model.encoder.layers.0.attention.q_norm.weight"].shape[0],
        "num_encoder_layers": _count(state, "model.encoder.layers."),
        "num_decoder_layers": _count(state, "decoder.layers."),
        "mlp_ratio": state["model.encoder.layers.0.mlp.fc1.weight"].shape[0] / size,
        "num_latents": state["model.latent_queries"].shape[0],
        "num_register_tokens": state["model.encoder.register_tokens"].shape[1],
        # How the official code trained these weights; it differs from the paper (Eq. 4, 5, 13).
        "regression_loss": "smooth_l1",
        "predict_context_views": True,
        "view_aggregation": "separate",
    }
    return Spa3RConfig(**(inferred | given))


def _qwen_config(official: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """Extract Qwen2.5-VL's configuration from the `config.json` of an official Spa3-VLM."""
    model_type = official.get("model_type")
    if model_type != "qwen2_5_vl":
        raise ValueError(
            f"The `model_type` of an official Spa3-VLM is `qwen2_5_vl`, got `{model_type}`; was the checkpoint "
            "converted before?"
        )
    of_the_file = {"architectures", "torch_dtype", "transformers_version"}
    fields = {
        name: value
        for name, value in official.items()
        if name not in of_the_file and not name.startswith(("use_geometry_", "geometry_", "spa3r_"))
    }
    # transformers does not save ids that are null and would fall back on Qwen's, which a small vocabulary lacks.
    vocab_size = official.get("vocab_size", Qwen2_5_VLTextConfig.vocab_size)
    defaults = {"bos_token_id": Qwen2_5_VLTextConfig.bos_token_id, "eos_token_id": Qwen2_5_VLTextConfig.eos_token_id}
    absent = {name: None for name, default in defaults.items() if default >= vocab_size}
    return Qwen2_5_VLConfig(**(absent | fields))


def _count(state: State, prefix: str) -> int:
    """Count the numbered modules whose names start with `prefix`."""
    return len({match[1] for name in state if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def _filled(model_class: type[PreTrainedModel], config: PreTrainedConfig, state: State) -> PreTrainedModel:
    """Build a model whose parameters are the given tensors themselves; each must be used exactly once."""
    # Buffers are computed: no checkpoint holds them.
    with init_empty_weights(include_buffers=False):
        model = model_class(config)
    tied = model.all_tied_weights_keys
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    misshapen = [(name, given[name], shape) for name, shape in expected.items() if given.get(name, shape) != shape]
    where = "The checkpoint does not fit the architecture"
    require_exact_tensors(where, expected.keys() - given.keys(), given.keys() - expected.keys(), misshapen)
    model.load_state_dict(state, assign=True, strict=not tied)
    model.tie_weights()
    return model.eval()
