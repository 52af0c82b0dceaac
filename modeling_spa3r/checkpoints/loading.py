"""Load checkpoints and refuse incomplete ones: transformers fills in random weights for what is missing."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..library import is_deepspeed_zero3_enabled
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from .tensors import require_exact_tensors

__all__ = ["load_spa3_vlm", "load_whole", "require_checkpoint"]

# What `save_pretrained` of model and processor write. Without a config.json transformers builds the full-size model.
REQUIRED_FILES = ("config.json", "processor_config.json", "tokenizer.json")
WEIGHTS = (".safetensors", ".bin")
ADAPTER = "model.fusion."
OWN_PARTS = (ADAPTER, "model.spatial_encoder.")


def require_checkpoint(name: str):
    """Raise `FileNotFoundError` unless `name` is a folder with weights or could be a name on the Hub."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            raise FileNotFoundError(
                f"There is no checkpoint at `{name}`; give a folder, or OWNER/NAME of one on the Hub."
            )
    elif not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise FileNotFoundError(
            f"The folder `{name}` lacks weights beside its config.json; give a complete checkpoint."
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
        ValueError: If weights are missing, unexpected or of another shape.
    """
    require_checkpoint(name)
    where = f"`{name}` does not fit " + ("its own `config.json`" if "config" not in options else "the configuration")
    model, info = _load(model_class, name, options)
    unexpected = [] if may_hold_more else info["unexpected_keys"]
    require_exact_tensors(where, info["missing_keys"], unexpected, info["mismatched_keys"])
    return model


def _load(model_class: type, name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model, and what transformers noted about its tensors."""
    # ZeRO-3 shards have other shapes, which transformers accounts for only while it ignores no mismatch.
    options["ignore_mismatched_sizes"] = not is_deepspeed_zero3_enabled()
    try:
        return model_class.from_pretrained(name, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"The weights in `{name}` are damaged ({error}): copy the checkpoint again.") from error
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
            Spa3VLMConfig.from_pretrained(folder)  # refuses a model of another kind, which needs no other files
        raise ValueError(f"The folder `{name}` lacks {', '.join(missing)} of a Spa3-VLM; copy the checkpoint again.")
    model, info = _load(Spa3VLMForConditionalGeneration, name, options)
    adapter = {key for key in model.state_dict() if key.startswith(ADAPTER)}
    # A part of an adapter would work with random weights, and one that the model has no place for would be lost.
    missing = set(info["missing_keys"]) - (adapter if adapter <= set(info["missing_keys"]) else set())
    unexpected = [key for key in info["unexpected_keys"] if key.startswith(OWN_PARTS)]
    where = f"The weights in `{name}` do not fit its `config.json`"
    require_exact_tensors(where, missing, unexpected, info["mismatched_keys"])
    return model
