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

from ..common.images import open_image, turn_upright
from ..common.view_pixels import center_crop, crop_start, make_view


class FrameSize(NamedTuple):
    """The sizes of a frame on its way from disk to the model, each `(height, width)`."""

    original: tuple[int, int]
    resized: tuple[int, int]
    cropped: tuple[int, int]


def load_frame(
    image: str | os.PathLike | Image.Image | np.ndarray, width: int = 518, patch_size: int = 14
) -> tuple[Tensor, FrameSize]:
    """Make a view of an image: RGB, resized to `width` (bilinear, antialiased), center-cropped to whole patches.

    Args:
        image (`str`, `os.PathLike`, `PIL.Image.Image` or `np.ndarray`):
            A file, an image, or RGB bytes of shape `(height, width, 3)`. Photos are turned upright.
        width (`int`, *optional*, defaults to 518): Width to resize to.
        patch_size (`int`, *optional*, defaults to 14): Both sides of the view are multiples of it.

    Returns:
        `tuple[torch.Tensor, FrameSize]`: Bytes of shape `(3, height, width)`, and the sizes for `fit_intrinsics` and
        `fit_depth`.
    """
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    if isinstance(image, Image.Image):
        image = np.array(turn_upright(image).convert("RGB"))
    pixels, resized, cropped = make_view(image, width, patch_size)
    return pixels, FrameSize(image.shape[:2], resized, cropped)


def fit_intrinsics(intrinsics: Tensor, size: FrameSize) -> Tensor:
    """Intrinsics of a view from those of its original image, both in pixels and of shape `(..., 3, 3)`."""
    scale_y, scale_x = (new / old for new, old in zip(size.resized, size.original, strict=True))
    top, left = crop_start(size.resized, size.cropped)
    view_from_original = intrinsics.new_tensor([[scale_x, 0, -left], [0, scale_y, -top], [0, 0, 1]])
    return view_from_original @ intrinsics


def fit_depth(depth: Tensor, size: FrameSize) -> Tensor:
    """Depth or categories of a view from a map `(height, width)` of its picture at any resolution (nearest pixel)."""
    resized = F.interpolate(depth[None, None], size.resized, mode="nearest-exact")[0, 0]
    return center_crop(resized, size.cropped)


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
