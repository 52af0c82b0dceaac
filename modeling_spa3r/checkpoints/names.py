"""Translate the names of tensors in published checkpoints to their names in this package.

A tensor whose name no table knows raises a `ValueError` that lists the names. Tensors that are left out on purpose are
returned with the reason.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from .tensors import State, one_per_line

__all__ = [
    "convert_dinov3_state_dict",
    "convert_spa3_vlm_state_dict",
    "convert_spa3r_state_dict",
    "convert_vggt_state_dict",
]

# Pattern of the rest of a name -> its replacement. A tuple splits the tensor into equal parts along its first
# dimension; a part without a name must be zero and is dropped.
Rules = Mapping[str, str | tuple[str | None, ...]]
# (Pattern of the beginning of a name, its replacement, rules for the rest).
Table = Sequence[tuple[str, str, Rules]]

NORM_AND_MLP: Rules = {r"(norm[12]|mlp\.fc[12])\.(weight|bias)": r"\1.\2"}
BLOCK: Rules = {
    **NORM_AND_MLP,
    r"attn\.(qkv|proj|q_norm|k_norm)\.(weight|bias)": r"attention.\1.\2",
    r"ls([12])\.gamma": r"layer_scale\1.scale",
}
DINOV2_BLOCK: Rules = {
    **NORM_AND_MLP,
    r"attn\.qkv\.(weight|bias)": (r"attention.q_proj.\1", r"attention.k_proj.\1", r"attention.v_proj.\1"),
    r"attn\.proj\.(weight|bias)": r"attention.o_proj.\1",
    r"ls([12])\.gamma": r"layer_scale\1.lambda1",
}
DINOV3_BLOCK: Rules = {
    r"norm([12])\.(weight|bias)": r"norm\1.\2",
    r"mlp\.fc1\.(weight|bias)": r"mlp.up_proj.\1",
    r"mlp\.fc2\.(weight|bias)": r"mlp.down_proj.\1",
    r"attn\.qkv\.weight": ("attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight"),
    r"attn\.qkv\.bias": ("attention.q_proj.bias", None, "attention.v_proj.bias"),
    r"attn\.proj\.(weight|bias)": r"attention.o_proj.\1",
    r"ls([12])\.gamma": r"layer_scale\1.lambda1",
}
DENSE_HEAD: Rules = {
    r"norm\.(weight|bias)": r"norm.\1",
    r"projects\.(\d)\.(weight|bias)": r"projections.\1.\2",
    r"resize_layers\.(\d)\.(weight|bias)": r"resamplers.\1.\2",
    r"scratch\.output_conv1\.(weight|bias)": r"output_conv1.\1",
    r"scratch\.output_conv2\.0\.(weight|bias)": r"output_conv2.\1",
    r"scratch\.output_conv2\.2\.(weight|bias)": r"output_conv3.\1",
}
FUSION_LAYER: Rules = {
    r"out_conv\.(weight|bias)": r"projection.\1",
    r"resConfUnit1\.conv([12])\.(weight|bias)": r"skip_unit.conv\1.\2",
    r"resConfUnit2\.conv([12])\.(weight|bias)": r"unit.conv\1.\2",
}
# The official names count the levels from 1.
DENSE_HEAD_TABLE: Table = [
    ("", "", DENSE_HEAD),
    *((rf"scratch\.layer{n + 1}_rn\.", f"level_convs.{n}.", {"weight": "weight"}) for n in range(4)),
    *((rf"scratch\.refinenet{n + 1}\.", f"fusion_layers.{n}.", FUSION_LAYER) for n in range(4)),
]
CAMERA_HEAD: Rules = {
    "empty_pose_tokens": "empty_pose",
    r"embed_pose\.(weight|bias)": r"pose_embedding.\1",
    r"poseLN_modulation\.1\.(weight|bias)": r"modulation.\1",
    r"token_norm\.(weight|bias)": r"token_norm.\1",
    r"trunk_norm\.(weight|bias)": r"norm.\1",
    r"pose_branch\.fc([12])\.(weight|bias)": r"pose_mlp.fc\1.\2",
}
CAMERA_HEAD_TABLE: Table = [("", "", CAMERA_HEAD), (r"trunk\.(\d+)\.", r"layers.\1.", BLOCK)]
DINOV2: Rules = {
    r"(cls_token|mask_token|register_tokens)": r"embeddings.\1",
    "pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.projection.\1",
    r"norm\.(weight|bias)": r"layernorm.\1",
}
AGGREGATOR_TABLE: Table = [
    ("", "", {"camera_token": "camera_token", "register_token": "register_tokens"}),
    (r"(frame|global)_blocks\.(\d+)\.", r"\1_blocks.\2.", BLOCK),
    (r"patch_embed\.", "patch_embedding.", {r"proj\.(weight|bias)": r"projection.\1"}),
    (r"patch_embed\.", "patch_embedding.vit.", DINOV2),
    (r"patch_embed\.blocks\.(\d+)\.", r"patch_embedding.vit.encoder.layer.\1.", DINOV2_BLOCK),
]
DINOV3: Rules = {
    r"(cls_token|mask_token)": r"embeddings.\1",
    "storage_tokens": "embeddings.register_tokens",
    r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.\1",
    r"norm\.(weight|bias)": r"norm.\1",
}
DINOV3_TABLE: Table = [("", "", DINOV3), (r"blocks\.(\d+)\.", r"model.layer.\1.", DINOV3_BLOCK)]


def _nested(source: str, target: str, table: Table) -> Table:
    """Move a table into a submodule: named `source` in the checkpoint and `target` here."""
    return [(re.escape(source) + beginning, target + replacement, rules) for beginning, replacement, rules in table]


VGGT_TABLE: Table = [
    *_nested("aggregator.", "vggt.", AGGREGATOR_TABLE),
    *_nested("camera_head.", "camera_head.", CAMERA_HEAD_TABLE),
    *_nested("depth_head.", "depth_head.", DENSE_HEAD_TABLE),
    *_nested("point_head.", "point_head.", DENSE_HEAD_TABLE),
]
VGGT_LEFT_OUT = {r"track_head\..*": "point tracking is not part of this package"}

SPA3R_ENCODER: Rules = {
    r"projection\.(weight|bias)": r"projection.\1",
    r"query_embed\.weight": "latent_queries",
    r"encoder\.(register_tokens|norm\.weight|norm\.bias)": r"encoder.\1",
}
SPA3R_ENCODER_TABLE: Table = [
    *_nested("aggregator.", "vggt.", AGGREGATOR_TABLE),
    ("", "", SPA3R_ENCODER),
    (r"encoder\.blocks\.(\d+)\.", r"encoder.layers.\1.", BLOCK),
]
SPA3R_DECODER: Rules = {
    r"pose_tokenizer\.(weight|bias)": r"ray_embedding.\1",
    r"decoder\.(register_tokens|norm\.weight|norm\.bias)": r"decoder.\1",
    r"heads\.geo\.fc([12])\.(weight|bias)": r"heads.geometry.fc\1.\2",
    r"heads\.sem\.fc([12])\.(weight|bias)": r"heads.semantic.fc\1.\2",
    r"depth_prob\.fc([12])\.(weight|bias)": r"depth_probe.fc\1.\2",
}
SPA3R_TABLE: Table = _nested(
    "model.",
    "",
    [
        *_nested("", "model.", SPA3R_ENCODER_TABLE),
        *_nested("camera_head.", "camera_head.", CAMERA_HEAD_TABLE),
        *_nested("depth_head.", "depth_head.", DENSE_HEAD_TABLE),
        *_nested("dino.", "teachers.semantic.model.", DINOV3_TABLE),
        ("", "", SPA3R_DECODER),
        (r"decoder\.blocks\.(\d+)\.", r"decoder.layers.\1.", BLOCK),
    ],
)
DINOV3_LEFT_OUT = {
    r"rope_embed\.periods": "computed from the configuration",
    r"blocks\.\d+\.attn\.qkv\.bias_mask": "applied to the bias: keys have none",
}
SPA3R_LEFT_OUT = {
    r"model\.point_head\..*": "Spa3R does not use VGGT's points",
    **{rf"model\.dino\.{pattern}": reason for pattern, reason in DINOV3_LEFT_OUT.items()},
}

ADAPTER: Rules = {
    r"geometry_projector\.0\.(weight|bias)": r"projector.fc1.\1",
    r"geometry_projector\.2\.(weight|bias)": r"projector.fc2.\1",
    r"geom_cross_attention\.([qkv]_proj|[qk]_norm|proj)\.(weight|bias)": r"cross_attention.\1.\2",
    r"ln\.(weight|bias)": r"norm.\1",
    r"geometry_adaptor\.0\.(weight|bias)": r"adapter.fc1.\1",
    r"geometry_adaptor\.2\.(weight|bias)": r"adapter.fc2.\1",
    r"geometry_gate\.0\.(weight|bias)": r"gate.\1",
}
# Qwen2.5-VL by the names of transformers 4.50. Its modules have since moved, but kept their own names.
SPA3_VLM_TABLE: Table = [
    (r"visual\.", "model.vlm.visual.", {".+": r"\g<0>"}),
    (r"model\.", "model.vlm.language_model.", {".+": r"\g<0>"}),
    ("", "", {r"lm_head\.weight": "lm_head.weight"}),
    ("", "model.fusion.", ADAPTER),
    *_nested("geometry_encoder.spa3r.", "model.spatial_encoder.", SPA3R_ENCODER_TABLE),
]
SPA3_VLM_LEFT_OUT = {
    r"geometry_encoder\.spa3r\.(decoder|pose_tokenizer|heads|depth_prob)\..*": (
        "predicts the features of other views, which only pre-training needs"
    ),
    r"geometry_encoder\.spa3r\.(camera_head|depth_head|point_head)\..*": "the latents need no cameras and no depth",
    r"geometry_encoder\.spa3r\.dino\..*": "DINOv3 teaches in pre-training only",
}


def _translate(name: str, table: Table) -> tuple[str | None, ...] | None:
    """Look up the new name, or the new names of equal parts; `None` if the table does not know the name."""
    for beginning, replacement, rules in table:
        if not (start := re.match(beginning, name)):
            continue
        for pattern, targets in rules.items():
            if rest := re.fullmatch(pattern, name[start.end() :]):
                targets = (targets,) if isinstance(targets, str) else targets
                return tuple(t if t is None else start.expand(replacement) + rest.expand(t) for t in targets)
    return None


def _convert(state: State, table: Table, left_out: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    converted, reasons, unknown = {}, {}, []
    for name, tensor in state.items():
        reason = next((reason for pattern, reason in left_out.items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            reasons[name] = reason
            continue
        if (targets := _translate(name, table)) is None:
            unknown.append(name)
            continue
        # safetensors requires that each part owns its memory.
        parts = [part.clone() for part in tensor.chunk(len(targets))] if len(targets) > 1 else [tensor]
        for target, part in zip(targets, parts, strict=True):
            if target is None:
                if not part.is_meta and part.any():
                    raise ValueError(
                        f"The converted model has no place for a part of `{name}`, which must therefore be zero, got "
                        f"values up to {part.abs().max():g}; convert another checkpoint."
                    )
            elif target in converted:
                raise ValueError(
                    f"Two tensors of the checkpoint would become `{target}`, one of them `{name}`; remove one."
                )
            else:
                converted[target] = part
    if unknown:
        raise ValueError(
            f"The checkpoint is of another architecture, check its model: {len(unknown)} tensors are unknown:"
            f"{one_per_line(unknown)}"
        )
    return converted, reasons


def _with_masked_biases(state: State) -> dict[str, Tensor]:
    """Multiply the biases of queries, keys and values by their stored mask, as DINOv3 does in each forward."""
    state = dict(state)
    for name in [name for name in state if name.endswith(".qkv.bias_mask")]:
        bias = name.removesuffix("_mask")
        state[bias] = state[bias] * state[name]
    return state


def _with_mask_token_axis(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    if name in state:
        state[name] = state[name].unsqueeze(0)  # (1, C) -> (1, 1, C)
    return state


def convert_vggt_state_dict(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of an official VGGT checkpoint for `VGGTForGeometry`.

    Args:
        state (`dict[str, torch.Tensor]`): All tensors or some, by their official names; may be on the meta device.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, str]]`: Tensors by their new names, and by official name why a
        tensor was left out.

    Raises:
        ValueError: If a name is unknown.
    """
    return _convert(state, VGGT_TABLE, VGGT_LEFT_OUT)


def convert_spa3r_state_dict(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors `model.*` of an official Spa3R for `Spa3RForPreTraining`; see `convert_vggt_state_dict`."""
    converted, reasons = _convert(_with_masked_biases(state), SPA3R_TABLE, SPA3R_LEFT_OUT)
    return _with_mask_token_axis(converted, "teachers.semantic.model.embeddings.mask_token"), reasons


def convert_dinov3_state_dict(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of an official DINOv3 for `DINOv3ViTModel`; see `convert_vggt_state_dict`."""
    converted, reasons = _convert(_with_masked_biases(state), DINOV3_TABLE, DINOV3_LEFT_OUT)
    return _with_mask_token_axis(converted, "embeddings.mask_token"), reasons


def convert_spa3_vlm_state_dict(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of an official Spa3-VLM for `Spa3VLMForConditionalGeneration`; see `convert_vggt_state_dict`.

    Names of Qwen2.5-VL's own tensors are not checked here, but when the tensors fill the model.
    """
    return _convert(state, SPA3_VLM_TABLE, SPA3_VLM_LEFT_OUT)
