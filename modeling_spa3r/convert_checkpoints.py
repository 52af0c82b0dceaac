"""Import published checkpoints: facebook/VGGT-1B, the official Spa3R `.ckpt`, and DINOv3 as Meta publishes it.

Tables give each tensor of a source its name here. A tensor that no table knows, a parameter that no tensor fills,
or a tensor of the wrong shape is an error that lists the names; what is left out on purpose is listed with the reason.

    spa3r-convert vggt VGGT-1B/model.safetensors checkpoints/vggt-1b
    spa3r-convert spa3r spa3r.ckpt checkpoints/spa3r --dtype bfloat16
    spa3r-convert dinov3 dinov3_vitl16_pretrain_lvd1689m.pth checkpoints/dinov3-vitl16
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel, PreTrainedConfig, PreTrainedModel

from ..configuration.configuration_spa3r import Spa3RConfig
from ..configuration.configuration_vggt import VGGTConfig
from .modeling_spa3r import Spa3RForPreTraining
from .modeling_vggt import VGGTForGeometry

__all__ = [
    "convert_dinov3_state_dict",
    "convert_spa3r_state_dict",
    "convert_vggt_state_dict",
    "dinov3_from_official",
    "spa3r_from_official",
    "vggt_from_official",
]

State = Mapping[str, Tensor]
# Rest of a name, as a regular expression -> what takes its place. A tuple splits the tensor into equal parts along its
# first dimension; a part without a name must be zero and is left out.
Rules = Mapping[str, str | tuple[str | None, ...]]
# (Beginning of a name, as a regular expression; what takes its place; rules for the rest).
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
# The official names count the levels from 1.
DENSE_HEAD_LEVELS: Table = [
    row
    for level in range(4)
    for row in (
        (rf"scratch\.layer{level + 1}_rn\.", f"level_convs.{level}.", {"weight": "weight"}),
        (
            rf"scratch\.refinenet{level + 1}\.",
            f"fusion_layers.{level}.",
            {
                r"out_conv\.(weight|bias)": r"projection.\1",
                r"resConfUnit1\.conv([12])\.(weight|bias)": r"skip_unit.conv\1.\2",
                r"resConfUnit2\.conv([12])\.(weight|bias)": r"unit.conv\1.\2",
            },
        ),
    )
]
DENSE_HEAD_TABLE: Table = [("", "", DENSE_HEAD), *DENSE_HEAD_LEVELS]
CAMERA_HEAD_TABLE: Table = [
    (
        "",
        "",
        {
            "empty_pose_tokens": "empty_pose",
            r"embed_pose\.(weight|bias)": r"pose_embedding.\1",
            r"poseLN_modulation\.1\.(weight|bias)": r"modulation.\1",
            r"token_norm\.(weight|bias)": r"token_norm.\1",
            r"trunk_norm\.(weight|bias)": r"norm.\1",
            r"pose_branch\.fc([12])\.(weight|bias)": r"pose_mlp.fc\1.\2",
        },
    ),
    (r"trunk\.(\d+)\.", r"layers.\1.", BLOCK),
]
AGGREGATOR_TABLE: Table = [
    ("", "", {"camera_token": "camera_token", "register_token": "register_tokens"}),
    (r"(frame|global)_blocks\.(\d+)\.", r"\1_blocks.\2.", BLOCK),
    (r"patch_embed\.", "patch_embedding.", {r"proj\.(weight|bias)": r"projection.\1"}),
    (
        r"patch_embed\.",
        "patch_embedding.vit.",
        {
            r"(cls_token|mask_token|register_tokens)": r"embeddings.\1",
            "pos_embed": "embeddings.position_embeddings",
            r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.projection.\1",
            r"norm\.(weight|bias)": r"layernorm.\1",
        },
    ),
    (r"patch_embed\.blocks\.(\d+)\.", r"patch_embedding.vit.encoder.layer.\1.", DINOV2_BLOCK),
]
DINOV3_TABLE: Table = [
    (
        "",
        "",
        {
            r"(cls_token|mask_token)": r"embeddings.\1",
            "storage_tokens": "embeddings.register_tokens",
            r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.\1",
            r"norm\.(weight|bias)": r"norm.\1",
        },
    ),
    (r"blocks\.(\d+)\.", r"model.layer.\1.", DINOV3_BLOCK),
]


def _inside(source: str, target: str, table: Table) -> Table:
    """The same table for a module that stands in another one, in the source and here."""
    return [(re.escape(source) + beginning, target + place, rules) for beginning, place, rules in table]


VGGT_TABLE: Table = [
    *_inside("aggregator.", "vggt.", AGGREGATOR_TABLE),
    *_inside("camera_head.", "camera_head.", CAMERA_HEAD_TABLE),
    *_inside("depth_head.", "depth_head.", DENSE_HEAD_TABLE),
    *_inside("point_head.", "point_head.", DENSE_HEAD_TABLE),
]
VGGT_LEFT_OUT = {r"track_head\..*": "point tracking is not part of this package"}

SPA3R_TABLE: Table = _inside(
    "model.",
    "",
    [
        *_inside("aggregator.", "model.vggt.", AGGREGATOR_TABLE),
        *_inside("camera_head.", "camera_head.", CAMERA_HEAD_TABLE),
        *_inside("depth_head.", "depth_head.", DENSE_HEAD_TABLE),
        *_inside("dino.", "teachers.semantic.model.", DINOV3_TABLE),
        (
            "",
            "",
            {
                r"projection\.(weight|bias)": r"model.projection.\1",
                r"query_embed\.weight": "model.latent_queries",
                r"pose_tokenizer\.(weight|bias)": r"ray_embedding.\1",
                r"encoder\.(register_tokens|norm\.weight|norm\.bias)": r"model.encoder.\1",
                r"decoder\.(register_tokens|norm\.weight|norm\.bias)": r"decoder.\1",
                r"heads\.geo\.fc([12])\.(weight|bias)": r"heads.geometry.fc\1.\2",
                r"heads\.sem\.fc([12])\.(weight|bias)": r"heads.semantic.fc\1.\2",
                r"depth_prob\.fc([12])\.(weight|bias)": r"depth_probe.fc\1.\2",
            },
        ),
        (r"encoder\.blocks\.(\d+)\.", r"model.encoder.layers.\1.", BLOCK),
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


def _translate(name: str, table: Table) -> tuple[str | None, ...] | None:
    """The new name, or the new names of equal parts; `None` where the table does not know the name."""
    for beginning, place, rules in table:
        if not (start := re.match(beginning, name)):
            continue
        for pattern, targets in rules.items():
            if rest := re.fullmatch(pattern, name[start.end() :]):
                targets = (targets,) if isinstance(targets, str) else targets
                return tuple(t if t is None else start.expand(place) + rest.expand(t) for t in targets)
    return None


def _listed(names: Sequence[str]) -> str:
    return "".join(f"\n  {name}" for name in names)


def _convert(state: State, table: Table, left_out: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    converted, reasons, unknown = {}, {}, []
    for name, tensor in state.items():
        reason = next((reason for pattern, reason in left_out.items() if re.fullmatch(pattern, name)), None)
        targets = _translate(name, table)
        if reason is not None:
            reasons[name] = reason
            continue
        if targets is None:
            unknown.append(name)
            continue
        # Parts are copied, so that each owns its memory, as safetensors requires.
        parts = [part.clone() for part in tensor.chunk(len(targets))] if len(targets) > 1 else [tensor]
        for target, part in zip(targets, parts, strict=True):
            if target is None:
                if not part.is_meta and part.any():
                    raise ValueError(f"A part of `{name}` has no place in the converted model, but is not zero.")
            elif target in converted:
                raise ValueError(f"Two tensors of the checkpoint would become `{target}`, the second is `{name}`.")
            else:
                converted[target] = part
    if unknown:
        raise ValueError(
            f"The checkpoint is of another architecture: {len(unknown)} tensors are unknown:{_listed(unknown)}"
        )
    return converted, reasons


def _with_masked_biases(state: State) -> dict[str, Tensor]:
    """DINOv3 multiplies the bias of queries, keys and values by a stored mask whenever it runs; do it once."""
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
    """Rename the tensors of an official VGGT checkpoint to those of `VGGTForGeometry`.

    Args:
        state (`dict[str, torch.Tensor]`): Tensors by their official names; may be on the meta device, or a part.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, str]]`: Tensors by their names here, and why the others were left
        out, by their official names. An unknown name is a `ValueError`.
    """
    return _convert(state, VGGT_TABLE, VGGT_LEFT_OUT)


def convert_spa3r_state_dict(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of an official Spa3R checkpoint, `model.*`, to those of `Spa3RForPreTraining`; see above."""
    converted, reasons = _convert(_with_masked_biases(state), SPA3R_TABLE, SPA3R_LEFT_OUT)
    return _with_mask_token_axis(converted, "teachers.semantic.model.embeddings.mask_token"), reasons


def convert_dinov3_state_dict(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of an official DINOv3 vision transformer to those of `DINOv3ViTModel`; see above."""
    converted, reasons = _convert(_with_masked_biases(state), DINOV3_TABLE, DINOV3_LEFT_OUT)
    return _with_mask_token_axis(converted, "embeddings.mask_token"), reasons


def _count(state: State, beginning: str) -> int:
    """How many numbered modules there are whose names begin so."""
    return len({match[1] for name in state if (match := re.match(re.escape(beginning) + r"(\d+)\.", name))})


def _vggt_config(state: State, prefix: str, given: Mapping[str, Any]) -> VGGTConfig:
    """Sizes of VGGT by the shapes of its converted tensors; `given` adds what they do not tell, or contradicts."""
    size = state[f"{prefix}camera_token"].shape[-1]
    frame_block = f"{prefix}frame_blocks.0."
    inferred = {
        "hidden_size": size,
        "num_hidden_layers": _count(state, f"{prefix}frame_blocks."),
        "num_attention_heads": size // state[f"{frame_block}attention.q_norm.weight"].shape[0],
        "mlp_ratio": state[f"{frame_block}mlp.fc1.weight"].shape[0] / size,
        "num_register_tokens": state[f"{prefix}register_tokens"].shape[2],
        "global_qk_norm": ("layer_norm" if f"{prefix}global_blocks.0.attention.q_norm.bias" in state else "rms_norm"),
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


def _dinov3_config(state: State, prefix: str, head_dim: int, given: Mapping[str, Any]) -> DINOv3ViTConfig:
    """Sizes of a DINOv3 vision transformer by the shapes of its converted tensors."""
    size, _, patch_size, _ = state[f"{prefix}embeddings.patch_embeddings.weight"].shape
    inferred = {
        "hidden_size": size,
        "intermediate_size": state[f"{prefix}model.layer.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": _count(state, f"{prefix}model.layer."),
        "num_attention_heads": size // head_dim,
        "num_register_tokens": state[f"{prefix}embeddings.register_tokens"].shape[1],
        "patch_size": patch_size,
    }
    return DINOv3ViTConfig(**(inferred | dict(given)))


def _spa3r_config(state: State, dinov3_head_dim: int, given: Mapping[str, Any]) -> Spa3RConfig:
    """Sizes of Spa3R and of its teachers by the shapes of their converted tensors."""
    given = dict(given)
    size = state["model.projection.weight"].shape[0]
    vggt_config = _vggt_config(state, "model.vggt.", given.pop("vggt_config", {}))
    dinov3_config = _dinov3_config(state, "teachers.semantic.model.", dinov3_head_dim, {})
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
        # How the official code trained these weights; no shape tells.
        "regression_loss": "smooth_l1",
        "predict_context_views": True,
        "view_aggregation": "separate",
    }
    return Spa3RConfig(**(inferred | given))


def _dinov3_head_dim(state: State, prefix: str) -> int:
    """Each rotary period serves four channels of a head."""
    return 4 * state[f"{prefix}rope_embed.periods"].shape[0]


@contextlib.contextmanager
def _clear_inference_errors():
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"The checkpoint is incomplete: there is no tensor for {error}, which tells a size of the architecture."
        ) from error
    except IndexError as error:
        raise ValueError("The checkpoint is of another architecture: a tensor has too few dimensions.") from error


def _filled(model_class: type[PreTrainedModel], config: PreTrainedConfig, state: State) -> PreTrainedModel:
    """A model whose parameters are the given tensors themselves, each of them exactly once."""
    with torch.device("meta"):
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [f"{name}: missing" for name in expected if name not in given]
    wrong += [f"{name}: not in the model" for name in given if name not in expected]
    wrong += [
        f"{name}: shape {given[name]} instead of {shape}"
        for name, shape in expected.items()
        if given.get(name, shape) != shape
    ]
    if wrong:
        raise ValueError(f"The checkpoint does not fit the architecture, in {len(wrong)} tensors:{_listed(wrong)}")
    model.load_state_dict(state, assign=True)
    return model


def vggt_from_official(state: State, **config) -> tuple[VGGTForGeometry, dict[str, str]]:
    """Build `VGGTForGeometry` from an official checkpoint.

    Args:
        state (`dict[str, torch.Tensor]`): Tensors by their official names; on the meta device only shapes are checked.
        config (*optional*):
            Fields of `VGGTConfig` that shapes do not tell, where they are not VGGT-1B's: `patch_embedding_heads`,
            `camera_heads`, `camera_iterations`, `dense_layers`, and `image_size` without a vision transformer.

    Returns:
        `tuple[VGGTForGeometry, dict[str, str]]`: The model, and why tensors were left out, by their official names.
    """
    converted, reasons = convert_vggt_state_dict(state)
    with _clear_inference_errors():
        vggt_config = _vggt_config(converted, "vggt.", config)
    return _filled(VGGTForGeometry, vggt_config, converted), reasons


def spa3r_from_official(state: State, **config) -> tuple[Spa3RForPreTraining, dict[str, str]]:
    """Build `Spa3RForPreTraining`, teachers included, from the `state_dict` of an official checkpoint.

    Args:
        state (`dict[str, torch.Tensor]`): As for `vggt_from_official`.
        config (*optional*):
            Fields of `Spa3RConfig` that shapes do not tell; `vggt_config` (`dict`) as for `vggt_from_official`.
    """
    converted, reasons = convert_spa3r_state_dict(state)
    with _clear_inference_errors():
        spa3r_config = _spa3r_config(converted, _dinov3_head_dim(state, "model.dino."), config)
    return _filled(Spa3RForPreTraining, spa3r_config, converted), reasons


def dinov3_from_official(state: State, **config) -> tuple[DINOv3ViTModel, dict[str, str]]:
    """Build transformers' `DINOv3ViTModel` from an official checkpoint; see `vggt_from_official`."""
    converted, reasons = convert_dinov3_state_dict(state)
    with _clear_inference_errors():
        dinov3_config = _dinov3_config(converted, "", _dinov3_head_dim(state, ""), config)
    return _filled(DINOv3ViTModel, dinov3_config, converted), reasons


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read a checkpoint: a `.safetensors` file, a folder of them, or a PyTorch file of tensors.

    A PyTorch file may hold its tensors under `state_dict`, as Lightning's do. Its pickle is never executed: one that
    holds anything but tensors and plain values is a `ValueError`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint at `{path}`.")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"The folder `{path}` holds no `.safetensors` file; name the checkpoint file itself.")
    try:
        if files[0].suffix == ".safetensors":
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`{path}` is damaged, or holds Python objects besides tensors: those could run code and are not loaded; "
            "where you trust its origin, save its `state_dict` alone, best as safetensors."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"`{path}` is damaged or no checkpoint ({error}); download it again.") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"`{path}` is not a checkpoint: tensors by name, or a `state_dict` of them, were expected.")
    return content


def save_atomically(model: PreTrainedModel, output: str | os.PathLike):
    """Write a model with `save_pretrained`; the folder, new or empty, is there complete or not at all."""
    output = Path(output)
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent)
    try:
        model.save_pretrained(unfinished)
        os.chmod(unfinished, 0o755)  # temporary folders are private
        os.replace(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_output(output: Path):
    """Refuse a place that holds something already."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"`{output}` exists and is not an empty folder; name another place for the result.")


SOURCES = {"vggt": vggt_from_official, "spa3r": spa3r_from_official, "dinov3": dinov3_from_official}


def main(arguments: Sequence[str] | None = None):
    """Command line of `spa3r-convert`."""
    parser = argparse.ArgumentParser(
        prog="spa3r-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=SOURCES, help="what the checkpoint is of")
    parser.add_argument("input", type=Path, help="`.safetensors` or PyTorch file, or folder of `.safetensors` files")
    parser.add_argument("output", type=Path, help="folder for the result, new or empty")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="by default as in the checkpoint")
    parser.add_argument("--config", type=Path, help="JSON file of configuration fields that shapes do not tell")
    options = parser.parse_args(arguments)

    try:
        _run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"spa3r-convert: {error}")


def _run(options: argparse.Namespace):
    check_output(options.output)
    config = json.loads(options.config.read_text()) if options.config else {}
    model, reasons = SOURCES[options.source](read_tensors(options.input), **config)
    for reason, number in Counter(reasons.values()).items():
        first = next(name for name in reasons if reasons[name] == reason)
        print(f"Left out {number} tensors such as `{first}`: {reason}.")
    if options.dtype:
        model.to(getattr(torch, options.dtype))
    save_atomically(model, options.output)
    print(f"Wrote {type(model).__name__} to {options.output}.")


if __name__ == "__main__":
    main()
