"""Turn images into views: pixels, with intrinsics and depth that follow them.

Pixel coordinates run along pixel edges: pixel `i` spans `[i, i + 1]`, and its center is at `i + 0.5`. So resizing
scales the principal point and cropping shifts it, with no half-pixel terms.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..common.images import open_image, to_rgb, turn_upright
from ..common.view_pixels import center_crop, crop_start, make_view

# Maps of lower resolution are rounded to whole pixels: ScanNet's are 640 x 480 for images of 1296 x 968.
ASPECT_TOLERANCE = 0.03


class FrameSize(NamedTuple):
    """The sizes of a frame on its way from disk to the model, each `(height, width)`."""

    original: tuple[int, int]
    resized: tuple[int, int]
    cropped: tuple[int, int]


def load_frame(
    image: str | os.PathLike | Image.Image | np.ndarray, width: int = 518, patch_size: int = 14, upright: bool = True
) -> tuple[Tensor, FrameSize]:
    """Make a view of an image: RGB, resized to `width` (bilinear, antialiased), center-cropped to whole patches.

    Args:
        image (`str`, `os.PathLike`, `PIL.Image.Image` or `np.ndarray`):
            A file, an image, or RGB bytes of shape `(height, width, 3)`.
        width (`int`, *optional*, defaults to 518): Width to resize to.
        patch_size (`int`, *optional*, defaults to 14): Both sides of the view are multiples of it.
        upright (`bool`, *optional*, defaults to `True`):
            Whether to turn photos upright. Cameras and depth describe the stored pixels: with them, leave photos as
            they are.

    Raises:
        ValueError: If the image cannot be read or used, or is too elongated.

    Returns:
        `tuple[torch.Tensor, FrameSize]`: Bytes of shape `(3, height, width)`, and the sizes for `fit_intrinsics` and
        `fit_depth`.
    """
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    if isinstance(image, Image.Image):
        image = np.array(to_rgb(turn_upright(image) if upright else image))
    pixels, resized, cropped = make_view(image, width, patch_size)
    return pixels, FrameSize(image.shape[:2], resized, cropped)


def fit_intrinsics(intrinsics: Tensor, size: FrameSize) -> Tensor:
    """Intrinsics of a view from those of its original image, both in pixels and of shape `(..., 3, 3)`."""
    scale_y, scale_x = (new / old for new, old in zip(size.resized, size.original, strict=True))
    top, left = crop_start(size.resized, size.cropped)
    view_from_original = intrinsics.new_tensor([[scale_x, 0, -left], [0, scale_y, -top], [0, 0, 1]])
    return view_from_original @ intrinsics


def fit_depth(depth: Tensor, size: FrameSize) -> Tensor:
    """Depth or categories of a view from a map `(height, width)` of its picture at any resolution (nearest pixel).

    Raises:
        ValueError: If the map has another aspect ratio than the picture.
    """
    check_same_picture(depth.shape, size.original)
    resized = F.interpolate(depth[None, None], size.resized, mode="nearest-exact")[0, 0]
    return center_crop(resized, size.cropped)


def check_same_picture(map_size: Sequence[int], image_size: Sequence[int]):
    """Refuse a map of depth or categories that has another aspect ratio than its image; sizes are (height, width)."""
    (map_height, map_width), (height, width) = map_size, image_size
    if abs(map_width * height - width * map_height) > ASPECT_TOLERANCE * width * map_height:
        raise ValueError(
            f"its depth or categories are {map_width} x {map_height}, another aspect ratio than the image's "
            f"{width} x {height}; write them for the same picture"
        )


def crop_to_common(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack tensors after center-cropping each dimension to the smallest in the list.

    Args:
        tensors (`Sequence[torch.Tensor]`): Tensors with the same number of dimensions.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The stack, and the index at which each tensor's crop begins, of shape
        `(num_tensors, num_dimensions)`. Subtract it from pixel coordinates.
    """
    common = tuple(min(sides) for sides in zip(*(tensor.shape for tensor in tensors), strict=True))
    starts = torch.tensor([crop_start(tensor.shape, common) for tensor in tensors])
    return torch.stack([center_crop(tensor, common) for tensor in tensors]), starts
