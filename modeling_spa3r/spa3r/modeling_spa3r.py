"""Spa3R: one compact latent of a scene from unposed views, learnt by Predictive Spatial Field Modeling (PSFM).

Deviations from the official code, each chosen by configuration where both are of use:
- Context views come first, so the asymmetric attention (paper Eq. 5) is two plain attention calls and needs no mask.
- The loss is the paper's L1 + cosine over target views; the official code takes smooth-L1 over all views.
- Teachers always run in eval mode; the official code leaves DINOv3 in train mode, which jitters its position encoding.
- A constructor never downloads: teachers are built from configurations and get their weights from a checkpoint, from
  `load_teachers`, or from `set_teachers`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple, logging

from ...configuration.configuration_spa3r import Spa3RConfig, Spa3RTeacherConfig
from ...configuration.configuration_vggt import VGGTConfig
from ..geometry import PRoPE, camera_rays, plucker_rays, pose_encoding_to_cameras, relative_cameras
from ..layers import MLP, Block, Rope2D, grid_positions
from ..vggt.modeling_vggt import (
    VGGTCameraHead,
    VGGTDenseHead,
    VGGTForGeometry,
    VGGTModel,
    check_pixel_range,
    normalize_images,
)

__all__ = ["Spa3RForPreTraining", "Spa3RModel", "Spa3RPreTrainedModel"]

logger = logging.get_logger(__name__)

# A field of view of zero, which the camera head's ReLU can produce, would mean an infinite focal length.
MIN_FIELD_OF_VIEW = 1e-3


@dataclass
class Spa3RModelOutput(ModelOutput):
    """
    latents (`torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`):
        The scene, whatever the number of its views; their order does not matter, but for the first, the reference.
    """

    latents: torch.FloatTensor | None = None


@dataclass
class Spa3RForPreTrainingOutput(ModelOutput):
    """
    Predicted views are the target views, or all views with `predict_context_views`.

    loss (`torch.FloatTensor` of shape `()`):
        Sum of `losses`.
    losses (`dict[str, torch.FloatTensor]`):
        `{target}_l1` and `{target}_cosine` of each target, and `depth_probe`.
    latents (`torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`):
        From the context views.
    predicted_features, target_features (`dict[str, torch.FloatTensor]`):
        Of each target, shape `(batch_size, num_predicted_views, num_patches, target_size)`.
    extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`):
        World to camera, in the first view's frame and a scale of its own.
    intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`):
        In pixels.
    probe_depth, target_depth (`torch.FloatTensor` of shape `(batch_size, num_predicted_views, num_patches)`):
        Depth at the top-left pixel of each patch, in the scale of `extrinsics` where the depth, or neither it nor the
        cameras, was given, else in VGGT's; a target of 0 is unknown.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    latents: torch.FloatTensor | None = None
    predicted_features: dict[str, torch.FloatTensor] | None = None
    target_features: dict[str, torch.FloatTensor] | None = None
    extrinsics: torch.FloatTensor | None = None
    intrinsics: torch.FloatTensor | None = None
    probe_depth: torch.FloatTensor | None = None
    target_depth: torch.FloatTensor | None = None


class Spa3RTransformer(nn.Module):
    """Pre-norm transformer with registers of its own; the encoder and the decoder are two of these."""

    def __init__(self, config: Spa3RConfig, num_layers: int):
        super().__init__()
        self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
        self.layers = nn.ModuleList(
            Block(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.mlp_ratio,
                qk_norm="rms_norm",
                layer_scale_init=None,
                layer_norm_eps=config.layer_norm_eps,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, position_embedding: Rope2D | PRoPE | None) -> Tensor:
        """Map `(batch_size, num_tokens, hidden_size)` to the same shape; the registers come and go inside."""
        registers = self.register_tokens.expand(hidden_states.shape[0], -1, -1).to(hidden_states)
        hidden_states = torch.cat([registers, hidden_states], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embedding)
        return self.norm(hidden_states[:, registers.shape[1] :])


class Spa3RTeacher(nn.Module):
    """A frozen vision model as a source of patch features on another patch grid."""

    def __init__(self, config: Spa3RTeacherConfig, attn_implementation: str | None = None):
        super().__init__()
        self.config = config
        self.model = AutoModel.from_config(config.vision_config, attn_implementation=attn_implementation)

    @property
    def feature_size(self) -> int:
        """Channels of the features."""
        return self.config.vision_config.hidden_size

    def preprocess(self, pixel_values: Tensor) -> Tensor:
        """Resize images in [0, 1] to the model's square, whatever their aspect, and normalise them."""
        size = (self.config.image_size, self.config.image_size)
        resized = F.interpolate(pixel_values.float(), size, mode="bilinear", align_corners=False)
        return normalize_images(resized, self.config.image_mean, self.config.image_std).to(self.model.dtype)

    def forward(self, pixel_values: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`): RGB in [0, 1].
            grid_size (`tuple[int, int]`): Rows and columns of the grid that the features are resampled to.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_views, rows * columns, feature_size)`.
        """
        batch_size, num_views = pixel_values.shape[:2]
        tokens = self.model(self.preprocess(pixel_values.flatten(0, 1))).last_hidden_state
        side = self.config.image_size // self.config.vision_config.patch_size
        features = tokens[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        features = F.interpolate(features.float(), grid_size, mode="bilinear", align_corners=False)
        return features.flatten(2).transpose(1, 2).unflatten(0, (batch_size, num_views))


def _untrained(build: Callable[[], nn.Module], name: str, seed: int) -> nn.Module:
    """Build a module with weights that depend on the seed alone, and say that they mean nothing."""
    logger.warning(f"No checkpoint is named for {name}: its weights are untrained, drawn from seed {seed}.")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return build()


def _pretrained(model_class, checkpoint: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Load a teacher, all of it: the library would fill in random weights for what it does not find."""
    teacher, info = model_class.from_pretrained(checkpoint, config=config, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"`{checkpoint}` lacks {len(missing)} tensors of `{type(teacher).__name__}`, the first is `{missing[0]}`; "
            "convert official weights with `spa3r convert`."
        )
    return teacher


def _check_same_architecture(name: str, given: nn.Module, expected: nn.Module):
    # DeepSpeed ZeRO-3 keeps the whole shape of a parameter that it has partitioned as `ds_shape`.
    given_shapes, shapes = (
        {k: tuple(getattr(p, "ds_shape", p.shape)) for k, p in m.named_parameters()} for m in (given, expected)
    )
    if given_shapes != shapes:
        different = sorted(k for k in given_shapes | shapes if given_shapes.get(k) != shapes.get(k))
        raise ValueError(
            f"The weights given for `{name}` are of another architecture than the configuration's: "
            f"{len(different)} parameters differ, first `{different[0]}`."
        )


class Spa3RPreTrainedModel(PreTrainedModel):
    config: Spa3RConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_flash_attn = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a model; the teachers of a checkpoint made during training come from where it names them."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not model.config.teachers_included:
            model.load_teachers()
            model.config.teachers_included = True
        return loaded

    def post_init(self):
        super().post_init()
        # FSDP shards, and `device_map` keeps whole, the teachers' layers too: the library asks direct children only.
        # FSDP refuses classes that the model does not have; a vision tower names those of its text tower.
        modules = list(self.modules())
        layers = {name for module in modules for name in getattr(module, "_no_split_modules", None) or ()}
        self._no_split_modules = layers & {type(module).__name__ for module in modules}
        if not self.config.teachers_included:
            self._keys_to_ignore_on_load_missing |= {rf"^{name}\." for name in self.frozen_modules()}

    def _load_vggt(self) -> VGGTForGeometry:
        checkpoint, config = self.config.vggt_checkpoint, self.config.vggt_config
        if checkpoint is None:
            vggt = _untrained(lambda: VGGTForGeometry(config), "VGGT", self.config.teacher_seed)
        else:
            given = VGGTConfig.from_pretrained(checkpoint)
            for name in set(VGGTConfig.__annotations__) - {"global_qk_norm", "initializer_range", "model_type"}:
                if getattr(given, name) != getattr(config, name):
                    raise ValueError(
                        f"The VGGT in `{checkpoint}` has `{name}` {getattr(given, name)}, but the configuration "
                        f"{getattr(config, name)}: they must be of one architecture."
                    )
            vggt = _pretrained(VGGTForGeometry, checkpoint, config)
        return vggt.to(device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, Spa3RModel):
            init.trunc_normal_(module.latent_queries, std=std)
        elif isinstance(module, Spa3RTransformer):
            init.normal_(module.register_tokens, std=1e-6)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class Spa3RModel(Spa3RPreTrainedModel):
    """Views of a scene in, its latents out: the frozen VGGT and Spa3R's encoder."""

    # What PSFM needs besides; a pre-training checkpoint holds it, and the latents do not depend on it.
    _keys_to_ignore_on_load_unexpected = [
        r"^(camera_head|depth_head|decoder|ray_embedding|heads|depth_probe|teachers)\.",
    ]

    def __init__(self, config: Spa3RConfig):
        super().__init__(config)
        self.vggt = VGGTModel(config.vggt_config)
        self.projection = nn.Linear(2 * config.vggt_config.hidden_size, config.hidden_size)
        self.latent_queries = nn.Parameter(torch.empty(config.num_latents, config.hidden_size))
        self.encoder = Spa3RTransformer(config, config.num_encoder_layers)
        self.post_init()

    def frozen_modules(self) -> dict[str, nn.Module]:
        """The teachers, by their prefix in the state dict: what is never trained."""
        return {"vggt": self.vggt}

    def load_teachers(self):
        """Give VGGT the weights that the configuration names; without a name, untrained ones from its seed."""
        self.vggt = self._load_vggt().vggt

    def get_input_embeddings(self) -> nn.Module:
        """What makes tokens of images."""
        return self.vggt.get_input_embeddings()

    def encode(self, features: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Gather the VGGT features of all context views into latents.

        Patches know their place in their view by 2-D rotary position; no view index and no camera is given.

        Args:
            features (`torch.FloatTensor` of shape `(batch_size, num_views, num_patches, 2 * vggt_hidden_size)`):
                Patch tokens of VGGT's last layer.
            grid_size (`tuple[int, int]`): Rows and columns of a view's patch grid.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`.
        """
        batch_size, num_views = features.shape[:2]
        context = self.projection(features.to(self.projection.weight.dtype)).flatten(1, 2)
        queries = self.latent_queries.expand(batch_size, -1, -1).to(context)
        patches = grid_positions(grid_size, 0, features.device)
        num_special = self.config.num_register_tokens + self.config.num_latents
        positions = torch.cat([patches.new_zeros(num_special, 2), patches.repeat(num_views, 1)])
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        rope = Rope2D(positions, head_dim, self.config.rope_base)
        hidden_states = self.encoder(torch.cat([queries, context], dim=1), rope)
        return hidden_states[:, : self.config.num_latents]

    @can_return_tuple
    def forward(self, pixel_values: Tensor) -> Spa3RModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`):
            RGB in [0, 1], sides multiples of VGGT's patch size; all views are context, the first is the reference.

        Example:

        ```python
        >>> import torch
        >>> from transformers import AutoModel
        >>> import spa3r  # registers the Auto classes

        >>> model = AutoModel.from_pretrained("runs/quickstart/model")
        >>> latents = model(torch.rand(1, 4, 3, 84, 112)).latents
        ```
        """
        if pixel_values.device.type != "cpu":
            check_pixel_range(pixel_values)
        with torch.no_grad():
            features = self.vggt(pixel_values).patch_tokens
        return Spa3RModelOutput(latents=self.encode(features, self.vggt.grid_size(pixel_values)))


class Spa3RForPreTraining(Spa3RPreTrainedModel):
    """Spa3R with its decoder, teachers and losses: predict the features of views that the encoder has not seen."""

    def __init__(self, config: Spa3RConfig):
        super().__init__(config)
        vggt_config = config.vggt_config
        self.model = Spa3RModel(config)
        self.camera_head = VGGTCameraHead(vggt_config)
        self.depth_head = VGGTDenseHead(vggt_config, num_outputs=2, activation="exp")
        attn_implementation = config._attn_implementation
        self.teachers = nn.ModuleDict(
            {name: Spa3RTeacher(config.teacher_config(name), attn_implementation) for name in config.teachers}
        )
        ray_size = 3 if config.camera_embedding == "prope" else 6
        self.ray_embedding = nn.Linear(ray_size, config.hidden_size)
        self.decoder = Spa3RTransformer(config, config.num_decoder_layers)
        sizes = {"geometry": 2 * vggt_config.hidden_size}
        sizes |= {name: teacher.feature_size for name, teacher in self.teachers.items()}
        inner_size = int(config.hidden_size * config.mlp_ratio)
        self.heads = nn.ModuleDict({name: MLP(config.hidden_size, inner_size, sizes[name]) for name in config.targets})
        self.depth_probe = MLP(config.hidden_size, inner_size, 1)
        self.post_init()

    def frozen_modules(self) -> dict[str, nn.Module]:
        """The teachers, by their prefix in the state dict: what is never trained."""
        modules = {"model.vggt": self.model.vggt, "camera_head": self.camera_head, "depth_head": self.depth_head}
        return modules | {f"teachers.{name}": teacher for name, teacher in self.teachers.items()}

    def load_teachers(self):
        """Give all teachers the weights that the configuration names; without a name, untrained ones from its seed."""
        teachers = {}
        for index, (name, teacher) in enumerate(self.teachers.items(), start=1):
            checkpoint, vision_config = teacher.config.checkpoint, teacher.config.vision_config
            if checkpoint is not None:
                teachers[name] = _pretrained(AutoModel, checkpoint, vision_config)
            else:
                build = partial(AutoModel.from_config, vision_config)
                teachers[name] = _untrained(build, f"teacher `{name}`", self.config.teacher_seed + index)
            teachers[name].to(device=self.device, dtype=self.dtype)
        self.set_teachers(self._load_vggt(), **teachers)

    def freeze_teachers(self):
        """Turn off the gradients of the teachers; call it after loading, which turns all gradients on."""
        for module in self.frozen_modules().values():
            module.requires_grad_(False)

    def train(self, mode: bool = True):
        """Switch to training mode, except for the teachers, which stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules().values():
            module.eval()
        return self

    def set_teachers(self, vggt: VGGTForGeometry | None = None, **teachers: PreTrainedModel):
        """Put pretrained teachers in the place of the untrained ones.

        Args:
            vggt (`VGGTForGeometry`, *optional*): Backbone, camera head and depth head.
            teachers (`PreTrainedModel`): Vision models by the names they have in `config.teachers`.
        """
        if vggt is not None:
            _check_same_architecture("vggt", vggt.vggt, self.model.vggt)
            self.model.vggt, self.camera_head, self.depth_head = vggt.vggt, vggt.camera_head, vggt.depth_head
        for name, teacher in teachers.items():
            if name not in self.teachers:
                raise ValueError(f"The model has no teacher `{name}`; its teachers are {sorted(self.teachers)}.")
            _check_same_architecture(name, teacher, self.teachers[name].model)
            self.teachers[name].model = teacher

    def decode(
        self, latents: Tensor, extrinsics: Tensor, intrinsics: Tensor, image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Predict the features that cameras would see.

        Each camera is decoded by itself: registers, latents and one token per ray attend to each other.

        Args:
            latents (`torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`): Scenes.
            extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`):
                World to camera, in the frame and scale of the views that made the latents.
            intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`): In pixels.
            image_size (`tuple[int, int]`): Height and width of the images in pixels.

        Returns:
            `dict[str, torch.FloatTensor]`: Of each target, shape `(batch_size, num_views, num_patches, target_size)`,
            and `"depth"` of shape `(batch_size, num_views, num_patches)`, from a probe that trains on detached
            features.
        """
        batch_size, num_views = extrinsics.shape[:2]
        patch_size = self.config.vggt_config.patch_size
        grid_size = (image_size[0] // patch_size, image_size[1] // patch_size)
        rays = camera_rays(intrinsics, grid_size, patch_size)
        if self.config.camera_embedding == "plucker":
            rays, position_embedding = plucker_rays(extrinsics.float(), rays), None
        else:
            position_embedding = PRoPE(
                extrinsics.flatten(0, 1)[:, None],
                intrinsics.flatten(0, 1)[:, None],
                grid_size,
                image_size,
                self.config.hidden_size // self.config.num_attention_heads,
                self.config.rope_base,
            )
        rays = self.ray_embedding(rays.flatten(0, 1).to(self.ray_embedding.weight.dtype))
        scenes = latents.to(rays.dtype).repeat_interleave(num_views, dim=0)
        hidden_states = self.decoder(torch.cat([scenes, rays], dim=1), position_embedding)
        hidden_states = hidden_states[:, latents.shape[1] :].unflatten(0, (batch_size, num_views))
        predictions = {name: head(hidden_states) for name, head in self.heads.items()}
        return predictions | {"depth": self.depth_probe(hidden_states.detach()).squeeze(-1)}

    @torch.no_grad()
    def observe(
        self,
        pixel_values: Tensor,
        num_context_views: int,
        extrinsics: Tensor | None = None,
        intrinsics: Tensor | None = None,
        depth: Tensor | None = None,
        first_target: int = 0,
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        """What the frozen teachers say of a batch: see `forward` for the first arguments.

        Args:
            first_target (`int`, *optional*, defaults to 0): Views before this one get no target features and no depth.

        Returns:
            `dict`: `context_features` of shape `(batch_size, num_context_views, num_patches, 2 * vggt_hidden_size)`;
            `extrinsics` and `intrinsics` of all views in the first view's frame; `targets`, the features of each
            target of shape `(batch_size, num_views - first_target, num_patches, target_size)`; and `depth` of shape
            `(batch_size, num_views - first_target, num_patches)`.
        """
        vggt, image_size = self.model.vggt, tuple(pixel_values.shape[-2:])
        grid_size = vggt.grid_size(pixel_values)
        asymmetric = self.config.view_aggregation == "asymmetric"
        output = vggt(
            pixel_values,
            num_context_views=num_context_views if asymmetric else None,
            output_layers=tuple(self.config.vggt_config.dense_layers) if depth is None else (),
        )
        if asymmetric:
            context_features = output.patch_tokens[:, :num_context_views]
        else:
            context_features = vggt(pixel_values[:, :num_context_views]).patch_tokens

        if extrinsics is None:
            extrinsics, intrinsics = self._estimate_cameras(output.camera_tokens, image_size)
        else:
            extrinsics, unit = relative_cameras(extrinsics.float())
        if depth is None:
            layers = [tokens[:, first_target:] for tokens in output.layer_patch_tokens]
            depth = self.depth_head(layers, image_size)[0].squeeze(-1)
        else:
            depth = depth[:, first_target:] / unit[:, None, None, None]

        targets = {}
        for name in self.heads:
            if name == "geometry":
                targets[name] = output.patch_tokens[:, first_target:]
            else:
                targets[name] = self.teachers[name](pixel_values[:, first_target:], grid_size)
        patch_size = self.config.vggt_config.patch_size
        return {
            "context_features": context_features,
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
            "targets": targets,
            "depth": depth[..., ::patch_size, ::patch_size].flatten(-2).float(),
        }

    def _estimate_cameras(self, camera_tokens: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # Like VGGT's own code, in full precision also under autocast.
        with torch.autocast(camera_tokens.device.type, enabled=False):
            pose_encoding = self.camera_head(camera_tokens.to(self.dtype))[-1].float()
        field_of_view = pose_encoding[..., 7:].clamp(min=MIN_FIELD_OF_VIEW)
        return pose_encoding_to_cameras(torch.cat([pose_encoding[..., :7], field_of_view], dim=-1), image_size)

    def compute_losses(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named losses, in float32: the paper's L1 + cosine per target, equally weighted as in the official code.

        Args:
            predictions, targets (`dict[str, torch.FloatTensor]`): As `decode` returns them.
        """
        distance = F.l1_loss if self.config.regression_loss == "l1" else F.smooth_l1_loss
        losses = {}
        for name in self.heads:
            prediction, target = predictions[name].float(), targets[name].float()
            losses[f"{name}_l1"] = distance(prediction, target)
            losses[f"{name}_cosine"] = 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
        known = targets["depth"] > 0
        depth_loss = F.smooth_l1_loss(predictions["depth"].float(), targets["depth"].float(), reduction="none")
        losses["depth_probe"] = (depth_loss * known).sum() / known.sum().clamp(min=1)
        return losses

    def forward(
        self,
        pixel_values: Tensor,
        num_context_views: int,
        extrinsics: Tensor | None = None,
        intrinsics: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Spa3RForPreTrainingOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`):
            RGB in [0, 1], context views first; the first view is the reference frame.
        num_context_views (`int`):
            How many of the views the encoder sees; at least one stays a target.
        extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`, *optional*):
            World to camera, in any frame and unit; with `intrinsics` they replace VGGT's estimates.
        intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`, *optional*):
            In pixels of `pixel_values`.
        depth (`torch.FloatTensor` of shape `(batch_size, num_views, height, width)`, *optional*):
            Depth along the viewing axis in the unit of `extrinsics`, 0 where unknown: what the probe learns, in place
            of VGGT's estimate. It has no influence on the other losses.
        """
        self._check_views(pixel_values, num_context_views, extrinsics, intrinsics, depth)
        first = 0 if self.config.predict_context_views else num_context_views
        observed = self.observe(pixel_values, num_context_views, extrinsics, intrinsics, depth, first_target=first)
        latents = self.model.encode(observed["context_features"], self.model.vggt.grid_size(pixel_values))
        extrinsics, intrinsics = observed["extrinsics"], observed["intrinsics"]
        image_size = tuple(pixel_values.shape[-2:])
        predictions = self.decode(latents, extrinsics[:, first:], intrinsics[:, first:], image_size)
        targets = observed["targets"] | {"depth": observed["depth"]}
        losses = self.compute_losses(predictions, targets)
        return Spa3RForPreTrainingOutput(
            loss=sum(losses.values()),
            losses=losses,
            latents=latents,
            probe_depth=predictions.pop("depth"),
            target_depth=targets.pop("depth"),
            predicted_features=predictions,
            target_features=targets,
            extrinsics=extrinsics,
            intrinsics=intrinsics,
        )

    def _check_views(self, pixel_values, num_context_views, extrinsics, intrinsics, depth):
        if pixel_values.ndim != 5 or pixel_values.shape[1] < 2:
            raise ValueError(
                "Pre-training needs `pixel_values` of shape (batch_size, num_views, 3, height, width) with at least 2 "
                f"views a scene, got shape {tuple(pixel_values.shape)}."
            )
        batch_size, num_views = pixel_values.shape[:2]
        if not 0 < num_context_views < num_views:
            raise ValueError(
                f"`num_context_views` must be in [1, num_views - 1] so that a view is left to predict, got "
                f"{num_context_views} of {num_views} views; lower the context ratio or load more views a scene."
            )
        if (extrinsics is None) != (intrinsics is None):
            missing = "intrinsics" if intrinsics is None else "extrinsics"
            raise ValueError(f"Cameras need both `extrinsics` and `intrinsics`, but `{missing}` is missing.")
        if depth is not None and extrinsics is None:
            raise ValueError("`depth` is measured in the unit of the cameras: pass `extrinsics` and `intrinsics` too.")
        expected = {"extrinsics": (4, 4), "intrinsics": (3, 3), "depth": tuple(pixel_values.shape[-2:])}
        for (name, size), given in zip(expected.items(), (extrinsics, intrinsics, depth), strict=True):
            if given is not None and tuple(given.shape) != (batch_size, num_views, *size):
                raise ValueError(
                    f"`{name}` must have shape {(batch_size, num_views, *size)}, got {tuple(given.shape)}."
                )
            # Training must not stall an accelerator; its data is checked where it is read.
            if given is not None and given.device.type == "cpu" and not given.isfinite().all():
                raise ValueError(f"`{name}` holds NaN or infinite values; leave such views out.")
