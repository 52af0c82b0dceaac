"""A small geometry model that is not VGGT: metric, with patches of 16 pixels, and without an asymmetric pass.

It stands for what a researcher would plug in: a configuration and a model, registered with the Auto classes.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from spa3r.modeling_spa3r.geometry import invert_rigid, quaternion_to_rotation
from spa3r.modeling_spa3r.spa3r.geometry_teacher import GeometryOutput


@strict
class NanoGeometryConfig(PreTrainedConfig):
    model_type = "nano_geometry"

    patch_size: int = 16
    feature_size: int = 24
    has_asymmetric_pass: bool = False
    unit: str = "meters"
    has_depth: bool = True
    has_cameras: bool = True


class NanoGeometry(PreTrainedModel):
    """One attention layer over all patches of all views, and linear heads."""

    config_class = NanoGeometryConfig
    main_input_name = "pixel_values"

    def __init__(self, config: NanoGeometryConfig):
        super().__init__(config)
        size = config.feature_size
        self.embedding = nn.Conv2d(3, size, config.patch_size, config.patch_size)
        self.attention = nn.MultiheadAttention(size, 4, batch_first=True)
        self.camera, self.depth = nn.Linear(size, 9), nn.Linear(size, 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        return tuple(side // self.config.patch_size for side in pixel_values.shape[-2:])

    def forward(
        self, pixel_values: Tensor, num_context_views: int | None = None, return_dict: bool = True
    ) -> GeometryOutput:
        assert num_context_views is None, "this model has no asymmetric pass"
        batch_size, num_views, _, height, width = pixel_values.shape
        patches = self.embedding(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2)
        patches = patches.unflatten(0, (batch_size, num_views)).flatten(1, 2)
        tokens = (patches + self.attention(patches, patches, patches)[0]).unflatten(1, (num_views, -1))
        output = GeometryOutput(patch_tokens=tokens)
        if self.config.has_cameras:
            output.extrinsics, output.intrinsics = self.cameras(tokens.mean(2), (height, width))
        if self.config.has_depth:
            output.depth = self.depth(tokens).squeeze(-1).exp().unflatten(2, self.grid_size(pixel_values))
        return output

    def cameras(self, views: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        encoding = self.camera(views)
        extrinsics = torch.eye(4).repeat(*views.shape[:2], 1, 1)
        extrinsics[..., :3, :3] = quaternion_to_rotation(encoding[..., :4] + torch.tensor([0.0, 0, 0, 1]))
        extrinsics[..., :3, 3] = 10 * encoding[..., 4:7]
        height, width = image_size
        intrinsics = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        return extrinsics @ invert_rigid(extrinsics[:, :1]), intrinsics.repeat(*views.shape[:2], 1, 1)


AutoConfig.register(NanoGeometryConfig.model_type, NanoGeometryConfig)
AutoModel.register(NanoGeometryConfig, NanoGeometry)
