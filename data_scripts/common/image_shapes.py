"""Tell panoramas from other images by their shapes."""

from collections.abc import Mapping, Sequence

# Sides of an image. Wide videos have 2.4; a panorama has more, and is not to decide how others are cropped.
MAX_ASPECT_RATIO = 2.5


def is_elongated(size: Sequence[int]) -> bool:
    """Whether an image, given by its two sides, is a panorama or the like."""
    return max(size) > MAX_ASPECT_RATIO * min(size)


def require_similar_shapes(sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a panorama among other images, which would be cropped to its shape or be little beside white margins.

    Args:
        sizes (`Mapping[str, tuple[int, int]]`): Height and width of each image, by its name.

    Raises:
        ValueError: If some images are panoramas and some are not; the message names the first panorama.
    """
    panoramas = [name for name, size in sizes.items() if is_elongated(size)]
    if 0 < len(panoramas) < len(sizes):
        height, width = sizes[panoramas[0]]
        raise ValueError(
            f"{panoramas[0]} has {width} x {height} pixels, a panorama among other images; crop it or leave it out."
        )
