"""Prepares photos as views for Spa3R, as pre-training does.

Every photo is resized to one width (bilinear, antialiased), then cropped around its centre to whole patches (official
code). Views of different sizes are cropped around their centres to the smallest height and width.

Deviation from the official code: the EXIF orientation of a photo is applied.
"""

from functools import partial

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import BatchFeature, ImagesKwargs, PilBackend

from ...data_scripts.common.image_shapes import require_similar_shapes
from ...data_scripts.common.view_pixels import center_crop, make_view
from ..scene_images import SceneImageReader

__all__ = ["Spa3RImageProcessor"]


class Spa3RImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    image_width (`int`, *optional*, defaults to 518):
        Width in pixels that photos are resized to before they are cropped; at least `patch_size`.
    patch_size (`int`, *optional*, defaults to 14):
        Side of a patch in pixels; both sides of a view are multiples of it.
    """

    image_width: int
    patch_size: int


class Spa3RImageProcessor(SceneImageReader, PilBackend):
    """Prepares photos as views for `Spa3RModel` and `Spa3RForPreTraining`.

    `images` is one photo, the list of photos of one scene, or a list of such lists, all of one length. A photo is a
    `PIL.Image.Image`, a path, a URL, a base64 string, or an array of bytes or of floats in [0, 1], channels first or
    last; an array may hold several. Transparent parts become white. The output holds `pixel_values` of shape
    `(num_scenes, num_views, 3, height, width)`, RGB in [0, 1], sides multiples of `patch_size`.

    Raises:
        ValueError: If there is no photo, scenes have different numbers of photos, or a photo cannot be read, is too
            elongated, or is a panorama among other photos; the message names the photo.

    Example:

    ```python
    >>> from transformers import AutoImageProcessor
    >>> import spa3r  # registers the Auto classes

    >>> processor = AutoImageProcessor.from_pretrained("runs/quickstart/model")
    >>> views = processor(["kitchen-1.jpg", "kitchen-2.jpg"], return_tensors="pt")
    ```
    """

    valid_kwargs = Spa3RImageProcessorKwargs
    model_input_names = ["pixel_values"]
    image_width = 518
    patch_size = 14

    def _standardize_kwargs(self, image_width: int | None = None, patch_size: int | None = None, **kwargs) -> dict:
        """Check the options of the constructor or of a call."""
        if not 0 < patch_size <= image_width:
            raise ValueError(
                f"`image_width` must be at least `patch_size`, and that positive, got {image_width} and {patch_size}."
            )
        return super()._standardize_kwargs(**kwargs) | {"image_width": image_width, "patch_size": patch_size}

    def _preprocess_image_like_inputs(self, images, *args, **kwargs) -> BatchFeature:
        """Prepare the views; transformers calls this hook of `preprocess`."""
        make_view = partial(_make_view, image_width=kwargs["image_width"], patch_size=kwargs["patch_size"])
        scenes = self.map_scenes(images, make_view, kwargs.get("input_data_format"))
        counts = [len(scene) for scene in scenes]
        if len(set(counts)) > 1:
            raise ValueError(
                f"`images` must hold scenes of equally many photos, got {counts}; prepare these scenes one by one."
            )
        views = [view for scene in scenes for view in scene]
        names = [f"Image {index} of scene {row}" for row, scene in enumerate(scenes) for index in range(len(scene))]
        require_similar_shapes(dict(zip(names, (tuple(view.shape[1:]) for view in views), strict=True)))
        size = min(view.shape[1] for view in views), min(view.shape[2] for view in views)
        pixels = torch.stack([center_crop(view, size) for view in views]).unflatten(0, (len(scenes), -1))
        data = {"pixel_values": (pixels.float() / 255).numpy()}
        return BatchFeature(data=data, tensor_type=kwargs.get("return_tensors"))


def _make_view(image: PIL.Image.Image, name: str, image_width: int, patch_size: int) -> Tensor:
    """Resize and crop an RGB image; returns bytes of shape `(3, height, width)`."""
    try:
        return make_view(np.array(image), image_width, patch_size)[0]
    except ValueError as error:
        raise ValueError(f"{name} cannot become a view: {error}") from error
