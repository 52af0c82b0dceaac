"""What Spa3R needs of a geometry model: features of patches in a common frame, cameras, and optionally depth.

VGGT is the paper's, and its parts are called one by one, so that nothing is computed that a step does not use. Another
model offers `GeometryModel`: it is an ordinary model of transformers that is registered with the Auto classes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from ...configuration.configuration_vggt import VGGTConfig
from ..geometry import without_autocast
from ..library import ModelOutput
from ..vggt.modeling_vggt import VGGTModel, estimated_cameras

__all__ = ["GeometryModel", "GeometryOutput", "GeometryTeacher", "VGGTTeacher", "build_geometry"]


@dataclass
class GeometryOutput(ModelOutput):
    """
    patch_tokens (`torch.FloatTensor` of shape `(batch_size, num_views, num_patches, feature_size)`):
        Features of patches, row by row.
    extrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 4, 4)`, *optional*):
        World to camera (x right, y down, z forward). The world is the first view's frame, and the unit is that of the
        configuration.
    intrinsics (`torch.FloatTensor` of shape `(batch_size, num_views, 3, 3)`, *optional*):
        In pixels.
    depth (`torch.FloatTensor` of shape `(batch_size, num_views, rows, columns)`, *optional*):
        Depth at the top-left pixel of each patch, along the viewing axis and in the unit of `extrinsics`; 0 is
        unknown. Only the depth probe learns it.
    """

    patch_tokens: torch.FloatTensor | None = None
    extrinsics: torch.FloatTensor | None = None
    intrinsics: torch.FloatTensor | None = None
    depth: torch.FloatTensor | None = None


class GeometryModel(Protocol):
    """A geometry model that takes VGGT's place: what `AutoModel` makes of `Spa3RConfig.vggt_config`.

    Its configuration has four fields besides its own, see `Spa3RConfig.validate_architecture`:

    - `patch_size` (`int`): side of a patch in pixels;
    - `feature_size` (`int`): number of channels of a patch's features;
    - `has_asymmetric_pass` (`bool`): whether `num_context_views` keeps context apart in one pass (paper Eq. 5);
    - `unit` (`"own"` or `"meters"`): the unit of cameras and depth.
    """

    config: PreTrainedConfig

    def grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of the patch grid of images of shape `(..., height, width)`."""

    def __call__(
        self, pixel_values: Tensor, num_context_views: int | None = None, return_dict: bool = True
    ) -> GeometryOutput:
        """Observe views of shape `(batch_size, num_views, 3, height, width)`, RGB in [0, 1], context views first. With
        `num_context_views`, features of context views must not depend on the other views."""


def build_geometry(config: PreTrainedConfig) -> nn.Module:
    """The geometry model of a configuration, which never downloads: VGGT, or another `GeometryModel`."""
    # By its name: code that a checkpoint carries may have the class twice.
    return VGGTModel(config) if config.model_type == VGGTConfig.model_type else AutoModel.from_config(config)


class VGGTTeacher:
    """VGGT, its camera head and its depth head, which are modules of `Spa3RForPreTraining` under their own names."""

    def __init__(self, vggt: VGGTModel, camera_head: nn.Module, depth_head: nn.Module):
        self.vggt, self.camera_head, self.depth_head = vggt, camera_head, depth_head

    def observe(
        self, pixel_values: Tensor, num_context_views: int | None, with_cameras: bool, depth_from: int | None
    ) -> GeometryOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`): RGB in [0, 1].
            num_context_views (`int`, *optional*): Views that must not depend on the others (paper Eq. 5).
            with_cameras (`bool`): Whether to estimate cameras.
            depth_from (`int`, *optional*): First view whose depth to estimate; by default none.
        """
        config, image_size = self.vggt.config, tuple(pixel_values.shape[-2:])
        layers = () if depth_from is None else tuple(config.dense_layers)
        output = self.vggt(pixel_values, num_context_views=num_context_views, output_layers=layers, return_dict=True)
        extrinsics, intrinsics, depth = None, None, None
        if with_cameras:
            extrinsics, intrinsics = self._estimate_cameras(output.camera_tokens, image_size)
        if depth_from is not None:
            seen = [tokens[:, depth_from:] for tokens in output.layer_patch_tokens]
            depth = self.depth_head(seen, image_size, stride=config.patch_size)[0].squeeze(-1)
        return GeometryOutput(output.patch_tokens, extrinsics, intrinsics, depth)

    @without_autocast
    def _estimate_cameras(self, camera_tokens: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # In full precision even under autocast, as in VGGT's own code.
        pose_encoding = self.camera_head(camera_tokens)[-1].float()
        return estimated_cameras(pose_encoding, image_size)


class GeometryTeacher:
    """Another `GeometryModel`, whose cameras and depth come with its features."""

    def __init__(self, model: GeometryModel):
        self.model = model

    def observe(
        self, pixel_values: Tensor, num_context_views: int | None, with_cameras: bool, depth_from: int | None
    ) -> GeometryOutput:
        """See `VGGTTeacher.observe`.

        Raises:
            ValueError: If the patches do not fit the images, or the model returned no cameras.
        """
        config, (height, width) = self.model.config, pixel_values.shape[-2:]
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(
                f"`pixel_values` of {height} x {width} pixels do not fit the geometry model `{config.model_type}`, "
                f"whose patches have {config.patch_size} pixels; use an image processor with this `patch_size`."
            )
        output = self.model(pixel_values, num_context_views=num_context_views, return_dict=True)
        rows, columns = self.model.grid_size(pixel_values)
        if (count := output.patch_tokens.shape[2]) != rows * columns:
            raise ValueError(
                f"The geometry model `{config.model_type}` returned {count} patch tokens for a grid of {rows} x "
                f"{columns}; it must return one for each patch."
            )
        if with_cameras and output.extrinsics is None:
            raise ValueError(
                f"The geometry model `{config.model_type}` returned no cameras; give `extrinsics` and `intrinsics` "
                "with the views."
            )
        if depth_from is None:
            output.depth = None
        elif output.depth is None:
            shape = (*pixel_values.shape[:2], rows, columns)
            output.depth = pixel_values.new_zeros(shape)[:, depth_from:]  # unknown
        else:
            output.depth = output.depth[:, depth_from:]
        return output
