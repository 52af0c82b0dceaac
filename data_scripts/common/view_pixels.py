"""Make the pixels of Spa3R's views, for pre-training and for the image processor alike."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def pretrain_image_size(
    size: tuple[int, int], target_width: int = 518, patch_size: int = 14
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of a pre-training image: resized to `target_width`, then center-cropped to whole patches (official code).

    Args:
        size (`tuple[int, int]`): Width and height of the image.
        target_width (`int`, *optional*, defaults to 518): Width to resize to.
        patch_size (`int`, *optional*, defaults to 14): Both cropped sides are multiples of it.

    Returns:
        `tuple[tuple[int, int], tuple[int, int]]`: Height and width after resizing, and after cropping.
    """
    width, height = size
    resized = int(target_width / width * height), target_width
    cropped = tuple(side // patch_size * patch_size for side in resized)
    if 0 in cropped:
        raise ValueError(
            f"An image of {width} x {height} pixels becomes {resized[1]} x {resized[0]}, less than one patch of "
            f"{patch_size} pixels; use less elongated images or a larger `image_width`."
        )
    return resized, cropped


def make_view(image: np.ndarray, width: int, patch_size: int) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """Resize RGB bytes `(height, width, 3)` to a width (bilinear, antialiased), and center-crop them to whole patches.

    Returns:
        `tuple[torch.Tensor, tuple[int, int], tuple[int, int]]`: Bytes of shape `(3, height, width)`, and height and
        width after resizing and after cropping.
    """
    resized, cropped = pretrain_image_size(image.shape[1::-1], width, patch_size)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    # Pillow's filter and torch's differ in the last bit; the official code uses torch's.
    pixels = F.interpolate(pixels, resized, mode="bilinear", antialias=True)[0]
    return center_crop(pixels, cropped).contiguous(), resized, cropped


def crop_start(shape: Sequence[int], cropped: Sequence[int]) -> tuple[int, ...]:
    """The index at which a center crop begins, for each dimension."""
    return tuple((old - new) // 2 for old, new in zip(shape, cropped, strict=True))


def center_crop(tensor: Tensor, cropped: Sequence[int]) -> Tensor:
    """Crop the last dimensions around their center."""
    starts = crop_start(tensor.shape[-len(cropped) :], cropped)
    return tensor[(..., *(slice(start, start + side) for start, side in zip(starts, cropped, strict=True)))]
