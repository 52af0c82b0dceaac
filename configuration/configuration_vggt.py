"""Configuration of VGGT, the frozen geometry backbone."""

import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import Dinov2WithRegistersConfig, PreTrainedConfig

__all__ = ["VGGTConfig", "find_part", "refuse_unknown"]


def find_part(config_class: type[PreTrainedConfig], settings: dict[str, Any], checkpoint: str | os.PathLike) -> dict:
    """Find the settings of a class in a file, also where they are a part of a larger model's.

    Raises:
        ValueError: If the file holds another model; the library would read it with a warning.
    """
    parts = [settings]
    for part in parts:  # grows while it is read: parts have parts
        if part.get("model_type", config_class.model_type) == config_class.model_type:
            # The version tells a saved part from a new one, see `refuse_unknown`.
            return {"transformers_version": settings.get("transformers_version")} | part
        parts += [value for value in part.values() if isinstance(value, dict) and "model_type" in value]
    raise ValueError(
        f"`{checkpoint}` holds a `{settings['model_type']}` model, not `{config_class.model_type}`; load it with that "
        "model's class, or convert it with `spa3r convert`."
    )


def refuse_unknown(config: PreTrainedConfig, settings: dict[str, Any]):
    """Refuse settings that neither the class nor the library has; the library itself would keep them.

    A saved configuration is exempt, because trainers add settings of their own to it.
    """
    unknown = sorted(name for name in settings if name not in LIBRARY_SETTINGS and not name.startswith("_"))
    if unknown and config.transformers_version is None:
        raise ValueError(f"`{type(config).__name__}` has no settings {unknown}; check the spelling.")


# What transformers writes into a configuration file, or passes to a constructor, besides the fields of
# `PreTrainedConfig`.
LIBRARY_SETTINGS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "transformers_version",
}


@strict
class VGGTConfig(PreTrainedConfig):
    r"""
    The defaults are VGGT-1B (Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025).

    image_size (`int`, *optional*, defaults to 518):
        Side of the square image that the patch embedding's position table was learnt for. The table is resampled for
        other sizes.
    num_hidden_layers (`int`, *optional*, defaults to 24):
        Number of pairs of a frame block, within each view, and a global block, across all views.
    mlp_ratio (`float`, *optional*, defaults to 4.0):
        Width of the MLPs in those blocks divided by `hidden_size`.
    num_register_tokens (`int`, *optional*, defaults to 4):
        Number of registers of a view, the same in the patch embedding and in the blocks, which learn their own.
    patch_embedding (`Literal["vit", "conv"]`, *optional*, defaults to `"vit"`):
        A DINOv2 vision transformer with registers, or a single convolution.
    patch_embedding_layers, patch_embedding_heads, patch_embedding_mlp_ratio (`int`, *optional*):
        Size of the vision transformer, by default DINOv2's ViT-L.
    global_qk_norm (`Literal["layer_norm", "rms_norm"]`, *optional*, defaults to `"layer_norm"`):
        Norm of queries and keys in the global blocks. The official Spa3R code replaces VGGT's layer norm with an RMS
        norm without bias, and its weights were trained on the resulting features.
    rope_base (`float`, *optional*, defaults to 100.0):
        Base of the frequencies of the 2-D rotary embedding.
    camera_layers, camera_heads, camera_iterations (`int`, *optional*, default to 4, 16, 4):
        Size of the camera head, and how many times it refines its estimate.
    dense_hidden_size (`int`, *optional*, defaults to 256):
        Channels of the fused levels in the dense (depth and point) heads.
    dense_channels (`list[int]`, *optional*, defaults to `[256, 512, 1024, 1024]`):
        Channels of the four levels before fusion, from fine to coarse.
    dense_layers (`list[int]`, *optional*, defaults to `[4, 11, 17, 23]`):
        Layers whose features become the four levels.

    Example:

    ```python
    >>> from spa3r.configuration import VGGTConfig
    >>> from spa3r import VGGTModel

    >>> config = VGGTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, patch_embedding="conv")
    >>> model = VGGTModel(config)
    ```
    """

    model_type = "vggt"

    image_size: int = 518
    patch_size: int = 14
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: float | int = 4.0
    num_register_tokens: int = 4
    patch_embedding: Literal["vit", "conv"] = "vit"
    patch_embedding_layers: int = 24
    patch_embedding_heads: int = 16
    patch_embedding_mlp_ratio: int = 4
    global_qk_norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    rope_base: float = 100.0
    camera_layers: int = 4
    camera_heads: int = 16
    camera_iterations: int = 4
    dense_hidden_size: int = 256
    dense_channels: list[int] | tuple[int, ...] = (256, 512, 1024, 1024)
    dense_layers: list[int] | tuple[int, ...] = (4, 11, 17, 23)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        refuse_unknown(self, kwargs)
        # JSON has no tuples, so lists make a configuration equal its saved copy.
        self.dense_channels, self.dense_layers = list(self.dense_channels), list(self.dense_layers)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        settings, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return find_part(cls, settings, pretrained_model_name_or_path), rest

    @property
    def feature_size(self) -> int:
        """Number of channels of a patch's features."""
        return 2 * self.hidden_size

    @property
    def has_asymmetric_pass(self) -> bool:
        """Whether one pass can keep context views independent of the others (paper Eq. 5)."""
        return True

    @property
    def unit(self) -> str:
        """Unit of cameras and depth: VGGT's own, in which the mean distance of points is about 1."""
        return "own"

    @property
    def num_blocks(self) -> int:
        """Number of blocks: a frame block and a global block in each layer."""
        return 2 * self.num_hidden_layers

    def vit_config(self) -> Dinov2WithRegistersConfig:
        """Configuration of the vision transformer that embeds patches."""
        return Dinov2WithRegistersConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.patch_embedding_layers,
            num_attention_heads=self.patch_embedding_heads,
            mlp_ratio=self.patch_embedding_mlp_ratio,
            num_register_tokens=self.num_register_tokens,
            initializer_range=self.initializer_range,
        )

    def validate_architecture(self):
        """Part of the `@strict` validation."""
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                "`hidden_size` / `num_attention_heads` must be a multiple of 4 (two axes, rotated in pairs), got "
                f"{self.hidden_size} / {self.num_attention_heads}; change one of them."
            )
        if self.patch_embedding == "vit" and self.hidden_size % self.patch_embedding_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `patch_embedding_heads`, got {self.hidden_size} and "
                f"{self.patch_embedding_heads}; change one of them."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size`, got {self.image_size} and {self.patch_size}; "
                "change one of them."
            )
        if len(self.dense_channels) != 4 or len(self.dense_layers) != 4:
            raise ValueError(
                "`dense_channels` and `dense_layers` must each have 4 entries, one for each level of the dense heads, "
                f"got {self.dense_channels} and {self.dense_layers}; add or remove entries."
            )
        if any(channels % 4 for channels in self.dense_channels) or self.dense_hidden_size % 8:
            raise ValueError(
                "`dense_channels` must be multiples of 4 and `dense_hidden_size` of 8 (sine, cosine of two axes), "
                f"got {self.dense_channels} and {self.dense_hidden_size}; round them."
            )
