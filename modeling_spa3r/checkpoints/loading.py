"""Load checkpoints and refuse incomplete ones: transformers fills in random weights for what is missing."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.common.files import blame_file
from ..library import is_deepspeed_zero3_enabled
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from .tensors import require_exact_tensors

__all__ = [
    *("blame_checkpoint", "find_damaged_file", "load_config", "load_processor", "load_spa3_vlm", "load_whole"),
    *("require_checkpoint", "require_tokens"),
]

# What `save_pretrained` of model and processor write. Without a config.json transformers builds the full-size model.
CONFIG = "config.json"
REQUIRED_FILES = (CONFIG, "processor_config.json", "tokenizer.json")
WEIGHTS = (".safetensors", ".bin")
ADAPTER = "model.fusion."
OWN_PARTS = (ADAPTER, "model.spatial_encoder.")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Errors that say more than that a checkpoint is damaged.
NOT_DAMAGE = (ImportError, MemoryError, torch.OutOfMemoryError)


def require_checkpoint(name: str):
    """Raise `FileNotFoundError` unless `name` is a folder with weights and their configuration, or could be a name on
    the Hub; `ValueError` if an index in the folder names weights elsewhere."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            raise FileNotFoundError(
                f"There is no checkpoint at `{name}`; give a folder, or OWNER/NAME of one on the Hub."
            )
    elif not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise FileNotFoundError(f"The folder `{name}` lacks weights (model.safetensors); give a complete checkpoint.")
    elif not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"The folder `{name}` lacks {CONFIG} beside its weights; give a complete checkpoint.")
    else:
        for index in folder.glob("*.index.json"):
            _require_own_shards(index)


@contextmanager
def blame_checkpoint(name: str) -> Iterator[None]:
    """Name the checkpoint in whatever the libraries raise while they read its files.

    On a damaged configuration, tokenizer or chat template they raise errors of any type, which seldom name the file.

    Args:
        name (`str`): Folder, or name on the Hub.

    Raises:
        ValueError: Instead of such an error; names the damaged file if it can be found.
    """
    try:
        yield
    except NOT_DAMAGE:
        raise
    except Exception as error:
        is_ours = isinstance(error, ValueError | OSError) and name in str(error)
        if (is_ours and find_damaged_file(Path(name)) is None) or getattr(error, "errno", None) is not None:
            raise
        damage = find_damaged_file(Path(name))
        reason = damage or " ".join(str(error).split()) or type(error).__name__
        remedy = "copy the checkpoint again" if damage else "copy the checkpoint again, or load it with other options"
        raise ValueError(f"`{name}` cannot be loaded ({reason.rstrip('.')}): {remedy}.") from error


def find_damaged_file(folder: Path) -> str | None:
    """The file of a checkpoint that cannot be read, and why, as a part of a sentence."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if file.suffix == ".json" and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                return f"`{file.name}` holds no JSON object"
            if file.suffix == ".jinja":
                file.read_text(encoding="utf-8")
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as content:
                    content.keys()
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            return f"`{file.name}` is damaged: {error}"
    return None


def _require_own_shards(index: Path):
    """Raise `ValueError` if an index names weights that are not files beside it."""
    with blame_file(index, "copy the checkpoint again"):
        for name in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if Path(name).name != name or not (index.parent / name).is_file():
                raise ValueError(f"it names {name!r:.100}, which is no file beside it")


def load_config(config_class: type, name: str) -> PreTrainedConfig:
    """Load the configuration of a checkpoint.

    Args:
        config_class (`type`): Its class, or `AutoConfig`.
        name (`str`): Folder, or name on the Hub.

    Raises:
        ValueError: If it is damaged, or of another kind of model.
    """
    with blame_checkpoint(name):
        return config_class.from_pretrained(name)


def load_processor(name: str) -> ProcessorMixin:
    """Load the processor of a Spa3-VLM, and try it on a question about an image.

    Args:
        name (`str`): Folder, or name on the Hub.

    Raises:
        ValueError: If its tokenizer, chat template or settings are damaged.
    """
    with blame_checkpoint(name):
        processor = AutoProcessor.from_pretrained(name)
        require_tokens(processor.tokenizer, Spa3VLMConfig.from_pretrained(name).vlm_config)
        parts = [{"type": "image", "image": PIL.Image.new("RGB", (64, 48))}, {"type": "text", "text": "What is it?"}]
        conversations = [[{"role": "user", "content": content}] for content in (parts, parts[1:])]
        processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        return processor


def require_tokens(tokenizer: PreTrainedTokenizerBase, vlm_config: PreTrainedConfig):
    """Raise `ValueError` unless the special tokens of a tokenizer have the ids that the vision-language model uses."""
    expected = {
        "<|vision_start|>": vlm_config.vision_start_token_id,
        "<|vision_end|>": vlm_config.vision_end_token_id,
        "<|image_pad|>": vlm_config.image_token_id,
        "<|video_pad|>": vlm_config.video_token_id,
    }
    given = {token: tokenizer.convert_tokens_to_ids(token) for token in expected}
    if given != expected:
        raise ValueError(
            f"The `tokenizer` belongs to another model: its ids are {given}, but the vision-language model's are "
            f"{expected}; give the tokenizer that came with it."
        )


def _check_generation(name: str, model: PreTrainedModel):
    """Refuse settings of generation that fail only while a model answers: tokens that it has not, odd numbers."""
    settings, size = model.generation_config.to_dict(), model.config.get_text_config().vocab_size
    for key, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            is_odd = isinstance(item, float) and not math.isfinite(item)
            is_token = key.endswith("_token_id") and item is not None
            if is_odd or (is_token and not (type(item) is int and 0 <= item < size)):
                kind = "a token" if is_token else "finite"
                raise ValueError(
                    f"`{key}` in the generation_config.json of `{name}` must be {kind}, got {item!r}: copy the "
                    "checkpoint again."
                )


def load_whole(model_class: type, name: str, may_hold_more: bool = False, **options) -> PreTrainedModel:
    """Load a model whose weights are exactly those that its configuration asks for.

    Args:
        model_class (`type`): Model class or Auto class.
        name (`str`): Folder, or name on the Hub.
        may_hold_more (`bool`, *optional*, defaults to `False`):
            Whether the checkpoint may hold weights of parts that the model has not.
        options (*optional*): Passed to `from_pretrained`.

    Raises:
        FileNotFoundError: If there is no such checkpoint, or no file of weights in it.
        ValueError: If weights are missing, unexpected, of another shape or not finite.
    """
    require_checkpoint(name)
    where = f"`{name}` does not fit " + ("its own `config.json`" if "config" not in options else "the configuration")
    with blame_checkpoint(name):
        model, info = _load(model_class, name, options)
    unexpected = [] if may_hold_more else info["unexpected_keys"]
    require_exact_tensors(where, info["missing_keys"], unexpected, info["mismatched_keys"])
    _require_finite(name, model)
    return model


def _require_finite(name: str, model: PreTrainedModel):
    """Refuse weights of a run that diverged: a model with NaN in it answers, and reports, as any other."""
    for weight_name, weight in model.named_parameters():
        # Weights that are elsewhere, such as those that ZeRO-3 has shared out, cannot be seen here.
        is_seen = weight.dtype in FLOATS and not weight.is_meta and weight.numel()
        if is_seen and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise ValueError(
                f"`{weight_name}` in `{name}` holds NaN or infinity: give an earlier checkpoint, or copy it again."
            )


def _load(model_class: type, name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model, and what transformers noted about its tensors."""
    # ZeRO-3 shards have other shapes, which transformers accounts for only while it ignores no mismatch.
    options["ignore_mismatched_sizes"] = not is_deepspeed_zero3_enabled()
    try:
        return model_class.from_pretrained(name, output_loading_info=True, **options)
    except OSError as error:
        if Path(name).is_dir():
            raise
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"`{name}` is neither a folder nor a model on the Hub; check the name: {reason}") from error


def load_spa3_vlm(name: str, **options) -> Spa3VLMForConditionalGeneration:
    """Load a Spa3-VLM. Only its adapter may be missing: a new one adds nothing until it is trained.

    Args:
        name (`str`): Folder, or name on the Hub.
        options (*optional*): Passed to `from_pretrained`.

    Raises:
        FileNotFoundError: If there is no such checkpoint, or no file of weights in it.
        ValueError: If it holds another kind of model, or an incomplete one.
    """
    require_checkpoint(name)
    folder = Path(name)
    if folder.is_dir() and (missing := [file for file in REQUIRED_FILES if not (folder / file).is_file()]):
        if "config.json" not in missing:
            load_config(Spa3VLMConfig, name)  # refuses a model of another kind, which needs no other files
        raise ValueError(f"The folder `{name}` lacks {', '.join(missing)} of a Spa3-VLM; copy the checkpoint again.")
    with blame_checkpoint(name):
        model, info = _load(Spa3VLMForConditionalGeneration, name, options)
    adapter = {key for key in model.state_dict() if key.startswith(ADAPTER)}
    # A part of an adapter would work with random weights, and one that the model has no place for would be lost.
    missing = set(info["missing_keys"]) - (adapter if adapter <= set(info["missing_keys"]) else set())
    unexpected = [key for key in info["unexpected_keys"] if key.startswith(OWN_PARTS)]
    where = f"The weights in `{name}` do not fit its `config.json`"
    require_exact_tensors(where, missing, unexpected, info["mismatched_keys"])
    _require_finite(name, model)
    _check_generation(name, model)
    return model
