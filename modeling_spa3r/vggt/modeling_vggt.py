"""VGGT: features, cameras, depth and points of a scene from its unposed views (Wang et al., CVPR 2025).

Deviations from the official code:
- Context views come first. With `num_context_views`, attention across views is asymmetric (Eq. 5 of the Spa3R paper):
  two plain attention products replace the official code's mask over all pairs of tokens.
- A layer's output, its frame and global tokens concatenated, is formed only for the requested layers.
- The norm of queries and keys across views is VGGT's or the official Spa3R code's: `config.global_qk_norm`.

Dimensions: B batch, V views, P tokens of a view (camera, registers, N patches), C hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersModel
from transformers import initialization as init

from ...configuration.configuration_vggt import VGGTConfig
from ..geometry import pose_encoding_to_cameras
from ..layers import MLP, Attention, Block, LayerScale, Rope2D, grid_positions
from ..library import CheckedModel, ModelOutput, OutputRecorder, can_return_tuple, record_outputs

__all__ = ["VGGTCameraHead", "VGGTDenseHead", "VGGTForGeometry", "VGGTModel", "VGGTPreTrainedModel"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Initial factor of the residual branches in the blocks. The vision transformer of the patch embedding has DINOv2's.
LAYER_SCALE_INIT = 0.01
LAYER_NORM_EPS = 1e-5
# Radians. The camera head's ReLU can give a field of view of zero, which would mean an infinite focal length.
MIN_FIELD_OF_VIEW = 1e-3


@dataclass
class VGGTModelOutput(ModelOutput):
    """
    In a layer's output, the channels of the frame block precede those of the global block.

    patch_tokens (`torch.FloatTensor` of shape `(batch_size, num_views, num_patches, 2 * hidden_size)`):
        Patch tokens of the last layer, row by row.
    camera_tokens (`torch.FloatTensor` of shape `(batch_size, num_views, 2 * hidden_size)`):
        Camera tokens of the last layer.
    layer_patch_tokens (`tuple[torch.FloatTensor]`):
        Patch tokens of each layer in `output_layers`, in that order, with the shape of `patch_tokens`.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned with `output_hidden_states=True`):
        All tokens before the first block and after every block, frame and global blocks in turn: the input and frame
        blocks of shape `(batch_size * num_views, num_tokens, hidden_size)`, global blocks of shape
        `(batch_size, num_views * num_tokens, hidden_size)`.
    attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True` and eager attention):
        Attention weights of every block, in the same order: frame blocks of shape
        `(batch_size * num_views, num_heads, num_tokens, num_tokens)`, global blocks of shape
        `(batch_size, num_heads, num_views * num_tokens, num_views * num_tokens)`.
    """

    patch_tokens: torch.FloatTensor | None = None
    camera_tokens: torch.FloatTensor | None = None
    layer_patch_tokens: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VGGTForGeometryOutput(ModelOutput):
    """
    World coordinates are in the first view's frame and in the model's own scale.

    extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`):
        World to camera, OpenCV axes (x right, y down, z forward).
    intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`):
        In pixels.
    pose_encodings (`tuple[torch.FloatTensor]`):
        The camera head's estimates after each iteration, of shape `(batch_size, num_views, 9)`; the last is the best.
    depth (`torch.FloatTensor` of shape `(batch_size, num_views, height, width)`):
        Depth along the viewing axis.
    depth_confidence (`torch.FloatTensor` of shape `(batch_size, num_views, height, width)`):
        Confidence of the depth, at least 1.
    points (`torch.FloatTensor` of shape `(batch_size, num_views, height, width, 3)`):
        World coordinates of each pixel.
    points_confidence (`torch.FloatTensor` of shape `(batch_size, num_views, height, width)`):
        Confidence of the points, at least 1.
    hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
        As in `VGGTModelOutput`.
    """

    extrinsics: torch.FloatTensor | None = None
    intrinsics: torch.FloatTensor | None = None
    pose_encodings: tuple[torch.FloatTensor, ...] | None = None
    depth: torch.FloatTensor | None = None
    depth_confidence: torch.FloatTensor | None = None
    points: torch.FloatTensor | None = None
    points_confidence: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def normalize_images(
    pixel_values: Tensor, means: Sequence[float] = IMAGENET_MEAN, deviations: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Subtract means and divide by standard deviations, in float32; the channels are the third dimension from last."""
    channels = pixel_values.float().unbind(-3)
    return torch.stack([(c - mean) / std for c, mean, std in zip(channels, means, deviations, strict=True)], dim=-3)


def check_pixel_range(pixel_values: Tensor):
    """Refuse images outside [0, 1].

    On a GPU, and in compiled code, the device checks while the host goes on. The process then fails at its next
    synchronisation; on a GPU it ends, and the sentence is in the device's assertion.

    Raises:
        ValueError: If a value is not in [0, 1]; a `RuntimeError` on a GPU and in compiled code.
    """
    remedy = "do not normalise the images, and divide bytes by 255."
    in_range = ((pixel_values >= 0) & (pixel_values <= 1)).all()
    if pixel_values.device.type in ("cuda", "meta") or torch.compiler.is_compiling():
        torch._assert_async(in_range, f"`pixel_values` must lie in [0, 1]; {remedy}")
    elif not in_range:
        low, high = pixel_values.aminmax()
        raise ValueError(f"`pixel_values` must lie in [0, 1], got {low:.4g} to {high:.4g}; {remedy}")


class VGGTConvPatchEmbedding(nn.Module):
    """Embed each patch with one convolution."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        self.projection = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map `(num_images, 3, height, width)` to `(num_images, num_patches, hidden_size)`."""
        return self.projection(pixel_values.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)


class VGGTViTPatchEmbedding(nn.Module):
    """Embed each patch with DINOv2 with registers."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        self.vit = Dinov2WithRegistersModel._from_config(
            config.vit_config(), attn_implementation=config._attn_implementation
        )
        self.num_special_tokens = 1 + config.num_register_tokens

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map `(num_images, 3, height, width)` to `(num_images, num_patches, hidden_size)`."""
        return self.vit(pixel_values, return_dict=True).last_hidden_state[:, self.num_special_tokens :]


PATCH_EMBEDDINGS = {"conv": VGGTConvPatchEmbedding, "vit": VGGTViTPatchEmbedding}


class VGGTPreTrainedModel(CheckedModel):
    config: VGGTConfig
    base_model_prefix = "vggt"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    # Quantisers leave these whole: in 4 bits, cameras of the nano VGGT are off by 3.9 degrees on average.
    _keep_in_fp32_modules = [r"(.*\.)?vggt", "camera_head"]
    # An RMS norm has no bias. With `global_qk_norm="rms_norm"`, the biases of upstream VGGT are dropped, as in the
    # official Spa3R code.
    _keys_to_ignore_on_load_unexpected = [r"global_blocks\.\d+\.attention\.[qk]_norm\.bias$"]
    _input_embed_layer = "patch_embedding"
    _supports_sdpa = True
    _supports_flash_attn = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LayerScale):
            init.constant_(module.scale, module.initial_value)
        elif isinstance(module, VGGTModel):
            init.normal_(module.camera_token, std=1e-6)
            init.normal_(module.register_tokens, std=1e-6)
        elif isinstance(module, VGGTCameraHead):
            init.zeros_(module.empty_pose)


class VGGTModel(VGGTPreTrainedModel):
    """The aggregator: blocks within each view alternate with blocks across all views of a scene."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(Block, num_hidden_layers_key="num_blocks"),
        "attentions": Attention,
    }
    # A checkpoint of VGGT with its heads loads too, because the features do not depend on the heads.
    _keys_to_ignore_on_load_unexpected = [
        *VGGTPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(camera_head|depth_head|point_head)\.",
    ]

    def __init__(self, config: VGGTConfig):
        super().__init__(config)
        size = config.hidden_size
        self.patch_embedding = PATCH_EMBEDDINGS[config.patch_embedding](config)
        # Each token has two versions: one for the first view, which is the reference frame, and one for all others.
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, size))
        self.register_tokens = nn.Parameter(torch.empty(1, 2, config.num_register_tokens, size))
        self.frame_blocks = self._make_blocks("layer_norm")
        self.global_blocks = self._make_blocks(config.global_qk_norm)
        self.post_init()

    def _make_blocks(self, qk_norm: str) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            Block(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.mlp_ratio,
                qk_norm=qk_norm,
                layer_scale_init=LAYER_SCALE_INIT,
                layer_norm_eps=LAYER_NORM_EPS,
            )
            for _ in range(config.num_hidden_layers)
        )

    def grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of the patch grid of images of shape `(..., height, width)`."""
        height, width = pixel_values.shape[-2:]
        return height // self.config.patch_size, width // self.config.patch_size

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Make the tokens of each view: camera, registers, patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`): RGB in [0, 1].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_views, num_tokens, hidden_size)`.
        """
        batch_size, num_views = pixel_values.shape[:2]
        patches = self.patch_embedding(normalize_images(pixel_values.flatten(0, 1)))
        special = torch.cat([self.camera_token, self.register_tokens], dim=2).to(patches)
        is_first = torch.arange(num_views, device=special.device)[:, None, None] == 0
        special = torch.where(is_first, special[:, :1], special[:, 1:]).expand(batch_size, -1, -1, -1)
        return torch.cat([special, patches.unflatten(0, (batch_size, num_views))], dim=2)

    @record_outputs
    def forward(
        self,
        pixel_values: Tensor,
        num_context_views: int | None = None,
        output_layers: Sequence[int] = (),
    ) -> VGGTModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`):
            RGB in [0, 1], context views first, sides multiples of `config.patch_size`. The first view is the reference
            frame.
        num_context_views (`int`, *optional*):
            Number of context views; all views by default. Context views attend to context views only and target views
            to all views (paper Eq. 5), so the features of context views do not depend on target views.
        output_layers (`Sequence[int]`, *optional*):
            Layers whose patch tokens to return besides the last layer's.

        Raises:
            ValueError: If shape, sides, range or type of the images, or one of the numbers, is wrong.
        """
        self._check_inputs(pixel_values, num_context_views, output_layers)
        hidden_states = self.embed(pixel_values)
        batch_size, num_views, num_tokens, _ = hidden_states.shape
        num_special_tokens = 1 + self.config.num_register_tokens

        positions = grid_positions(self.grid_size(pixel_values), num_special_tokens, pixel_values.device)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        frame_rope = Rope2D(positions, head_dim, self.config.rope_base)
        global_rope = Rope2D(positions.repeat(num_views, 1), head_dim, self.config.rope_base)
        num_context_tokens = None if num_context_views is None else num_context_views * num_tokens

        last_layer = self.config.num_hidden_layers - 1
        outputs = dict.fromkeys([*output_layers, last_layer])
        for layer, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            hidden_states = frame_block(hidden_states.flatten(0, 1), frame_rope)  # (B * V, P, C)
            hidden_states = hidden_states.unflatten(0, (batch_size, num_views))
            frame_tokens = hidden_states if layer in outputs else None
            hidden_states = global_block(hidden_states.flatten(1, 2), global_rope, num_context_tokens)  # (B, V * P, C)
            hidden_states = hidden_states.unflatten(1, (num_views, num_tokens))
            if layer in outputs:
                outputs[layer] = torch.cat([frame_tokens, hidden_states], dim=-1)
        return VGGTModelOutput(
            patch_tokens=outputs[last_layer][:, :, num_special_tokens:],
            camera_tokens=outputs[last_layer][:, :, 0],
            layer_patch_tokens=tuple(outputs[layer][:, :, num_special_tokens:] for layer in output_layers),
        )

    def _check_inputs(self, pixel_values: Tensor, num_context_views: int | None, output_layers: Sequence[int]):
        if pixel_values.ndim != 5 or pixel_values.shape[2] != 3:
            raise ValueError(
                "`pixel_values` must have shape (batch_size, num_views, 3, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )
        num_views, (height, width), patch_size = pixel_values.shape[1], pixel_values.shape[-2:], self.config.patch_size
        if num_views == 0 or min(height, width) == 0 or height % patch_size or width % patch_size:
            raise ValueError(
                f"`pixel_values` needs at least one view and sides that are multiples of {patch_size}, got {num_views}"
                f" views of {height} x {width} pixels; resize or crop the images."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be floating point in [0, 1], got {pixel_values.dtype}; divide bytes by 255."
            )
        check_pixel_range(pixel_values)
        if num_context_views is not None and not 0 < num_context_views <= num_views:
            raise ValueError(
                f"`num_context_views` must be in [1, num_views], got {num_context_views} for {num_views} views; leave "
                "it out if all views are context."
            )
        if unknown := sorted(set(output_layers) - set(range(self.config.num_hidden_layers))):
            raise ValueError(
                f"`output_layers` must be in [0, {self.config.num_hidden_layers - 1}], got {unknown}; choose other "
                "layers, for the dense heads by `dense_layers` in the configuration."
            )


class VGGTCameraHead(VGGTPreTrainedModel):
    """Estimate the cameras of all views together, from their camera tokens, by iterative refinement."""

    def __init__(self, config: VGGTConfig):
        super().__init__(config)
        size = 2 * config.hidden_size
        self.empty_pose = nn.Parameter(torch.empty(1, 1, 9))
        self.token_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.pose_embedding = nn.Linear(9, size)
        self.modulation = nn.Linear(size, 3 * size)
        self.layers = nn.ModuleList(
            Block(
                config,
                size,
                config.camera_heads,
                mlp_ratio=4.0,
                qk_norm=None,
                layer_scale_init=LAYER_SCALE_INIT,
                layer_norm_eps=LAYER_NORM_EPS,
            )
            for _ in range(config.camera_layers)
        )
        self.norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.pose_mlp = MLP(size, size // 2, 9)
        self.post_init()

    def forward(self, camera_tokens: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            camera_tokens (`torch.FloatTensor` of shape `(batch_size, num_views, 2 * hidden_size)`):
                Camera tokens of VGGT's last layer.

        Returns:
            `tuple[torch.FloatTensor]`: Pose encoding after each iteration, float32 of shape
            `(batch_size, num_views, 9)`, see `pose_encoding_to_cameras`. Fields of view are not negative.
        """
        tokens = self.token_norm(camera_tokens.to(self.token_norm.weight.dtype))
        unscaled = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        pose, pose_encodings = None, []
        for _ in range(self.config.camera_iterations):
            # Each iteration learns to correct the previous one; no gradient flows from one to the other.
            previous = self.empty_pose.expand(*tokens.shape[:2], -1) if pose is None else pose.detach()
            embedding = self.pose_embedding(previous.to(tokens.dtype))
            shift, scale, gate = self.modulation(nn.functional.silu(embedding)).chunk(3, dim=-1)
            hidden_states = gate * (unscaled * (1 + scale) + shift) + tokens
            for layer in self.layers:
                hidden_states = layer(hidden_states)
            delta = self.pose_mlp(self.norm(hidden_states)).float()
            pose = delta if pose is None else pose + delta
            pose_encodings.append(torch.cat([pose[..., :7], pose[..., 7:].relu()], dim=-1))
        return tuple(pose_encodings)


def estimated_cameras(pose_encoding: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Extrinsics and finite intrinsics of a pose encoding of `VGGTCameraHead`; see `pose_encoding_to_cameras`."""
    field_of_view = pose_encoding[..., 7:].clamp(min=MIN_FIELD_OF_VIEW)
    return pose_encoding_to_cameras(torch.cat([pose_encoding[..., :7], field_of_view], dim=-1), image_size)


def add_uv_embedding(features: Tensor, aspect: float) -> Tensor:
    """Add sines and cosines of each pixel's position, times 0.1; the image's half-diagonal is the unit of length.

    Args:
        features (`torch.Tensor` of shape `(num_images, channels, rows, columns)`):
            The number of channels is a multiple of 4.
        aspect (`float`): Width of the image divided by its height.
    """
    num_frequencies = features.shape[1] // 4
    exponents = torch.arange(num_frequencies, device=features.device, dtype=torch.float32) / num_frequencies
    frequencies = 100.0**-exponents
    diagonal = (aspect**2 + 1) ** 0.5
    tables = []
    for half_span, size in zip((aspect / diagonal, 1 / diagonal), reversed(features.shape[-2:]), strict=True):
        limit = half_span * (size - 1) / size
        angles = frequencies[:, None] * torch.linspace(-limit, limit, size, device=features.device)
        tables.append(torch.cat([angles.sin(), angles.cos()]))
    u, v = tables[0][:, None, :], tables[1][:, :, None]
    rows, columns = features.shape[-2:]
    embedding = torch.cat([u.expand(-1, rows, -1), v.expand(-1, -1, columns)])
    return features + (0.1 * embedding).to(features.dtype)


class VGGTResidualConvUnit(nn.Module):
    def __init__(self, num_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        # The skip starts after the activation, because the official code computes the activation in place.
        features = features.relu()
        return features + self.conv2(self.conv1(features).relu())


class VGGTFusionLayer(nn.Module):
    """Add a finer level to the fused coarser levels, refine the sum, and upsample it."""

    def __init__(self, num_channels: int, has_skip: bool):
        super().__init__()
        self.skip_unit = VGGTResidualConvUnit(num_channels) if has_skip else None
        self.unit = VGGTResidualConvUnit(num_channels)
        self.projection = nn.Conv2d(num_channels, num_channels, kernel_size=1)

    def forward(self, features: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        if skip is not None:
            features = features + self.skip_unit(skip)
        return self.projection(resize(self.unit(features), size))


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample bilinearly with aligned corners."""
    return nn.functional.interpolate(features, size, mode="bilinear", align_corners=True)


class StridedConv(nn.Conv2d):
    """A convolution at every `stride`-th place of each side."""

    def forward(self, features: Tensor, stride: int) -> Tensor:
        # In a module's own `forward`, because accelerate loads offloaded weights when that is called.
        return nn.functional.conv2d(features, self.weight, self.bias, stride=stride, padding=self.padding)


class VGGTDenseHead(VGGTPreTrainedModel):
    """Dense prediction head (DPT, Ranftl et al. 2021) on four layers: depth or points, with a confidence.

    Args:
        config (`VGGTConfig`): Architecture.
        num_outputs (`int`): Values per pixel, the last of them the confidence: 2 for depth, 4 for points.
        activation (`Literal["exp", "inv_log"]`):
            Activation of the prediction: `"exp"` for depth, `"inv_log"`, which keeps the sign, for points.
    """

    # Number of frames whose full-resolution features are in memory at once.
    FRAMES_PER_CHUNK = 8

    def __init__(self, config: VGGTConfig, num_outputs: int, activation: Literal["exp", "inv_log"]):
        super().__init__(config)
        self.activation = activation
        size, channels = config.dense_hidden_size, config.dense_channels
        self.norm = nn.LayerNorm(2 * config.hidden_size, eps=LAYER_NORM_EPS)
        self.projections = nn.ModuleList(nn.Conv2d(2 * config.hidden_size, c, kernel_size=1) for c in channels)
        self.resamplers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], kernel_size=4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], kernel_size=3, stride=2, padding=1),
            ]
        )
        self.level_convs = nn.ModuleList(nn.Conv2d(c, size, kernel_size=3, padding=1, bias=False) for c in channels)
        self.fusion_layers = nn.ModuleList(VGGTFusionLayer(size, has_skip=level < 3) for level in range(4))
        self.output_conv1 = nn.Conv2d(size, size // 2, kernel_size=3, padding=1)
        self.output_conv2 = StridedConv(size // 2, 32, kernel_size=3, padding=1)
        self.output_conv3 = nn.Conv2d(32, num_outputs, kernel_size=1)
        self.post_init()

    def forward(
        self, layer_patch_tokens: Sequence[Tensor], image_size: tuple[int, int], stride: int = 1
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            layer_patch_tokens (`Sequence[torch.FloatTensor]`):
                Patch tokens of the layers `config.dense_layers`, each of shape
                `(batch_size, num_views, num_patches, 2 * hidden_size)`.
            image_size (`tuple[int, int]`): Height and width of the images in pixels.
            stride (`int`, *optional*, defaults to 1):
                Predict only the pixels whose row and column are multiples of it, with the values of a full prediction.

        Returns:
            `tuple[torch.FloatTensor, torch.FloatTensor]`: Prediction of shape
            `(batch_size, num_views, height, width, num_outputs - 1)` and confidence, at least 1, of shape
            `(batch_size, num_views, height, width)`; both float32. Height and width count the predicted pixels.
        """
        batch_size, num_views = layer_patch_tokens[0].shape[:2]
        chunks = zip(
            *(tokens.flatten(0, 1).split(self.FRAMES_PER_CHUNK) for tokens in layer_patch_tokens), strict=True
        )
        outputs = torch.cat([self._predict(chunk, image_size, stride).float() for chunk in chunks])
        outputs = outputs.permute(0, 2, 3, 1).unflatten(0, (batch_size, num_views))
        prediction, confidence = outputs[..., :-1], 1 + outputs[..., -1].exp()
        if self.activation == "exp":
            return prediction.exp(), confidence
        return prediction.sign() * prediction.abs().expm1(), confidence

    def _predict(self, layer_patch_tokens: Sequence[Tensor], image_size: tuple[int, int], stride: int) -> Tensor:
        """Map tokens `(num_frames, N, 2C)` to outputs before activation `(num_frames, num_outputs, height, width)`."""
        height, width = image_size
        grid_size = (height // self.config.patch_size, width // self.config.patch_size)
        levels = []
        for tokens, projection, resampler, conv in zip(
            layer_patch_tokens, self.projections, self.resamplers, self.level_convs, strict=True
        ):
            tokens = self.norm(tokens.to(self.norm.weight.dtype))
            features = projection(tokens.transpose(1, 2).unflatten(2, grid_size))
            levels.append(conv(resampler(add_uv_embedding(features, width / height))))

        features = levels[3]
        for level in (3, 2, 1, 0):
            skip = levels[level] if level < 3 else None
            finer = levels[level - 1].shape[-2:] if level > 0 else [2 * side for side in levels[0].shape[-2:]]
            features = self.fusion_layers[level](features, skip, tuple(finer))

        features = resize(self.output_conv1(features), image_size)
        features = self.output_conv2(add_uv_embedding(features, width / height), stride)
        return self.output_conv3(features.relu())


class VGGTForGeometry(VGGTPreTrainedModel):
    """VGGT with its camera, depth and point heads."""

    def __init__(self, config: VGGTConfig):
        super().__init__(config)
        self.vggt = VGGTModel(config)
        self.camera_head = VGGTCameraHead(config)
        self.depth_head = VGGTDenseHead(config, num_outputs=2, activation="exp")
        self.point_head = VGGTDenseHead(config, num_outputs=4, activation="inv_log")
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, num_context_views: int | None = None, dense_views: Tensor | None = None, **kwargs
    ) -> VGGTForGeometryOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`):
            See `VGGTModel.forward`.
        num_context_views (`int`, *optional*):
            See `VGGTModel.forward`. The camera head attends to all views in any case, as in the official Spa3R code.
        dense_views (`torch.LongTensor` of shape `(num_dense_views,)`, *optional*):
            Views whose depth and points to predict; all by default. The dense heads look at each view on its own, and
            in training some views of each batch are enough.
        kwargs (*optional*):
            `output_hidden_states` and `output_attentions`.

        Example:

        ```python
        >>> import torch
        >>> from spa3r import VGGTForGeometry

        >>> model = VGGTForGeometry.from_pretrained("checkpoints/vggt-1b")
        >>> depth = model(torch.rand(1, 2, 3, 392, 518)).depth
        ```
        """
        image_size = tuple(pixel_values.shape[-2:])
        layers = self.config.dense_layers
        features = self.vggt(pixel_values, num_context_views, output_layers=layers, return_dict=True, **kwargs)
        pose_encodings = self.camera_head(features.camera_tokens)
        extrinsics, intrinsics = estimated_cameras(pose_encodings[-1], image_size)
        layers = features.layer_patch_tokens
        if dense_views is not None:
            layers = [tokens[:, dense_views] for tokens in layers]
        depth, depth_confidence = self.depth_head(layers, image_size)
        points, points_confidence = self.point_head(layers, image_size)
        return VGGTForGeometryOutput(
            extrinsics=extrinsics,
            intrinsics=intrinsics,
            pose_encodings=pose_encodings,
            depth=depth.squeeze(-1),
            depth_confidence=depth_confidence,
            points=points,
            points_confidence=points_confidence,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )
