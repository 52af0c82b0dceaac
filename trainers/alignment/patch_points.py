"""Where the patches of image tokens lie in an image, and which points in space they show."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...data_scripts.scenes.view_transforms import check_same_picture
from ...modeling_spa3r.geometry import invert_rigid
from ...modeling_spa3r.spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor


class PatchPositions(NamedTuple):
    """
    The centers of the patches behind the tokens of an image.

    in_view (`torch.Tensor` of shape `(num_tokens, patches_per_token, 2)`):
        In pixels (x, y) of the resized and cropped image.
    in_image (`torch.Tensor` of the same shape):
        In pixels (x, y) of the original image.
    view_size (`tuple[int, int]`):
        Height and width of the resized and cropped image.
    """

    in_view: Tensor
    in_image: Tensor
    view_size: tuple[int, int]


def patch_positions(image_processor: Spa3VLMImageProcessor, size: tuple[int, int]) -> PatchPositions:
    """Find the patches of an image that each token of the vision tower stands for.

    Args:
        image_processor (`Spa3VLMImageProcessor`): Prepares the image; its own docstring says how.
        size (`tuple[int, int]`): Height and width of the image in pixels.

    Raises:
        ValueError: If the image is too low for a token.
    """
    merge_size, token_side = image_processor.merge_size, image_processor.patch_size * image_processor.merge_size
    height, width = image_processor.resized_size(*size)
    # A portrait image is cropped to its middle square.
    cropped = min(height, width)
    top = max((height - width) // 2, 0)
    seen, (tower_height, tower_width) = image_processor.vision_sizes(cropped, width)
    rows, columns = tower_height // token_side, tower_width // token_side
    if rows == 0:
        raise ValueError(f"an image of {size[1]} x {size[0]} pixels is too low for a token of {token_side} pixels")
    y, x = torch.meshgrid(
        (torch.arange(rows * merge_size, dtype=torch.float64) + 0.5) * seen[0] / (rows * merge_size),
        (torch.arange(columns * merge_size, dtype=torch.float64) + 0.5) * seen[1] / (columns * merge_size),
        indexing="ij",
    )
    in_view = torch.stack([x, y], dim=-1)
    # A token stands for merge_size x merge_size neighbouring patches.
    in_view = in_view.unflatten(1, (columns, merge_size)).unflatten(0, (rows, merge_size))
    in_view = in_view.transpose(1, 2).reshape(rows * columns, merge_size**2, 2)
    scale = in_view.new_tensor([size[1] / width, size[0] / height])
    in_image = (in_view + in_view.new_tensor([0, top])) * scale
    return PatchPositions(in_view, in_image, (cropped, width))


def points_at(
    positions: Tensor, size: tuple[int, int], depth: Tensor, extrinsics: Tensor, intrinsics: Tensor
) -> Tensor:
    """Find the points in space that an image shows at some positions.

    A point is what the depth map's pixel around the position measures, on the ray through that pixel's center.

    Args:
        positions (`torch.Tensor` of shape `(..., 2)`): Pixels (x, y) of the image.
        size (`tuple[int, int]`): Height and width of the image.
        depth (`torch.Tensor` of shape `(rows, columns)`): Of the same picture at any resolution; 0 means unknown.
        extrinsics (`torch.Tensor` of shape `(4, 4)`): World to camera.
        intrinsics (`torch.Tensor` of shape `(3, 3)`): In pixels of the image.

    Returns:
        `torch.Tensor` of shape `(..., 3)`: World coordinates in the unit of the depth; NaN where it is unknown.

    Raises:
        ValueError: If the depth map has another aspect ratio than the image.
    """
    check_same_picture(depth.shape, size)
    scale = positions.new_tensor([size[1] / depth.shape[1], size[0] / depth.shape[0]])
    pixels = (positions / scale).long()
    z = depth[pixels[..., 1], pixels[..., 0]].to(positions.dtype)[..., None]
    centers = (pixels + 0.5) * scale
    rays = torch.cat([centers, torch.ones_like(z)], dim=-1) @ intrinsics.to(positions.dtype).inverse().T
    world_from_camera = invert_rigid(extrinsics.to(positions.dtype))
    points = (rays * z) @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    return torch.where(z > 0, points, torch.nan)
