"""The internals of transformers that this package relies on.

Look here first when a new release of transformers breaks something. Every name below was checked on transformers
5.23.0. All other imports from transformers are top-level names or come from two documented modules,
`transformers.utils.logging` and `transformers.modeling_outputs`.

The models and processors also set or override these hooks of the library, checked on the same version:

- `PreTrainedModel`: `_init_weights`, `_from_config`, `_no_split_modules`, `_input_embed_layer`, `_tied_weights_keys`,
  `_keys_to_ignore_on_load_missing`, `_keys_to_ignore_on_load_unexpected`, `_skip_keys_device_placement`,
  `_can_record_outputs`, `_supports_sdpa`, `_supports_flash_attn`, `_can_compile_fullgraph`;
- `PreTrainedConfig`: `_attn_implementation`, `sub_configs_defaults`, `validate_architecture`;
- `GenerationMixin`: `_prepare_generation_config`, `_prepare_position_ids_for_generation`;
- `ProcessorMixin`: `_get_num_multimodal_tokens`, `_merge_kwargs`;
- image processors: `_standardize_kwargs`, `_preprocess_image_like_inputs`, `fetch_images`.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.image_utils import is_valid_image
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorKwargs,
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.processing_utils import MultiModalData
from transformers.utils import ModelOutput, cached_file, can_return_tuple, torch_compilable_check
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "CheckedModel",
    "GenerationMode",
    "ModelOutput",
    "MultiModalData",
    "OutputRecorder",
    "Qwen2VLImageProcessorKwargs",
    "Qwen2VLImageProcessorPil",
    "cached_file",
    "can_return_tuple",
    "is_deepspeed_zero3_enabled",
    "is_valid_image",
    "load_offloaded",
    "record_outputs",
    "smart_resize",
    "torch_compilable_check",
]


class CheckedModel(PreTrainedModel):
    """A model that loads checkpoints of its own type only.

    A configuration is also found as a part of a larger model's, whose weights have other names: the library would
    warn, and draw all weights at random.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        if kwargs.get("config") is None and pretrained_model_name_or_path is not None:
            names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            options = {name: kwargs[name] for name in names if name in kwargs}
            settings, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **options)
            expected = cls.config_class.model_type
            if (model_type := settings.get("model_type", expected)) != expected:
                raise ValueError(
                    f"`{pretrained_model_name_or_path}` holds a `{model_type}` model, not `{expected}`; load it with "
                    "that model's class, or convert it with `spa3r convert`."
                )
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


@contextmanager
def load_offloaded(module: nn.Module) -> Iterator[None]:
    """Hold a module's own weights in memory while another method than `forward` uses them.

    accelerate loads offloaded weights when `forward` is called, so elsewhere they are on the meta device.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


def record_outputs(forward: Callable) -> Callable:
    """Give a model's `forward` the keywords `output_hidden_states`, `output_attentions` and `return_dict`.

    The library records what the model's `_can_record_outputs` names. Its own decorator passes these keywords on, so
    `forward` would have to accept any keyword. This one consumes them, so Python refuses a misspelt keyword.

    Raises:
        ValueError: If `output_attentions` is requested but the attention implementation computes no weights.
    """

    @capture_outputs(tie_last_hidden_states=False)
    def captured(self, *args, output_hidden_states=None, output_attentions=None, **kwargs):
        return forward(self, *args, **kwargs)

    @functools.wraps(forward)
    def recorded(self, *args, **kwargs):
        names = ("output_hidden_states", "output_attentions")
        requested = {name for name in names if kwargs.get(name, getattr(self.config, name, False))}
        implementation = self.config._attn_implementation
        if "output_attentions" in requested and implementation != "eager":
            raise ValueError(
                f"`output_attentions` needs the attention implementation `eager`, but the model uses "
                f"`{implementation}`; call `model.set_attn_implementation('eager')` first."
            )
        if requested and not getattr(self, "_output_capturing_hooks_installed", False):
            _remove_recording_hooks(self)
        return captured(self, *args, **kwargs)

    return recorded


def _remove_recording_hooks(model: nn.Module):
    """Remove the hooks of parts that were recorded on their own, because the library would install them twice."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                del module._forward_hooks[key]
