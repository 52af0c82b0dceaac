"""Spa3R: one compact latent of a scene from unposed views, learnt by Predictive Spatial Field Modeling (PSFM).

Where the paper and its official code differ, the paper is the default and the code is an option of the configuration.

Deviations from the official code:
- Context views come first, so the asymmetric attention (paper Eq. 5) is two plain attention calls without a mask.
- The loss is the paper's L1 + cosine over target views; the official code averages smooth-L1 + cosine over all views.
- Teachers always run in eval mode; the official code leaves DINOv3 in train mode, which jitters its position encoding.
- A constructor never downloads: teachers are built from configurations, and their weights come from a checkpoint, from
  `load_teachers` or from `set_teachers`.

Deviations from the paper, as in the official code:
- The losses are means over views, patches and channels; Eq. 4 sums over target views.
- The loss of the depth probe (Fig. 2) is part of the sum of losses; Eq. 4 and 13 have no such term. The probe trains
  on detached features, so the rest of the model trains as if the term were not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init

from ...configuration.configuration_spa3r import Spa3RConfig
from ...configuration.configuration_vggt import VGGTConfig
from ..geometry import PRoPE, camera_rays, homogeneous, plucker_rays, relative_cameras
from ..layers import MLP, Attention, Block, Rope2D, grid_positions
from ..library import CheckedModel, ModelOutput, OutputRecorder, load_offloaded, record_outputs
from ..vggt.modeling_vggt import VGGTCameraHead, VGGTDenseHead, VGGTForGeometry
from .geometry_teacher import GeometryTeacher, VGGTTeacher, build_geometry
from .teachers import Spa3RTeacher, build_untrained, check_same_architecture, load_pretrained

__all__ = ["Spa3RForPreTraining", "Spa3RModel", "Spa3RPreTrainedModel"]


@dataclass
class Spa3RModelOutput(ModelOutput):
    """
    latents (`torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`):
        The scene's latents. They do not depend on the order of the views after the first, the reference frame.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned with `output_hidden_states=True`):
        Tokens before the first and after every block of the encoder, each of shape
        `(batch_size, num_register_tokens + num_latents + num_views * num_patches, hidden_size)`.
    attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True` and eager attention):
        Attention weights of every block of the encoder, `(batch_size, num_attention_heads, num_tokens, num_tokens)`.
    """

    latents: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class Spa3RForPreTrainingOutput(ModelOutput):
    """
    Predicted views are the target views, or all views with `predict_context_views`.

    loss (`torch.FloatTensor` of shape `()`):
        Sum of `losses`.
    losses (`dict[str, torch.FloatTensor]`):
        `{target}_l1` and `{target}_cosine` of each target, and `depth_probe`.
    latents (`torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`):
        Latents of the context views.
    predicted_features, target_features (`dict[str, torch.FloatTensor]`):
        Features of each target, of shape `(batch_size, num_predicted_views, num_patches, target_size)`.
    extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`):
        World to camera; the world is the first view's frame, and the unit of length is the model's own.
    intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`):
        In pixels.
    probe_depth, target_depth (`torch.FloatTensor` of shape `(batch_size, num_predicted_views, num_patches)`):
        Depth at the top-left pixel of each patch; a target of 0 is unknown. The unit is that of `extrinsics`, except
        when cameras were given without depth: then it is VGGT's.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned with `output_hidden_states=True`):
        As in `Spa3RModelOutput`, followed by the tokens after every block of the decoder, each of shape
        `(batch_size * num_predicted_views, num_register_tokens + num_latents + num_patches, hidden_size)`.
    attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True` and eager attention):
        As in `Spa3RModelOutput`, followed by the attention weights of every block of the decoder.
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
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class Spa3RTransformer(nn.Module):
    """Pre-norm transformer with its own registers: the architecture of both the encoder and the decoder."""

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
        """Map `(batch_size, num_tokens, hidden_size)` to the same shape; registers are added and removed inside."""
        registers = self.register_tokens.expand(hidden_states.shape[0], -1, -1).to(hidden_states)
        hidden_states = torch.cat([registers, hidden_states], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embedding)
        return self.norm(hidden_states[:, registers.shape[1] :])


class FeatureWhitening(nn.Module):
    """Shift and scale the features of a teacher, channel by channel, to mean 0 and standard deviation 1."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("std", torch.ones(num_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Map `(..., num_channels)` to the same shape."""
        return (features - self.mean.to(features.dtype)) / self.std.to(features.dtype)

    @torch.no_grad()
    def fit(self, features: Tensor):
        """Set the statistics to those of `(..., num_channels)`."""
        features = features.flatten(0, -2).double()
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp(min=1e-3))


class Spa3RPreTrainedModel(CheckedModel):
    config: Spa3RConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    # Quantisers leave these whole: in 4 bits, cameras of the nano VGGT are off by 3.9 degrees on average.
    _keep_in_fp32_modules = [r"(.*\.)?vggt", "camera_head"]
    _supports_sdpa = True
    _supports_flash_attn = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a model; a checkpoint made during training names its teachers, and these are loaded from there."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not model.config.teachers_included:
            model.load_teachers()
            model.config.teachers_included = True
        return loaded

    def post_init(self):
        super().post_init()
        # The library collects these names from direct children only, but FSDP must shard, and `device_map` must not
        # split, the teachers' layers too. FSDP refuses names of classes that the model does not contain, and a vision
        # tower names the layers of its text tower.
        modules = list(self.modules())
        layers = {name for module in modules for name in getattr(module, "_no_split_modules", None) or ()}
        self._no_split_modules = layers & {type(module).__name__ for module in modules}
        if not self.config.teachers_included:
            self._keys_to_ignore_on_load_missing |= {rf"^{name}\." for name in self.frozen_modules()}

    def _load_vggt(self) -> VGGTForGeometry | PreTrainedModel:
        """Load VGGT with its heads, or another geometry model."""
        checkpoint, config = self.config.vggt_checkpoint, self.config.vggt_config
        if config.model_type != VGGTConfig.model_type:
            if checkpoint is None:
                vggt = build_untrained(lambda: build_geometry(config), config.model_type, self.config.teacher_seed)
            else:
                vggt = load_pretrained(AutoModel, checkpoint, config)
        elif checkpoint is None:
            vggt = build_untrained(lambda: VGGTForGeometry(config), "VGGT", self.config.teacher_seed)
        else:
            given = VGGTConfig.from_pretrained(checkpoint)
            for name in set(VGGTConfig.__annotations__) - {"global_qk_norm", "initializer_range", "model_type"}:
                if getattr(given, name) != getattr(config, name):
                    raise ValueError(
                        f"The VGGT in `{checkpoint}` has `{name}` {getattr(given, name)}, but the configuration "
                        f"{getattr(config, name)}; set it in `vggt_config` or name another `vggt_checkpoint`."
                    )
            vggt = load_pretrained(VGGTForGeometry, checkpoint, config)
        return vggt.to(device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, Spa3RModel):
            init.trunc_normal_(module.latent_queries, std=std)
        elif isinstance(module, Spa3RTransformer):
            init.normal_(module.register_tokens, std=1e-6)
        elif isinstance(module, FeatureWhitening):
            init.zeros_(module.mean)
            init.ones_(module.std)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class Spa3RModel(Spa3RPreTrainedModel):
    """The frozen VGGT and Spa3R's encoder: maps the views of a scene to its latents."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(Block, num_hidden_layers_key="num_encoder_layers"),
        "attentions": Attention,
    }
    # A pre-training checkpoint also holds what only PSFM needs; the latents do not depend on it.
    _keys_to_ignore_on_load_unexpected = [
        r"^(camera_head|depth_head|decoder|ray_embedding|heads|depth_probe|target_whitening|teachers)\.",
    ]

    def __init__(self, config: Spa3RConfig):
        super().__init__(config)
        self.vggt = build_geometry(config.vggt_config)
        feature_size = config.vggt_config.feature_size
        self.whitening = FeatureWhitening(feature_size) if config.whiten_features else None
        self.projection = nn.Linear(feature_size, config.hidden_size)
        self.latent_queries = nn.Parameter(torch.empty(config.num_latents, config.hidden_size))
        self.encoder = Spa3RTransformer(config, config.num_encoder_layers)
        self.post_init()

    def frozen_modules(self) -> dict[str, nn.Module]:
        """The teachers, which are never trained, by their prefix in the state dict."""
        return {"vggt": self.vggt}

    def load_teachers(self):
        """Load VGGT from `config.vggt_checkpoint`, or draw its weights from `config.teacher_seed` if there is none."""
        loaded = self._load_vggt()
        self.vggt = loaded.vggt if isinstance(loaded, VGGTForGeometry) else loaded

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding."""
        return self.vggt.get_input_embeddings()

    def encode(self, features: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Encode the VGGT features of all context views into latents.

        Eq. 2: z = E({(v_c, F_c)}), by Eq. 6-7: H = Transformer(Concat[q, F_c]), z = H[:N_q]. As in the official code,
        the encoder gets no camera and no view index, only the 2-D rotary position of a patch in its view.

        Args:
            features (`torch.FloatTensor` of shape `(batch_size, num_views, num_patches, 2 * vggt_hidden_size)`):
                Patch tokens of VGGT's last layer.
            grid_size (`tuple[int, int]`): Rows and columns of a view's patch grid.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`.
        """
        batch_size, num_views = features.shape[:2]
        if self.whitening is not None:
            features = self.whitening(features)
        # Quantised layers have weights of another dtype, and take three dimensions.
        context = self.projection(features.flatten(1, 2).to(self.latent_queries.dtype))
        queries = self.latent_queries.expand(batch_size, -1, -1).to(context)
        patches = grid_positions(grid_size, 0, features.device)
        num_special = self.config.num_register_tokens + self.config.num_latents
        positions = torch.cat([patches.new_zeros(num_special, 2), patches.repeat(num_views, 1)])
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        rope = Rope2D(positions, head_dim, self.config.rope_base)
        # Eq. 6-7: H = Transformer(Concat[q, F_c]), z = H[:N_q].
        hidden_states = self.encoder(torch.cat([queries, context], dim=1), rope)
        return hidden_states[:, : self.config.num_latents]

    @record_outputs
    def forward(self, pixel_values: Tensor) -> Spa3RModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`):
            RGB in [0, 1], sides multiples of VGGT's patch size. All views are context; the first is the reference.

        Example:

        ```python
        >>> from transformers import AutoImageProcessor, AutoModel
        >>> import spa3r  # registers the Auto classes

        >>> processor = AutoImageProcessor.from_pretrained("runs/quickstart/model")
        >>> model = AutoModel.from_pretrained("runs/quickstart/model")
        >>> views = processor(["kitchen-1.jpg", "kitchen-2.jpg"], return_tensors="pt")
        >>> latents = model(**views).latents
        ```
        """
        with torch.no_grad():
            features = self.vggt(pixel_values, return_dict=True).patch_tokens
        return Spa3RModelOutput(latents=self.encode(features, self.vggt.grid_size(pixel_values)))


class Spa3RForPreTraining(Spa3RPreTrainedModel):
    """Spa3R with its decoder, teachers and losses: predicts the features of views that the encoder has not seen."""

    _can_record_outputs = {"hidden_states": Block, "attentions": Attention}

    def __init__(self, config: Spa3RConfig):
        super().__init__(config)
        vggt_config = config.vggt_config
        self.model = Spa3RModel(config)
        self.camera_head, self.depth_head = None, None  # part of another geometry model than VGGT
        if vggt_config.model_type == VGGTConfig.model_type:
            self.camera_head = VGGTCameraHead(vggt_config)
            self.depth_head = VGGTDenseHead(vggt_config, num_outputs=2, activation="exp")
        attn_implementation = config._attn_implementation
        self.teachers = nn.ModuleDict(
            {name: Spa3RTeacher(config.teacher_config(name), attn_implementation) for name in config.teachers}
        )
        ray_size = 3 if config.camera_embedding == "prope" else 6
        self.ray_embedding = nn.Linear(ray_size, config.hidden_size)
        self.decoder = Spa3RTransformer(config, config.num_decoder_layers)
        sizes = {"geometry": vggt_config.feature_size}
        sizes |= {name: teacher.feature_size for name, teacher in self.teachers.items()}
        whitened = sizes.keys() & set(config.targets) - {"geometry"} if config.whiten_features else ()
        self.target_whitening = nn.ModuleDict({name: FeatureWhitening(sizes[name]) for name in sorted(whitened)})
        inner_size = int(config.hidden_size * config.mlp_ratio)
        self.heads = nn.ModuleDict({name: MLP(config.hidden_size, inner_size, sizes[name]) for name in config.targets})
        self.depth_probe = MLP(config.hidden_size, inner_size, 1)
        self.post_init()

    def frozen_modules(self) -> dict[str, nn.Module]:
        """The teachers, which are never trained, by their prefix in the state dict."""
        modules = {"model.vggt": self.model.vggt, "camera_head": self.camera_head, "depth_head": self.depth_head}
        modules = {name: module for name, module in modules.items() if module is not None}
        return modules | {f"teachers.{name}": teacher for name, teacher in self.teachers.items()}

    def load_teachers(self):
        """Load all teachers from their configured checkpoints; those without one draw their weights from a seed."""
        teachers = {}
        for index, (name, teacher) in enumerate(self.teachers.items(), start=1):
            checkpoint, vision_config = teacher.config.checkpoint, teacher.config.vision_config
            if checkpoint is not None:
                teachers[name] = load_pretrained(AutoModel, checkpoint, vision_config)
            else:
                build = partial(AutoModel.from_config, vision_config)
                teachers[name] = build_untrained(build, f"teacher `{name}`", self.config.teacher_seed + index)
            teachers[name].to(device=self.device, dtype=self.dtype)
        self.set_teachers(self._load_vggt(), **teachers)

    def freeze_teachers(self):
        """Turn off the gradients of the teachers. Call it after loading, because loading turns all gradients on."""
        for module in self.frozen_modules().values():
            module.requires_grad_(False)

    def cast_teachers(self, dtype: torch.dtype):
        """Hold VGGT's and the other teachers' weights in a dtype. The heads of cameras and depth stay in theirs, and
        so does another geometry model, which holds its own."""
        vggt = () if self.camera_head is None else (self.model.vggt,)
        for module in (*vggt, *self.teachers.values()):
            module.to(dtype)

    def train(self, mode: bool = True):
        """Switch to training mode, except for the teachers, which stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules().values():
            module.eval()
        return self

    @property
    def geometry_teacher(self) -> VGGTTeacher | GeometryTeacher:
        """The frozen geometry model, behind the interface that is common to all."""
        if self.camera_head is None:
            return GeometryTeacher(self.model.vggt)
        return VGGTTeacher(self.model.vggt, self.camera_head, self.depth_head)

    def set_teachers(self, vggt: VGGTForGeometry | PreTrainedModel | None = None, **teachers: PreTrainedModel):
        """Replace teachers with pretrained models.

        Args:
            vggt (`VGGTForGeometry`, *optional*):
                Backbone, camera head and depth head; or another geometry model, if the configuration's is.
            teachers (`PreTrainedModel`): Vision models by their names in `config.teachers`.

        Raises:
            ValueError: If there is no teacher of this name, or its architecture differs from the configuration's.
        """
        if vggt is not None and self.camera_head is None:
            check_same_architecture("vggt", vggt, self.model.vggt)
            self.model.vggt = vggt
        elif vggt is not None:
            check_same_architecture("vggt", vggt.vggt, self.model.vggt)
            self.model.vggt, self.camera_head, self.depth_head = vggt.vggt, vggt.camera_head, vggt.depth_head
        for name, teacher in teachers.items():
            if name not in self.teachers:
                raise ValueError(f"The model has no teacher `{name}`; give one of {sorted(self.teachers)}.")
            check_same_architecture(name, teacher, self.teachers[name].model)
            self.teachers[name].model = teacher

    @torch.no_grad()
    def fit_whitening(self, pixel_values: Tensor):
        """Measure the statistics of `config.whiten_features` on views, all of them context.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`): RGB in [0, 1].
        """
        vggt = self.model.vggt
        self.model.whitening.fit(vggt(pixel_values, return_dict=True).patch_tokens)
        for name, whitening in self.target_whitening.items():
            whitening.fit(self.teachers[name](pixel_values, vggt.grid_size(pixel_values)))

    def _whiten(self, name: str, features: Tensor) -> Tensor:
        if not self.config.whiten_features:
            return features
        return self.model.whitening(features) if name == "geometry" else self.target_whitening[name](features)

    def decode(
        self, latents: Tensor, extrinsics: Tensor, intrinsics: Tensor, image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Predict the features that cameras would see.

        Eq. 3: F_t = D(v_t | z), by Eq. 11-12: H' = Transformer(Concat[r, z]), prediction = H'[:-N_q]. Each camera is
        decoded on its own. The latents precede the rays here; the order has no effect, as only rays have positions.

        Args:
            latents (`torch.FloatTensor` of shape `(batch_size, num_latents, hidden_size)`): Latents of each scene.
            extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`):
                World to camera, in the frame and scale of the encoded views.
            intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`): In pixels.
            image_size (`tuple[int, int]`): Height and width of the images in pixels.

        Returns:
            `dict[str, torch.FloatTensor]`: Features of each target, of shape
            `(batch_size, num_views, num_patches, target_size)`, and `"depth"` of shape
            `(batch_size, num_views, num_patches)` from a probe that trains on detached features.
        """
        batch_size, num_views = extrinsics.shape[:2]
        patch_size = self.config.vggt_config.patch_size
        grid_size = (image_size[0] // patch_size, image_size[1] // patch_size)
        rays = camera_rays(intrinsics, grid_size, patch_size)  # Eq. 8
        if self.config.camera_embedding == "plucker":
            rays, position_embedding = plucker_rays(extrinsics.float(), rays), None
        else:  # Eq. 9-10
            position_embedding = PRoPE(
                extrinsics.flatten(0, 1)[:, None],
                intrinsics.flatten(0, 1)[:, None],
                grid_size,
                image_size,
                self.config.hidden_size // self.config.num_attention_heads,
                self.config.rope_base,
            )
        rays = self.ray_embedding(rays.flatten(0, 1).to(self.model.latent_queries.dtype))
        scenes = latents.to(rays.dtype).repeat_interleave(num_views, dim=0)
        # Eq. 11-12: H' = Transformer(Concat[r, z]), prediction = H'[:-N_q].
        hidden_states = self.decoder(torch.cat([scenes, rays], dim=1), position_embedding)
        hidden_states = hidden_states[:, latents.shape[1] :]
        predictions = {name: head(hidden_states) for name, head in self.heads.items()}
        predictions["depth"] = self.depth_probe(hidden_states.detach()).squeeze(-1)
        return {name: states.unflatten(0, (batch_size, num_views)) for name, states in predictions.items()}

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
        """Run the frozen teachers on a batch; see `forward` for the arguments that are not listed.

        Args:
            first_target (`int`, *optional*, defaults to 0): First view with target features and depth.

        Returns:
            `dict`: `context_features` of shape `(batch_size, num_context_views, num_patches, 2 * vggt_hidden_size)`;
            `extrinsics` and `intrinsics` of all views, in the first view's frame; `targets`, the features of each
            target, of shape `(batch_size, num_views - first_target, num_patches, target_size)`; and `depth` of shape
            `(batch_size, num_views - first_target, num_patches)`.
        """
        vggt, patch_size = self.model.vggt, self.config.vggt_config.patch_size
        asymmetric = self.config.view_aggregation == "asymmetric"
        output = self.geometry_teacher.observe(
            pixel_values,
            num_context_views if asymmetric else None,
            with_cameras=extrinsics is None,
            depth_from=first_target if depth is None else None,
        )
        grid_size = vggt.grid_size(pixel_values)
        if asymmetric:
            context_features = output.patch_tokens[:, :num_context_views]  # Eq. 5
        else:
            context_features = vggt(pixel_values[:, :num_context_views], return_dict=True).patch_tokens

        if extrinsics is None:
            extrinsics, intrinsics = output.extrinsics, output.intrinsics
        else:
            extrinsics, unit = relative_cameras(extrinsics.float())
            if not self.config.normalize_cameras:
                translation = extrinsics[..., :3, 3:] * unit[:, None, None, None]
                extrinsics = homogeneous(torch.cat([extrinsics[..., :3, :3], translation], dim=-1))
                unit = torch.ones_like(unit)
        if depth is None:
            depth = output.depth
        else:
            depth = depth[:, first_target:, ::patch_size, ::patch_size] / unit[:, None, None, None]

        targets = {}
        for name in self.heads:
            if name == "geometry":
                features = output.patch_tokens[:, first_target:]
            else:
                features = self.teachers[name](pixel_values[:, first_target:], grid_size)
            targets[name] = self._whiten(name, features)
        return {
            "context_features": context_features,
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
            "targets": targets,
            "depth": depth.flatten(-2).float(),
        }

    def compute_losses(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], patch_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the named losses in float32; their unweighted sum is the objective.

        Eq. 4: L_PSFM = E_(C,T) sum_t dist(prediction_t, F_t); Eq. 13: dist = |prediction - F|_1 + (1 - cosine), summed
        over the targets. As in the official code, both are means over views, where the paper has a sum.

        Args:
            predictions, targets (`dict[str, torch.FloatTensor]`): Features of each target and depth, see `decode`.
            patch_weights (`torch.FloatTensor` of shape `(batch_size, num_views, num_patches)`, *optional*):
                How much each patch counts; all equally by default.
        """
        distance = F.l1_loss if self.config.regression_loss == "l1" else F.smooth_l1_loss
        losses = {}
        for name in self.heads:
            prediction, target = predictions[name].float(), targets[name].float()
            weights = self._patch_weights(target, patch_weights)
            if weights is None:
                losses[f"{name}_l1"] = distance(prediction, target)
                losses[f"{name}_cosine"] = 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
            else:
                weights = weights / weights.sum()
                losses[f"{name}_l1"] = (distance(prediction, target, reduction="none").mean(-1) * weights).sum()
                losses[f"{name}_cosine"] = ((1 - F.cosine_similarity(prediction, target, dim=-1)) * weights).sum()
        known = targets["depth"] > 0
        depth_loss = F.smooth_l1_loss(predictions["depth"].float(), targets["depth"].float(), reduction="none")
        losses["depth_probe"] = (depth_loss * known).sum() / known.sum().clamp(min=1)
        return losses

    def _patch_weights(self, target: Tensor, given: Tensor | None) -> Tensor | None:
        """The given weights times those of `config.distinct_patch_weight`."""
        extra = self.config.distinct_patch_weight - 1
        if not extra:
            return given
        distances = (target - target.mean((1, 2), keepdim=True)).norm(dim=-1)
        weights = 1 + extra * distances / distances.amax((1, 2), keepdim=True).clamp(min=1e-6)
        return weights if given is None else weights * given

    @record_outputs
    def forward(
        self,
        pixel_values: Tensor,
        num_context_views: int,
        extrinsics: Tensor | None = None,
        intrinsics: Tensor | None = None,
        depth: Tensor | None = None,
        patch_weights: Tensor | None = None,
        return_loss: bool = True,
    ) -> Spa3RForPreTrainingOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`):
            RGB in [0, 1], context views first; the first view is the reference frame.
        num_context_views (`int`):
            Number of views that the encoder sees; at least one view must remain to be predicted.
        extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`, *optional*):
            World to camera, in any frame and unit. Given with `intrinsics`, they replace VGGT's estimates.
        intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`, *optional*):
            In pixels of `pixel_values`.
        depth (`torch.FloatTensor` of shape `(batch_size, num_views, height, width)`, *optional*):
            Depth along the viewing axis in the unit of `extrinsics`, 0 where unknown. The depth probe learns it
            instead of VGGT's estimate; it has no influence on the other losses.
        patch_weights (`torch.FloatTensor` of shape `(batch_size, num_views, num_patches)`, *optional*):
            How much the features of each patch count in the losses; all equally by default.
        return_loss (`bool`, *optional*, defaults to `True`):
            Whether to compute the losses. By this name a `Trainer` sees that the model needs no labels to evaluate.

        Raises:
            ValueError: If a shape or a number is wrong, or cameras are incomplete or not finite.
        """
        self._check_views(pixel_values, num_context_views, extrinsics, intrinsics, depth)
        first = 0 if self.config.predict_context_views else num_context_views
        observed = self.observe(pixel_values, num_context_views, extrinsics, intrinsics, depth, first_target=first)
        with load_offloaded(self.model):
            latents = self.model.encode(observed["context_features"], self.model.vggt.grid_size(pixel_values))
        extrinsics, intrinsics = observed["extrinsics"], observed["intrinsics"]
        image_size = tuple(pixel_values.shape[-2:])
        predictions = self.decode(latents, extrinsics[:, first:], intrinsics[:, first:], image_size)
        targets = observed["targets"] | {"depth": observed["depth"]}
        if patch_weights is not None:
            patch_weights = patch_weights[:, first:]
        losses = self.compute_losses(predictions, targets, patch_weights) if return_loss else None
        return Spa3RForPreTrainingOutput(
            loss=sum(losses.values()) if return_loss else None,
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
                "`pixel_values` must have shape (batch_size, num_views, 3, height, width) with at least 2 views, got "
                f"{tuple(pixel_values.shape)}; load more views per scene."
            )
        batch_size, num_views = pixel_values.shape[:2]
        if not 0 < num_context_views < num_views:
            raise ValueError(
                f"`num_context_views` must be in [1, num_views - 1], so that a view remains to be predicted, got "
                f"{num_context_views} for {num_views} views; change the context ratio or load more views per scene."
            )
        if (extrinsics is None) != (intrinsics is None):
            missing = "intrinsics" if intrinsics is None else "extrinsics"
            raise ValueError(f"`{missing}` is missing; pass both `extrinsics` and `intrinsics`, or neither.")
        if depth is not None and extrinsics is None:
            raise ValueError("`depth` is in the unit of `extrinsics`, which is missing; pass the cameras too.")
        expected = {"extrinsics": (4, 4), "intrinsics": (3, 3), "depth": tuple(pixel_values.shape[-2:])}
        for (name, size), given in zip(expected.items(), (extrinsics, intrinsics, depth), strict=True):
            if given is not None and tuple(given.shape) != (batch_size, num_views, *size):
                raise ValueError(
                    f"`{name}` must have shape {(batch_size, num_views, *size)}, got {tuple(given.shape)}; "
                    "give one for every view."
                )
            # Reading values would stall an accelerator in training, and training data is checked when it is read.
            if given is not None and given.device.type == "cpu" and not given.isfinite().all():
                raise ValueError(f"`{name}` has NaN or infinite values; leave such views out.")
