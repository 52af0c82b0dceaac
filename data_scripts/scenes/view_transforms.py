"""Which frames of a scene are drawn, and how an image becomes a view: pure functions.

Pixel coordinates run along pixel edges: pixel `i` spans `[i, i + 1]`, its center is at `i + 0.5`. Resizing therefore
scales the principal point, and cropping shifts it, with no half-pixel terms.
"""

import os
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..common.images import UnreadableFrame, open_image, turn_upright

MILLIMETERS_PER_METER = 1000


class FrameSize(NamedTuple):
    """Sizes of a frame, each `(height, width)`, on its way from disk to the model."""

    original: tuple[int, int]
    resized: tuple[int, int]
    cropped: tuple[int, int]


def sample_frames(num_images: int, num_frames: int, interval: int | Sequence[int], rng: random.Random) -> list[int]:
    """Draw frames of a scene: a walk of random steps where the scene is long enough, else a sorted random choice.

    Draws the frames that the official code draws from the same generator state, without narrowing the caller's
    `interval` in place as that code does, and for a single frame too.

    Args:
        num_images (`int`): Frames of the scene.
        num_frames (`int`): Frames to draw. They repeat only where the scene has fewer.
        interval (`int` or `Sequence[int]`): Least and greatest step from a frame to the next; one number for both.
        rng (`random.Random`): Source of the draws.

    Returns:
        `list[int]`: Indices in ascending order.
    """
    low, high = (interval, interval) if isinstance(interval, int) else interval
    if num_images < 1 or num_frames < 1 or not 1 <= low <= high:
        raise ValueError(
            "Frames are drawn from at least 1 image, at least 1 at a time, at an `interval` of [low, high] with "
            f"1 <= low <= high; got num_images={num_images}, num_frames={num_frames}, interval={interval}."
        )
    steps = num_frames - 1
    if num_images > steps * low:
        if steps:
            high = min((num_images - 1) // steps, high)
        frames = [rng.randint(0, num_images - steps * high - 1)]
        for _ in range(steps):
            frames.append(frames[-1] + rng.randint(low, high))
        return frames
    if num_images < num_frames:
        return sorted(rng.choices(range(num_images), k=num_frames))
    return sorted(rng.sample(range(num_images), num_frames))


def pretrain_image_size(
    size: tuple[int, int], target_width: int = 518, patch_size: int = 14
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of a pre-training image: resized to `target_width`, then center-cropped to whole patches.

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
            f"{patch_size} pixels; use less elongated images or a greater image width."
        )
    return resized, cropped


def load_frame(
    image: str | os.PathLike | Image.Image | np.ndarray, width: int = 518, patch_size: int = 14
) -> tuple[Tensor, FrameSize]:
    """Make a view of an image: RGB, resized to `width` (bilinear, antialiased), center-cropped to whole patches.

    Args:
        image (`str`, `os.PathLike`, `PIL.Image.Image` or `np.ndarray`):
            A file, an image, or RGB bytes of shape `(height, width, 3)`. A photo's EXIF orientation is applied.
        width (`int`, *optional*, defaults to 518): Width to resize to.
        patch_size (`int`, *optional*, defaults to 14): Both sides of the view are multiples of it.

    Returns:
        `tuple[torch.Tensor, FrameSize]`: Bytes of shape `(3, height, width)`, and the sizes that `fit_intrinsics` and
        `fit_depth` need to follow.
    """
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    if isinstance(image, Image.Image):
        image = np.array(turn_upright(image).convert("RGB"))
    height, original_width = image.shape[:2]
    size = FrameSize((height, original_width), *pretrain_image_size((original_width, height), width, patch_size))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, size.resized, mode="bilinear", antialias=True)[0]
    return _center_crop(pixels, size.cropped).contiguous(), size


def fit_intrinsics(intrinsics: Tensor, size: FrameSize) -> Tensor:
    """Intrinsics of a view from those of its original image, both in pixels and of shape `(..., 3, 3)`."""
    scale_y, scale_x = (new / old for new, old in zip(size.resized, size.original, strict=True))
    top, left = _crop_start(size.resized, size.cropped)
    view_from_original = intrinsics.new_tensor([[scale_x, 0, -left], [0, scale_y, -top], [0, 0, 1]])
    return view_from_original @ intrinsics


def fit_depth(depth: Tensor, size: FrameSize) -> Tensor:
    """Depth of a view from a depth map `(height, width)` of the same picture at any resolution (nearest pixel)."""
    resized = F.interpolate(depth[None, None], size.resized, mode="nearest-exact")[0, 0]
    return _center_crop(resized, size.cropped)


def load_depth(path: str | os.PathLike) -> Tensor:
    """Depth in meters, float32 of shape `(height, width)`, from a 16-bit PNG in millimeters; 0 means unknown."""
    depth = np.array(open_image(path))
    if depth.ndim != 2:
        raise UnreadableFrame(f"{path}: a depth map has one channel, got shape {depth.shape}")
    return torch.from_numpy(depth.astype(np.float32)) / MILLIMETERS_PER_METER


def crop_to_common(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack tensors after center-cropping each dimension to the smallest of the batch.

    Args:
        tensors (`Sequence[torch.Tensor]`): Tensors with the same number of dimensions.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The stack, and where each tensor's crop begins, of shape
        `(num_tensors, num_dimensions)`: what to subtract from pixel coordinates.
    """
    common = tuple(min(sides) for sides in zip(*(tensor.shape for tensor in tensors), strict=True))
    starts = torch.tensor([_crop_start(tensor.shape, common) for tensor in tensors])
    return torch.stack([_center_crop(tensor, common) for tensor in tensors]), starts


def _crop_start(shape: Sequence[int], cropped: Sequence[int]) -> tuple[int, ...]:
    return tuple((old - new) // 2 for old, new in zip(shape, cropped, strict=True))


def _center_crop(tensor: Tensor, cropped: Sequence[int]) -> Tensor:
    """Crop the last dimensions."""
    starts = _crop_start(tensor.shape[-len(cropped) :], cropped)
    return tensor[(..., *(slice(start, start + side) for start, side in zip(starts, cropped, strict=True)))]
