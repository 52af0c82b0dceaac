"""LoRA of the language model and the adapter alone: both encoders stay frozen, whatever the targets say.

With quantised weights this is QLoRA. What trains in full, the head and the geometry of scenes stay as they are.
"""

import re
from typing import TYPE_CHECKING

from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available
from transformers.utils.quantization_config import QuantizationMethod
from trl import ModelConfig, get_peft_config, get_quantization_config

from ...modeling_spa3r.checkpoints.loading import load_spa3_vlm
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

LANGUAGE_MODEL, ADAPTER = ("model.vlm.language_model.", "lm_head."), ("model.fusion.",)
FROZEN = ("model.vlm.visual.", "model.spatial_encoder.")
ALL_LINEAR = "all-linear"
UNQUANTISED = ["lm_head", "model.fusion", "model.spatial_encoder"]


def lora_config(model_args: ModelConfig, model: PreTrainedModel) -> "PeftConfig | None":
    """The configuration of LoRA layers, restricted to the language model and the adapter; `None` without `use_peft`.

    `all-linear` means those of the language model. Targets that also name layers of the frozen encoders, as `q_proj`
    does, leave those out.

    Raises:
        ValueError: If a target names layers of the frozen encoders alone, or something that does not exist.
    """
    config = get_peft_config(model_args)
    if config is None:
        return None
    if isinstance(config.target_modules, str) and config.target_modules.isidentifier():
        config.target_modules = {config.target_modules}  # a pattern to peft, but meant as a name, as in a list
    _check("lora_target_modules", config.target_modules, [name for name, _ in model.named_modules()])
    _check("lora_modules_to_save", config.modules_to_save, [name for name, _ in model.named_modules()])
    _check("lora_target_parameters", config.target_parameters, [name for name, _ in model.named_parameters()])
    allowed = LANGUAGE_MODEL if _is_all_linear(config.target_modules) else LANGUAGE_MODEL + ADAPTER
    config.exclude_modules = rf"(?!{'|'.join(map(re.escape, allowed))}).*"
    return config


def load_to_tune(model_args: ModelConfig, bf16: bool) -> Spa3VLMForConditionalGeneration:
    """Load a Spa3-VLM with the options of a tuning run, its encoders frozen.

    Args:
        model_args (`ModelConfig`): What to load, its type, attention and quantisation.
        bf16 (`bool`): Whether training computes in bfloat16.

    Raises:
        ValueError: If its weights are quantised, and become whole no more.
    """
    options = {"attn_implementation": model_args.attn_implementation, "dtype": model_args.dtype}
    options["quantization_config"] = quantization_config(model_args)
    options = {name: value for name, value in options.items() if value is not None}
    model = load_spa3_vlm(model_args.model_name_or_path, **options)
    _check_quantised(model_args.model_name_or_path, model)
    model.freeze_encoders()
    if model_args.use_peft and bf16 and model.model.fusion is not None:
        model.model.fusion.float()  # like LoRA layers in peft: in bfloat16 most updates are rounded away
    return model


def quantization_config(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """How `load_in_8bit` or `load_in_4bit` quantise the weights; `None` without them.

    Raises:
        ValueError: If no LoRA layers would train beside the quantised weights.
        ImportError: If bitsandbytes is not installed.
    """
    config = get_quantization_config(model_args)
    if config is None:
        return None
    option = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if not model_args.use_peft:
        raise ValueError(
            f"`{option}` freezes the weights that it quantises, got no `use_peft`; give `--use_peft true`."
        )
    if not is_bitsandbytes_available():
        raise ImportError(f"`{option}` needs bitsandbytes: install spa3r[quantization], or leave it out.")
    config.llm_int8_skip_modules = UNQUANTISED
    return config


def _check_quantised(name: str, model: Spa3VLMForConditionalGeneration):
    settings = getattr(model.config, "quantization_config", None)
    if settings is not None and settings.quant_method != QuantizationMethod.BITS_AND_BYTES:
        raise ValueError(
            f"`{name}` holds weights that {settings.quant_method.value} quantised, with which trained layers cannot "
            "be merged; tune the whole model, and quantise the result."
        )


def train_in_float32(model: "PeftModel"):
    """Keep in float32 what trains beside quantised weights: TRL turns it to bfloat16, which loses small updates."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def merge_lora(model: "PeftModel") -> PreTrainedModel:
    """Add LoRA layers to the weights that they adapt; quantised weights become whole ones first, as they were used."""
    dtype = model.dtype
    if not getattr(model.base_model.model, "is_quantized", False):
        return model.merge_and_unload().to(dtype)
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    trained, config = get_peft_model_state_dict(model), model.active_peft_config
    base = model.unload()
    base.state_dict()  # has bitsandbytes undo the layout that it gives weights which answer on a CPU
    whole = get_peft_model(base.dequantize(), config)
    set_peft_model_state_dict(whole, trained)
    return whole.merge_and_unload().to(dtype)


def check_frozen(model: PreTrainedModel):
    """Raise `ValueError` if a weight of the encoders would be trained."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and any(f".{part}" in f".{name}" for part in FROZEN):
            raise ValueError(
                f"`{name}` would be trained, but both encoders stay frozen: restrict `lora_target_modules` and "
                "`lora_modules_to_save` to the language model and `fusion`."
            )


def _is_all_linear(targets) -> bool:
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


def _check(option: str, targets, names: list[str]):
    """Refuse a target that names nothing which may be trained."""
    if targets is None or _is_all_linear(targets):
        return
    for target in [targets] if isinstance(targets, str) else targets:
        found = _find(option, target, names) if isinstance(targets, str) else _find_names(target, names)
        if not any(f"{name}.".startswith(LANGUAGE_MODEL + ADAPTER) for name in found):
            what = f"names `{found[0]}`, a part that stays frozen" if found else "names nothing in the model"
            raise ValueError(
                f"`{option}` {what}, got `{target}`: name layers of `model.vlm.language_model` or `model.fusion`, or "
                f"`{ALL_LINEAR}`."
            )


def _find_names(target: str, names: list[str]) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{target}")]


def _find(option: str, pattern: str, names: list[str]) -> list[str]:
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(
            f"`{option}` is no regular expression ({error}), got `{pattern}`: correct it, or give names of layers."
        ) from error
