"""Import published checkpoints, and put Spa3-VLM together.

Read are facebook/VGGT-1B, the official Spa3R `.ckpt`, DINOv3 as Meta publishes it, and the official Spa3-VLM. A tensor
of unknown name (`checkpoint_names.py`), a parameter that no tensor fills, or a tensor of the wrong shape is an error
that lists the names; what is left out on purpose is listed with the reason.

    spa3r convert vggt VGGT-1B/model.safetensors checkpoints/vggt-1b
    spa3r convert spa3r spa3r.ckpt checkpoints/spa3r --dtype bfloat16
    spa3r convert dinov3 dinov3_vitl16_pretrain_lvd1689m.pth checkpoints/dinov3-vitl16
    spa3r convert spa3-vlm official-spa3-vlm checkpoints/spa3-vlm-4b
    spa3r convert assemble checkpoints/spa3-vlm-4b --vlm Qwen/Qwen2.5-VL-3B-Instruct --spa3r checkpoints/spa3r
    spa3r convert assemble runs/spa3-vlm --vlm spa3-vlm-nano --spa3r runs/quickstart/model --image-width 112
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
)

from ...configuration import load_preset
from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...configuration.configuration_spa3r import Spa3RConfig
from ...configuration.configuration_vggt import VGGTConfig
from ...data_scripts.common.files import new_folder, require_empty_folder
from ..spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ..spa3r.modeling_spa3r import Spa3RForPreTraining, Spa3RModel
from ..vggt.modeling_vggt import VGGTForGeometry
from .byte_tokenizer import byte_tokenizer
from .loading import check_place
from .names import (
    State,
    convert_dinov3_state_dict,
    convert_spa3_vlm_state_dict,
    convert_spa3r_state_dict,
    convert_vggt_state_dict,
    listed,
)
from .self_contained import PARTS, parts_of, save_self_contained, spa3_vlm_card

__all__ = [
    "assemble_spa3_vlm",
    "convert_dinov3_state_dict",
    "convert_spa3_vlm_state_dict",
    "convert_spa3r_state_dict",
    "convert_vggt_state_dict",
    "dinov3_from_official",
    "load_qwen",
    "make_processor",
    "spa3_vlm_from_official",
    "spa3r_from_official",
    "vggt_from_official",
]


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
    # Buffers are computed: no checkpoint holds them.
    with init_empty_weights(include_buffers=False):
        model = model_class(config)
    tied = model.all_tied_weights_keys
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [f"{name}: missing" for name in expected if name not in given]
    wrong += [f"{name}: not in the model" for name in given if name not in expected]
    wrong += [
        f"{name}: shape {given[name]} instead of {shape}"
        for name, shape in expected.items()
        if given.get(name, shape) != shape
    ]
    if wrong:
        raise ValueError(f"The checkpoint does not fit the architecture, in {len(wrong)} tensors:{listed(wrong)}")
    model.load_state_dict(state, assign=True, strict=not tied)
    model.tie_weights()
    return model.eval()


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


def spa3_vlm_from_official(
    state: State, config: Mapping[str, Any], **spatial_config
) -> tuple[Spa3VLMForConditionalGeneration, dict[str, str]]:
    """Build `Spa3VLMForConditionalGeneration` from an official checkpoint, as transformers 4.50 wrote it.

    Args:
        state (`dict[str, torch.Tensor]`): As for `vggt_from_official`.
        config (`dict`): Its `config.json`, that of Qwen2.5-VL with a few fields more.
        spatial_config (*optional*): As for `spa3r_from_official`.
    """
    converted, reasons = convert_spa3_vlm_state_dict(state)
    vlm_config = _qwen_config(config)
    if vlm_config.tie_word_embeddings and "lm_head.weight" in converted:
        head, embeddings = converted.pop("lm_head.weight"), state.get("model.embed_tokens.weight")
        if embeddings is not None and not head.is_meta and not torch.equal(head, embeddings):
            raise ValueError(
                "The configuration says `tie_word_embeddings`, but `lm_head.weight` differs from "
                "`model.embed_tokens.weight`; set it to false to keep both."
            )
        reasons["lm_head.weight"] = "it is tied to the word embeddings"
    # Sizes are told by all of Spa3R, also by what is left out.
    prefix = "geometry_encoder.spa3r."
    spa3r = {f"model.{name.removeprefix(prefix)}": state[name] for name in state if name.startswith(prefix)}
    with _clear_inference_errors():
        spa3r_config = _spa3r_config(
            convert_spa3r_state_dict(spa3r)[0], _dinov3_head_dim(spa3r, "model.dino."), spatial_config
        )
    spa3_vlm_config = Spa3VLMConfig(vlm_config=vlm_config, spatial_config=spa3r_config)
    return _filled(Spa3VLMForConditionalGeneration, spa3_vlm_config, converted), reasons


def _qwen_config(official: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """Configuration of Qwen2.5-VL by the `config.json` of an official Spa3-VLM."""
    model_type = official.get("model_type")
    if model_type != "qwen2_5_vl":
        raise ValueError(
            f"The configuration is of a `{model_type}` model, but an official Spa3-VLM's says `qwen2_5_vl`; was the "
            "checkpoint converted before?"
        )
    of_the_file = {"architectures", "torch_dtype", "transformers_version"}
    fields = {
        name: value
        for name, value in official.items()
        if name not in of_the_file and not name.startswith(("use_geometry_", "geometry_", "spa3r_"))
    }
    # Null ids were not saved, and Qwen's take their place, which a small vocabulary does not have.
    vocab_size = official.get("vocab_size", Qwen2_5_VLTextConfig.vocab_size)
    defaults = {"bos_token_id": Qwen2_5_VLTextConfig.bos_token_id, "eos_token_id": Qwen2_5_VLTextConfig.eos_token_id}
    absent = {name: None for name, default in defaults.items() if default >= vocab_size}
    return Qwen2_5_VLConfig(**(absent | fields))


def assemble_spa3_vlm(
    vlm: Qwen2_5_VLForConditionalGeneration, spa3r: Spa3RModel | None, **settings
) -> Spa3VLMForConditionalGeneration:
    """Put a Qwen2.5-VL and a Spa3R together; the adapter between them is new, and silent until it is trained.

    The two become parts of the result as they are, without a copy; Spa3R takes the type of the VLM.

    Args:
        vlm (`Qwen2_5_VLForConditionalGeneration`): The vision-language model; on the meta device nothing is computed.
        spa3r (`Spa3RModel`, *optional*): The spatial encoder; with `fusion="none"` there need not be one.
        settings (*optional*): `fusion` and `spatial_representation` of `Spa3VLMConfig`.

    Raises:
        ValueError: If the two do not fit.
    """
    spatial = {}
    if spa3r is not None:
        spa3r.config.teachers_included = True  # the VGGT is there, wherever it came from
        spatial["spatial_config"] = spa3r.config
    config = Spa3VLMConfig(vlm_config=vlm.config, **spatial, **settings)
    _check_parts(config)
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


def _check_parts(config: Spa3VLMConfig):
    vlm_config = config.vlm_config
    if vlm_config.model_type != "qwen2_5_vl":
        raise ValueError(
            f"The vision-language model must be a Qwen2.5-VL (`qwen2_5_vl`), got a `{vlm_config.model_type}`."
        )
    patch_sizes = vlm_config.vision_config.patch_size, config.spatial_config.vggt_config.patch_size
    if len(set(patch_sizes)) > 1:
        raise ValueError(
            "The vision-language model and Spa3R must have patches of one size, as they see the same images, got "
            f"{patch_sizes[0]} and {patch_sizes[1]} pixels."
        )


def make_processor(
    config: Spa3VLMConfig, tokenizer: PreTrainedTokenizerBase, image_width: int = 518
) -> Spa3VLMProcessor:
    """The processor of a model.

    Args:
        config (`Spa3VLMConfig`): The model's.
        tokenizer (`PreTrainedTokenizerBase`): The vision-language model's; it will pad on the left.
        image_width (`int`, *optional*, defaults to 518):
            Width in pixels that images are resized to: what the spatial encoder was trained with.

    Raises:
        ValueError: If the special tokens have other ids than the model's, or the width is not of whole patches.
    """
    vlm_config = config.vlm_config
    expected = {
        "<|vision_start|>": vlm_config.vision_start_token_id,
        "<|vision_end|>": vlm_config.vision_end_token_id,
        "<|image_pad|>": vlm_config.image_token_id,
        "<|video_pad|>": vlm_config.video_token_id,
    }
    given = {token: tokenizer.convert_tokens_to_ids(token) for token in expected}
    if given != expected:
        raise ValueError(
            f"The tokenizer is another model's: it has the ids {given}, but the vision-language model {expected}."
        )
    vision_config = vlm_config.vision_config
    merged = vision_config.patch_size * vision_config.spatial_merge_size
    if image_width % vision_config.patch_size or image_width < merged:
        raise ValueError(
            f"`image_width` must be a multiple of {vision_config.patch_size} pixels, and at least {merged}, got "
            f"{image_width}."
        )
    tokenizer.padding_side = "left"
    image_processor = Spa3VLMImageProcessor(
        image_width=image_width,
        patch_size=vision_config.patch_size,
        merge_size=vision_config.spatial_merge_size,
        temporal_patch_size=vision_config.temporal_patch_size,
    )
    return Spa3VLMProcessor(image_processor, tokenizer, num_appended_tokens=config.num_appended_tokens)


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
    with new_folder(output) as unfinished:
        model.save_pretrained(unfinished)


# --- Command line ---

SOURCES = {"vggt": vggt_from_official, "spa3r": spa3r_from_official, "dinov3": dinov3_from_official}


def _run_source(options: argparse.Namespace):
    config = json.loads(options.config.read_text()) if options.config else {}
    model, reasons = SOURCES[options.command](read_tensors(options.input), **config)
    _print_left_out(reasons)
    _write(model, options)


def _print_left_out(reasons: Mapping[str, str]):
    for reason, number in Counter(reasons.values()).items():
        first = next(name for name in reasons if reasons[name] == reason)
        print(f"Left out {number} tensors such as `{first}`: {reason}.")


def _write(model: PreTrainedModel, options: argparse.Namespace):
    if options.dtype:
        model.to(getattr(torch, options.dtype))
    save_atomically(model, options.output)
    print(f"Wrote {type(model).__name__} to {options.output}.")


def _write_spa3_vlm(
    model: Spa3VLMForConditionalGeneration,
    processor: Spa3VLMProcessor | None,
    origins: Mapping[str, str | None],
    options: argparse.Namespace,
):
    """Write a checkpoint that carries its code, and a card that says where its weights are from."""
    if options.dtype:
        model.to(getattr(torch, options.dtype))
    # A place on this machine says nothing elsewhere.
    names = {part: _public_name(name) for part, name in origins.items() if part in parts_of(model.config)}
    model.config.vlm_config.name_or_path = names["vlm"] or ""
    model.config.spatial_config.name_or_path = ""
    save_self_contained(model, processor, options.output, spa3_vlm_card(options.output.name, model.config, names))
    and_processor = "" if processor is None else f" and {type(processor).__name__}"
    print(f"Wrote {type(model).__name__}{and_processor} to {options.output}.")


def _public_name(checkpoint: str | os.PathLike | None) -> str | None:
    """What a card calls a checkpoint: its name on the Hub, or that of its folder."""
    if checkpoint is None:
        return None
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else str(checkpoint)


def _run_spa3_vlm(options: argparse.Namespace):
    config_file = options.input / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"There is no `{config_file}`; give the whole folder of an official Spa3-VLM.")
    spatial_config = json.loads(options.config.read_text()) if options.config else {}
    model, reasons = spa3_vlm_from_official(
        read_tensors(options.input), json.loads(config_file.read_text()), **spatial_config
    )
    if (options.input / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(options.input)
    tokenizer = _load_tokenizer(options.input)
    processor = None if tokenizer is None else make_processor(model.config, tokenizer, options.image_width)
    _print_left_out(reasons)
    _write_spa3_vlm(model, processor, dict.fromkeys(PARTS, options.input), options)
    if processor is None:
        print(f"There is no tokenizer in {options.input}: no processor was written. `make_processor` makes one.")


def _run_assemble(options: argparse.Namespace):
    torch.manual_seed(options.seed)
    spa3r = _load_whole(Spa3RModel, options.spa3r)
    vlm, tokenizer = _load_vlm(options.vlm, options.dtype)
    model = assemble_spa3_vlm(vlm, spa3r, fusion=options.fusion, spatial_representation=options.spatial_representation)
    processor = make_processor(model.config, tokenizer, options.image_width)
    origins = {
        "vlm": options.vlm if _is_checkpoint(options.vlm) else None,
        "vggt": spa3r.config.vggt_checkpoint or options.spa3r,
        "spatial_encoder": options.spa3r,
        "fusion": None,
    }
    _write_spa3_vlm(model, processor, origins, options)


def _is_checkpoint(name: str) -> bool:
    """Whether a name is of a folder or of a repository on the Hub, not of a preset."""
    return Path(name).is_dir() or "/" in name


def load_qwen(name: str, **options) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerBase]:
    """Load a Qwen2.5-VL, all of it, and its tokenizer.

    Args:
        name (`str`): Folder, or name on the Hub.
        options (*optional*): Of `from_pretrained`.

    Raises:
        FileNotFoundError: If there is no such place, or no tokenizer in it.
        ValueError: If it holds another kind of model, or one that is not whole.
    """
    check_place(name)
    model_type = AutoConfig.from_pretrained(name).model_type
    if model_type != "qwen2_5_vl":
        raise ValueError(f"`{name}` holds a `{model_type}` model; give a Qwen2.5-VL (`qwen2_5_vl`).")
    tokenizer = _load_tokenizer(name)
    if tokenizer is None:
        raise FileNotFoundError(f"There is no tokenizer in `{name}`; give the whole folder of a Qwen2.5-VL.")
    return _load_whole(AutoModelForImageTextToText, name, **options), tokenizer


def _load_vlm(name: str, dtype: str | None) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerBase]:
    """A Qwen2.5-VL from a folder or the Hub with its tokenizer, or an untrained one by the name of a preset."""
    if _is_checkpoint(name):
        return load_qwen(name, dtype=dtype or "auto")
    config, tokenizer = Spa3VLMConfig(**load_preset(name)), byte_tokenizer()
    make_processor(config, tokenizer)  # refuses a large vocabulary before weights are made
    print(f"`{name}` is an architecture: its vision-language model is untrained, and its tokens are bytes.")
    return AutoModelForImageTextToText.from_config(config.vlm_config, dtype=dtype), tokenizer


def _load_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerBase | None:
    # Where there is none, the library would make an empty one.
    if Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(name)


def _load_whole(model_class, name: str, **kwargs) -> PreTrainedModel:
    """Load a model, all of it: the library would fill in random weights for what is missing or does not fit."""
    check_place(name)
    model, info = model_class.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    wrong = [f"{key}: missing" for key in sorted(info["missing_keys"])]
    wrong += [f"{key}: not in the model" for key in sorted(info["unexpected_keys"])]
    wrong += [
        f"{key}: shape {tuple(found)} instead of {tuple(shape)}" for key, found, shape in info["mismatched_keys"]
    ]
    if wrong:
        raise ValueError(f"`{name}` does not fit its own `config.json`, in {len(wrong)} tensors:{listed(wrong)}")
    return model


def main(arguments: Sequence[str] | None = None):
    """Command line of `spa3r convert`."""
    options = _parser().parse_args(arguments)
    try:
        require_empty_folder(options.output)
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"spa3r convert: {error}")
    except StrictDataclassError as error:
        # The library wraps what a configuration class says in lines of its own.
        sys.exit(f"spa3r convert: {error.__cause__ or error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spa3r convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    file = "`.safetensors` or PyTorch file, or folder of `.safetensors` files"
    _add_command(commands, "vggt", _run_source, "import VGGT as facebook/VGGT-1B", file)
    _add_command(commands, "spa3r", _run_source, "import the official Spa3R, teachers included", file)
    _add_command(commands, "dinov3", _run_source, "import DINOv3 as Meta publishes it", file)

    folder = "folder of `.safetensors` files with `config.json`, and the tokenizer's if there"
    spa3_vlm = _add_command(commands, "spa3-vlm", _run_spa3_vlm, "import the official Spa3-VLM", folder)
    _add_width(spa3_vlm, "width in pixels that images are resized to (default: 518)")

    text = "put a Qwen2.5-VL and a Spa3R together, with a new adapter"
    assemble = _add_command(commands, "assemble", _run_assemble, text)
    assemble.add_argument(
        "--vlm",
        required=True,
        metavar="VLM",
        help="Qwen2.5-VL: a folder, a name on the Hub, or a preset such as spa3-vlm-nano, which is untrained",
    )
    assemble.add_argument(
        "--spa3r", required=True, metavar="SPA3R", help="Spa3R of this package: a folder or a name on the Hub"
    )
    assemble.add_argument(
        "--fusion",
        choices=["cross_attention", "append", "none"],
        default="cross_attention",
        help="how image features and the scene meet (default: cross_attention)",
    )
    assemble.add_argument(
        "--spatial-representation",
        choices=["spa3r", "vggt"],
        default="spa3r",
        help="what the scene is represented by (default: spa3r)",
    )
    _add_width(assemble, "width in pixels of the images that Spa3R was trained with (default: 518)")
    assemble.add_argument("--seed", type=int, default=0, metavar="N", help="seed of untrained weights (default: 0)")
    return parser


def _add_command(commands, name: str, run, text: str, input_help: str | None = None) -> argparse.ArgumentParser:
    """A command that writes a checkpoint, and with `input_help` reads an official one."""
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(run=run)
    if input_help:
        command.add_argument("input", type=Path, metavar="INPUT", help=input_help)
        command.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="JSON of configuration fields that shapes do not tell, where they are not those of the full size",
        )
    command.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the result, new or empty")
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="type of the weights (default: as they are)"
    )
    return command


def _add_width(command: argparse.ArgumentParser, text: str):
    command.add_argument("--image-width", type=int, default=518, metavar="PIXELS", help=text)


if __name__ == "__main__":
    main()
