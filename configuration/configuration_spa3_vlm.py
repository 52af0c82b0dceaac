"""Configuration of Spa3-VLM: a vision-language model that queries the latents of a scene."""

import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_spa3r import Spa3RConfig
from .configuration_vggt import VGGTConfig, find_part, refuse_unknown

__all__ = ["Spa3VLMConfig"]


@strict
class Spa3VLMConfig(PreTrainedConfig):
    r"""
    The defaults are the paper's Spa3-VLM: Qwen2.5-VL-3B, whose image features query the latents of Spa3R.

    vlm_config (`dict` or `PreTrainedConfig`, *optional*):
        The vision-language model, by default Qwen2.5-VL-3B; a dictionary names its `model_type`.
    spatial_config (`dict` or `Spa3RConfig`, *optional*):
        Spa3R, which encodes the scene. Its decoder and feature teachers are not part of this model.
    fusion (`Literal["cross_attention", "append", "none"]`, *optional*, defaults to `"cross_attention"`):
        How the language model gets the scene (paper Tab. 5). `"cross_attention"`: image features query the latents,
        and the result is added to them (paper Eq. 14-15). `"append"`: the latents are tokens after a scene's last
        image. `"none"`: not at all, which leaves the plain vision-language model.
    spatial_representation (`Literal["spa3r", "vggt"]`, *optional*, defaults to `"spa3r"`):
        What represents the scene (paper Tab. 3): Spa3R's latents, or the patch tokens of all views from VGGT's last
        layer but one.

    Example:

    ```python
    >>> from spa3r.configuration import Spa3VLMConfig, load_preset
    >>> from spa3r import Spa3VLMForConditionalGeneration

    >>> config = Spa3VLMConfig(**load_preset("spa3-vlm-tiny"))
    >>> model = Spa3VLMForConditionalGeneration(config)
    ```
    """

    model_type = "spa3_vlm"
    sub_configs_defaults = {
        "vlm_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="qwen2_5_vl",
            init_kwargs={
                "text_config": {
                    "vocab_size": 151936,
                    "hidden_size": 2048,
                    "intermediate_size": 11008,
                    "num_hidden_layers": 36,
                    "num_attention_heads": 16,
                    "num_key_value_heads": 2,
                    "max_position_embeddings": 128000,
                    "max_window_layers": 70,
                    "rms_norm_eps": 1e-6,
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 1000000.0,
                        "mrope_section": [16, 24, 24],
                    },
                },
                "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048, "tokens_per_second": 2},
                "tie_word_embeddings": True,
            },
        ),
        "spatial_config": SubConfigSpec(config_class=Spa3RConfig),
    }
    keys_to_ignore_at_inference = ["past_key_values"]

    vlm_config: dict | PreTrainedConfig | None = None
    spatial_config: dict | PreTrainedConfig | None = None
    fusion: Literal["cross_attention", "append", "none"] = "cross_attention"
    spatial_representation: Literal["spa3r", "vggt"] = "spa3r"
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        if self.vlm_config is not None:
            kwargs.pop("text_config", None)  # what `to_dict` adds; `vlm_config` holds it too
        refuse_unknown(self, kwargs)
        if isinstance(self.spatial_config, dict):
            # A part that was saved with the whole may hold settings of a trainer too: see `refuse_unknown`.
            self.spatial_config = {"transformers_version": self.transformers_version} | self.spatial_config
        super().__post_init__(**kwargs)
        # The head is not part of the model that `vlm_config` describes, so this setting decides.
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.vlm_config.tie_word_embeddings
        self.vlm_config.tie_word_embeddings = self.tie_word_embeddings

    @property
    def image_token_id(self) -> int:
        """Token id of the placeholder for one image feature; `generate` reads it."""
        return self.vlm_config.image_token_id

    @property
    def video_token_id(self) -> int:
        """Unused, because a video is a list of images, but `generate` reads it."""
        return self.vlm_config.video_token_id

    @property
    def latent_size(self) -> int:
        """Number of channels of the spatial representation."""
        if self.spatial_representation == "vggt":
            return self.spatial_config.vggt_config.feature_size
        return self.spatial_config.hidden_size

    @property
    def num_appended_tokens(self) -> int:
        """Number of placeholder tokens that a scene needs besides those of its images."""
        return self.spatial_config.num_latents if self.fusion == "append" else 0

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """The language model's configuration."""
        return self.vlm_config.get_text_config(*args, **kwargs)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The language model's configuration, under the name that DeepSpeed, PEFT and TRL read."""
        return self.get_text_config()

    @property
    def vision_config(self) -> PreTrainedConfig:
        """The vision tower's configuration."""
        return self.vlm_config.vision_config

    @property
    def hidden_size(self) -> int:
        """Number of channels of the language model."""
        return self.text_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers of the language model."""
        return self.text_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Number of attention heads of the language model."""
        return self.text_config.num_attention_heads

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the language model knows."""
        return self.text_config.vocab_size

    def to_dict(self) -> dict[str, Any]:
        """All settings, and the language model's once more as `text_config`, where PEFT reads sizes."""
        return super().to_dict() | {"text_config": self.text_config.to_dict()}

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that a file holds, each once."""
        settings = super().to_diff_dict()
        return {name: value for name, value in settings.items() if name != "text_config"}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        settings, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return find_part(cls, settings, pretrained_model_name_or_path), rest

    def validate_architecture(self):
        """Part of the `@strict` validation."""
        if "vision_config" not in self.vlm_config.sub_configs:
            raise ValueError(
                f"`vlm_config` must describe a vision-language model, got type `{self.vlm_config.model_type}`; use "
                "one with the interface of `qwen2_5_vl`."
            )
        if self.fusion == "append" and self.spatial_representation == "vggt":
            raise ValueError(
                "`fusion='append'` needs a fixed number of latents, but with `spatial_representation='vggt'` their "
                "number grows with the views; use `spatial_representation='spa3r'` or `fusion='cross_attention'`."
            )
        geometry = self.spatial_config.vggt_config
        if self.spatial_representation == "vggt" and geometry.model_type != VGGTConfig.model_type:
            raise ValueError(
                f"`spatial_representation='vggt'` needs VGGT in `spatial_config.vggt_config`, got a "
                f"`{geometry.model_type}`; use `spatial_representation='spa3r'`."
            )
        if self.spatial_representation == "vggt" and geometry.num_hidden_layers < 2:
            raise ValueError(
                "`spatial_representation='vggt'` needs at least 2 layers in `spatial_config.vggt_config`, got "
                f"{geometry.num_hidden_layers}; raise `num_hidden_layers`."
            )
