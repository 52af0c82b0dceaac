"""Configuration of Spa3R and of its frozen teachers."""

import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_vggt import VGGTConfig, find_part, refuse_unknown

__all__ = ["Spa3RConfig", "Spa3RTeacherConfig"]

GEOMETRY_FIELDS = ("patch_size", "feature_size", "has_asymmetric_pass", "unit")
TEACHER_KEYS = {"vision_config", "image_size", "image_mean", "image_std", "checkpoint"}


@strict
class Spa3RTeacherConfig(PreTrainedConfig):
    r"""
    A frozen vision model whose patch features Spa3R learns to predict: DINOv3 (the paper's), CLIP, SigLIP, or any
    other vision transformer of transformers whose `last_hidden_state` ends with the patch tokens.

    vision_config (`dict` or `PreTrainedConfig`, *optional*):
        The model's configuration; DINOv3 ViT-L/16 by default.
    image_size (`int`, *optional*, defaults to 224):
        Side of the square that views are resized to. This changes their aspect ratio, as in the official code.
    image_mean, image_std (`list[float]`, *optional*, defaults to ImageNet's):
        Mean and standard deviation that normalise the resized views, whose values are in [0, 1].
    checkpoint (`str`, *optional*):
        Hub name or folder of the pretrained weights. A constructor never reads it. `load_teachers` does, and
        checkpoints made during training name it instead of holding a copy. Without one, the weights are untrained,
        drawn from `Spa3RConfig.teacher_seed`.
    """

    model_type = "spa3r_teacher"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="dinov3_vit",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "num_register_tokens": 4,
                "patch_size": 16,
            },
        )
    }

    vision_config: dict | PreTrainedConfig | None = None
    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    checkpoint: str | None = None

    def validate_architecture(self):
        """Part of the `@strict` validation."""
        patch_size = self.vision_config.patch_size
        if self.image_size % patch_size:
            raise ValueError(
                f"`image_size` of a teacher must be a multiple of its patch size {patch_size}, got {self.image_size}; "
                f"set it to {max(self.image_size // patch_size, 1) * patch_size}."
            )


@strict
class Spa3RConfig(PreTrainedConfig):
    r"""
    The defaults are the paper's Spa3R: 256 latents of size 768 from VGGT-1B, predicting VGGT and DINOv3 features.

    vggt_config (`dict` or `VGGTConfig`, *optional*):
        The frozen geometry backbone: VGGT, or another that is registered with the Auto classes and named by its
        `model_type`; see `GeometryModel`. The official Spa3R weights need its `global_qk_norm="rms_norm"`.
    vggt_checkpoint (`str`, *optional*):
        Hub name or folder of the backbone's weights, converted by `spa3r convert vggt`; see
        `Spa3RTeacherConfig.checkpoint`.
    teachers (`dict[str, dict]`, *optional*):
        Named feature teachers besides VGGT, each a `Spa3RTeacherConfig` as a dict; `{"semantic": DINOv3 ViT-L/16}` by
        default.
    teacher_seed (`int`, *optional*, defaults to 0):
        Seed for the weights of teachers without a checkpoint, for tests and the quickstart.
    teachers_included (`bool`, *optional*, defaults to `True`):
        Whether a checkpoint holds the teachers' weights. Checkpoints made during training hold only what trains and
        name their teachers, which `from_pretrained` then loads.
    targets (`list[str]`, *optional*, defaults to `["geometry", "semantic"]`):
        Features that the decoder predicts (paper Tab. 4): `"geometry"`, VGGT's last layer, and names of `teachers`.
    num_latents (`int`, *optional*, defaults to 256):
        Number of the encoder's learned queries, and therefore of a scene's latents (paper N_q).
    num_register_tokens (`int`, *optional*, defaults to 4):
        Number of registers of the encoder, and of the decoder, which learns its own.
    camera_embedding (`Literal["prope", "plucker"]`, *optional*, defaults to `"prope"`):
        How the decoder encodes the target camera (paper Tab. 7): `"prope"` is rays in the camera frame and PRoPE
        attention (paper Eq. 8-10); `"plucker"` is 6-D Plücker rays.
    view_aggregation (`Literal["asymmetric", "separate"]`, *optional*, defaults to `"asymmetric"`):
        `"asymmetric"` is one VGGT pass in which context views do not attend to target views (paper Eq. 5);
        `"separate"` is a pass over all views for the targets, and another over the context views alone.
    regression_loss (`Literal["l1", "smooth_l1"]`, *optional*, defaults to `"l1"`):
        Distance to the target features, added to the cosine distance: the paper's (Eq. 13) or the official code's.
    predict_context_views (`bool`, *optional*, defaults to `False`):
        Whether to predict context views too and average the losses over all views, as the official code does. The
        paper's loss (Eq. 4) is over target views only.
    whiten_features (`bool`, *optional*, defaults to `False`):
        Whether teachers' features are whitened, channel by channel, before they are encoded and predicted. The
        statistics are measured when training starts and are part of the weights. Small teachers that were trained from
        nothing need it; the official weights were trained without.
    distinct_patch_weight (`float`, *optional*, defaults to 1.0):
        Weight in the loss of the patch whose features differ most from the mean of its scene; others weigh between 1
        and this. Above 1, small objects count more against walls and floors.
    normalize_cameras (`bool`, *optional*, defaults to `True`):
        Whether given cameras are scaled to a unit of their own. A teacher that measures in meters needs meters.

    Example:

    ```python
    >>> from spa3r.configuration import Spa3RConfig
    >>> from spa3r import Spa3RForPreTraining

    >>> config = Spa3RConfig(targets=["geometry"], teachers={}, camera_embedding="plucker")
    >>> model = Spa3RForPreTraining(config)
    ```
    """

    model_type = "spa3r"
    sub_configs_defaults = {"vggt_config": SubConfigSpec(config_class=VGGTConfig)}

    vggt_config: dict | PreTrainedConfig | None = None
    vggt_checkpoint: str | None = None
    teachers: dict[str, Any] | None = None
    teacher_seed: int = 0
    teachers_included: bool = True
    targets: list[str] | tuple[str, ...] = ("geometry", "semantic")
    hidden_size: int = 768
    num_attention_heads: int = 12
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    mlp_ratio: float = 4.0
    num_latents: int = 256
    num_register_tokens: int = 4
    layer_norm_eps: float = 1e-6
    rope_base: float = 100.0
    initializer_range: float = 0.02
    camera_embedding: Literal["prope", "plucker"] = "prope"
    view_aggregation: Literal["asymmetric", "separate"] = "asymmetric"
    regression_loss: Literal["l1", "smooth_l1"] = "l1"
    predict_context_views: bool = False
    whiten_features: bool = False
    distinct_patch_weight: float | int = 1.0
    normalize_cameras: bool = True

    def __post_init__(self, **kwargs):
        refuse_unknown(self, kwargs)
        if isinstance(self.vggt_config, dict) and self.vggt_config.get("model_type", "vggt") != "vggt":
            self.vggt_config = AutoConfig.for_model(**self.vggt_config)
        if isinstance(self.vggt_config, dict):
            # A part that was saved with the whole may hold settings of a trainer too: see `refuse_unknown`.
            self.vggt_config = {"transformers_version": self.transformers_version} | self.vggt_config
        if self.teachers is None:
            self.teachers = {"semantic": {}}
        # Plain dicts with all defaults, so that a configuration equals its JSON.
        self.teachers = {name: self._complete_teacher(teacher) for name, teacher in self.teachers.items()}
        super().__post_init__(**kwargs)

    @staticmethod
    def _complete_teacher(teacher: dict | Spa3RTeacherConfig) -> dict:
        if isinstance(teacher, Spa3RTeacherConfig):
            config = teacher
        else:
            if unknown := sorted(set(teacher) - TEACHER_KEYS):
                raise ValueError(f"A teacher has no settings {unknown}; use only {sorted(TEACHER_KEYS)}.")
            config = Spa3RTeacherConfig(**teacher)
        return {
            "vision_config": config.vision_config.to_diff_dict() | {"model_type": config.vision_config.model_type},
            "image_size": config.image_size,
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
            "checkpoint": config.checkpoint,
        }

    def teacher_config(self, name: str) -> Spa3RTeacherConfig:
        """The configuration of a teacher."""
        return Spa3RTeacherConfig(**self.teachers[name])

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        settings, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return find_part(cls, settings, pretrained_model_name_or_path), rest

    def validate_architecture(self):
        """Part of the `@strict` validation."""
        head_dim, remainder = divmod(self.hidden_size, self.num_attention_heads)
        if remainder or head_dim % 8:
            raise ValueError(
                "`hidden_size` / `num_attention_heads` must be a multiple of 8 (PRoPE acts on blocks of 8 channels), "
                f"got {self.hidden_size} / {self.num_attention_heads}; change one of them."
            )
        if "geometry" in self.teachers:
            raise ValueError("`teachers` has the name `geometry`, which is VGGT's; give the teacher another name.")
        if self.vggt_config.model_type != VGGTConfig.model_type:
            self._check_geometry(self.vggt_config)
        unknown = set(self.targets) - {"geometry", *self.teachers}
        if unknown or not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(
                f"`targets` must name, once each, `geometry` or one of the teachers {sorted(self.teachers)}, got "
                f"{list(self.targets)}."
            )

    def _check_geometry(self, config: PreTrainedConfig):
        """Check what Spa3R must know of a geometry model that is not VGGT."""
        name = config.model_type
        if missing := [field for field in GEOMETRY_FIELDS if not hasattr(config, field)]:
            raise ValueError(
                f"`vggt_config` is a `{name}`, which cannot be a geometry model of Spa3R, because it lacks "
                f"{', '.join(f'`{field}`' for field in missing)}; see `GeometryModel`."
            )
        if config.unit not in ("own", "meters"):
            raise ValueError(f"`unit` of the geometry model `{name}` must be `own` or `meters`, got `{config.unit}`.")
        if self.view_aggregation == "asymmetric" and not config.has_asymmetric_pass:
            raise ValueError(
                f"`view_aggregation` is `asymmetric`, but the geometry model `{name}` cannot keep context views "
                "independent of the others in one pass; set it to `separate`, which takes two."
            )
        if config.unit == "meters" and self.normalize_cameras:
            raise ValueError(
                f"`normalize_cameras` is True, but the geometry model `{name}` measures in meters, so that given and "
                "estimated cameras would have different units; set it to False."
            )
