"""Images of scenes, as the spatial encoder and as the vision tower of Qwen2.5-VL take them.

Every image is resized to one width (bicubic) and to whole patches in height; what is higher than wide is cropped to a
square. The spatial encoder sees this; the vision tower sees its top left part of whole 2 x 2 patches (official code).

Deviation from the official code: the EXIF orientation of a photo is applied.
"""

import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorKwargs,
    Qwen2VLImageProcessorPil,
)

__all__ = ["Spa3RImageProcessor"]

# Views of a scene that are smaller than the largest are framed in it, as VGGT's own loader does.
WHITE = 255


class Spa3RImageProcessorKwargs(Qwen2VLImageProcessorKwargs, total=False):
    r"""
    image_width (`int`, *optional*, defaults to 518):
        Width that images are resized to; a multiple of `patch_size`, and at least of one 2 x 2 patch.
    """

    image_width: int


class Spa3RImageProcessor(Qwen2VLImageProcessorPil):
    """Prepares the images of scenes.

    `images` are those of one scene, or a list of scenes, each a list: `PIL.Image.Image`, path, URL, base64 string, or
    array of bytes or of values in [0, 1]. The result holds, one after another:

    - `pixel_values` of shape `(num_patches, channels * temporal_patch_size * patch_size**2)` and `image_grid_thw` of
      shape `(num_images, 3)`: normalised patches for the vision tower, with frames, rows and columns of each image;
    - `pixel_values_geometry` of shape `(num_images, 3, height, width)`, RGB in [0, 1], and `geometry_sizes` of shape
      `(num_images, 2)`: images for the spatial encoder, each in the top left corner, with height and width in pixels.
      Views of a scene have one size: smaller ones are centered on white;
    - `num_views` of shape `(num_scenes,)`.

    Raises:
        ValueError: If an image cannot be read (says which and why), or there is none.
    """

    valid_kwargs = Spa3RImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_thw", "pixel_values_geometry", "geometry_sizes", "num_views"]
    image_width = 518
    # The images come in their final size.
    do_resize = False

    def fetch_images(self, image_url_or_urls):
        """Load what is named by path, URL or base64 string, in any nesting; a path keeps its alpha channel."""
        source = image_url_or_urls
        if isinstance(source, (list, tuple)):
            return [self.fetch_images(image) for image in source]
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        try:
            if isinstance(source, str) and os.path.isfile(source):
                with PIL.Image.open(source) as image:
                    return PIL.ImageOps.exif_transpose(image)
            if isinstance(source, str) and os.path.splitext(source)[1] and len(source) < 1000 and ":" not in source:
                raise FileNotFoundError("there is no such file")
            return super().fetch_images(source)
        # Decoders report broken files by any of these.
        except (OSError, ValueError, TypeError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
            name = source if isinstance(source, str) else type(source).__name__
            raise ValueError(f"The image `{str(name)[:200]}` cannot be read: {error}") from error
        except Exception as error:  # a failing download, by any of the HTTP library's own errors
            raise ValueError(f"The image `{str(source)[:200]}` cannot be fetched: {error}") from error

    def resized_size(self, height: int, width: int, image_width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels of an image after resizing, before what is higher than wide is cropped."""
        image_width, patch_size = image_width or self.image_width, self.patch_size
        return max(round(height * image_width / width / patch_size), 1) * patch_size, image_width

    def _preprocess_image_like_inputs(self, images, *args, **kwargs) -> BatchFeature:
        """The hook that the library gives for several kinds of output from the same images."""
        images = self.fetch_images(images)
        is_nested = isinstance(images, (list, tuple)) and any(isinstance(scene, (list, tuple)) for scene in images)
        scenes = images if is_nested else [images]
        return_tensors, image_width = kwargs.pop("return_tensors", None), kwargs["image_width"]
        patch_size, merged = kwargs["patch_size"], kwargs["patch_size"] * kwargs["merge_size"]
        if image_width % patch_size or image_width < merged:
            raise ValueError(
                f"`image_width` must be a multiple of the patch size {patch_size} and at least {merged}, got "
                f"{image_width}."
            )
        views = [self._load_views(scene, image_width, kwargs) for scene in scenes]
        if not any(views):
            raise ValueError("There is no image; give at least one, or text alone without `images`.")
        flat = [view for scene in views for view in scene]
        features = self._preprocess(
            [view[:, : view.shape[1] // merged * merged, : view.shape[2] // merged * merged] for view in flat],
            **kwargs,
            return_tensors=None,
        )
        padded = [view for scene in views for view in _frame_on_white(scene)]
        sizes = np.array([view.shape[1:] for view in padded])
        geometry = np.zeros((len(padded), 3, *sizes.max(axis=0)), dtype=np.float32)
        for canvas, view in zip(geometry, padded, strict=True):
            canvas[:, : view.shape[1], : view.shape[2]] = view
        features["pixel_values_geometry"] = geometry / np.float32(255)
        features["geometry_sizes"] = sizes
        features["num_views"] = np.array([len(scene) for scene in views])
        return BatchFeature(data=dict(features), tensor_type=return_tensors)

    def _load_views(self, images, image_width: int, kwargs: dict) -> list[np.ndarray]:
        """RGB bytes of shape `(3, height, width)` of each image of a scene."""
        if isinstance(images, (list, tuple)) and not images:
            return []
        prepare = {"do_convert_rgb": True, "input_data_format": kwargs.get("input_data_format")}
        views = []
        for image in self._prepare_image_like_inputs(images, **prepare):
            if image.dtype != np.uint8:
                if not (np.isfinite(image).all() and 0 <= image.min() and image.max() <= 1):
                    raise ValueError(
                        f"An array of type {image.dtype} must hold values in [0, 1], got {image.min():.4g} to "
                        f"{image.max():.4g}; give bytes for 0 to 255."
                    )
                image = (image * 255).round().astype(np.uint8)
            height, width = self.resized_size(*image.shape[1:], image_width)
            image = PilBackend.resize(self, image, SizeDict(height=height, width=width), kwargs["resample"])
            top = max((height - width) // 2, 0)
            view = image[:, top : top + min(height, width)]
            if view.shape[1] < kwargs["patch_size"] * kwargs["merge_size"]:
                raise ValueError(
                    f"An image {image.shape[2]} x {image.shape[1]} pixels after resizing is less than one 2 x 2 patch "
                    "high; crop it to a less elongated one."
                )
            views.append(view)
        return views


def _frame_on_white(views: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Center views of a scene on white, in the size of the highest and the widest."""
    if len({view.shape for view in views}) <= 1:
        return list(views)
    height, width = (max(sides) for sides in zip(*(view.shape[1:] for view in views), strict=True))
    framed = []
    for view in views:
        canvas = np.full((3, height, width), WHITE, dtype=np.uint8)
        top, left = (height - view.shape[1]) // 2, (width - view.shape[2]) // 2
        canvas[:, top : top + view.shape[1], left : left + view.shape[2]] = view
        framed.append(canvas)
    return framed
