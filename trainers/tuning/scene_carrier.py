"""A processor for trainers that pass on `pixel_values` and no other input of a scene, such as TRL's GRPO and RLOO.

    processor = SceneCarrier.of(processor, model)
    trainer = GRPOTrainer(model, processing_class=processor, ...)

Each scene is encoded once, and its latents stand beside the patches of its images; see `attach_latents`. So every
forward of such a trainer sees the scene: of rollouts, of the loss and of the reference. Where `spa3r encode-scenes`
has kept features of the vision tower, too, they replace the patches (`carry_features`), and no image is opened.
"""

import copy
import hashlib

import PIL.Image
import torch
from torch import Tensor
from transformers import BatchFeature

from ...modeling_spa3r.spa3_vlm.input_checks import split_views
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ...modeling_spa3r.spa3_vlm.scene_in_pixels import attach_latents, carry_features
from .scene_cache import GEOMETRY, KeptImages, SceneLatents

# Key of the scene in `PIL.Image.Image.info`, by which its stored latents are found.
SCENE_KEY = "scene_key"
# 0.8 GB of the paper's latents in float32.
SCENES_IN_MEMORY = 1024


class SceneCarrier(Spa3VLMProcessor):
    """`Spa3VLMProcessor`, whose `pixel_values` carry the latents of the scenes; make it by `of`."""

    @classmethod
    def of(
        cls,
        processor: Spa3VLMProcessor,
        model: Spa3VLMForConditionalGeneration,
        stored: SceneLatents | None = None,
    ) -> "SceneCarrier":
        """
        Args:
            processor (`Spa3VLMProcessor`): The model's own; it is also what is saved.
            model (`Spa3VLMForConditionalGeneration`): Encodes the scenes; its spatial encoder must stay frozen.
            stored (`SceneLatents`, *optional*): Latents of `spa3r encode-scenes`, for images that name their scene.

        Raises:
            ValueError: If the number of latents of this model grows with the views.
        """
        if model.model.fusion is not None and model.config.spatial_representation == "vggt":
            raise ValueError(
                "`spatial_representation='vggt'` has another number of latents for each scene, which do not fit "
                "beside patches; train a model with `spa3r`."
            )
        parts = processor.image_processor, processor.tokenizer, processor.chat_template
        carrier = cls(*parts, processor.num_frames, processor.num_appended_tokens)
        carrier.plain, carrier.model, carrier.stored, carrier.known = processor, model, stored, {}
        return carrier

    def to_dict(self) -> dict:
        """The settings of the plain processor."""
        return self.plain.to_dict()

    def save_pretrained(self, *args, **kwargs):
        """Save the plain processor."""
        return self.plain.save_pretrained(*args, **kwargs)

    def __call__(self, images=None, text=None, videos=None, audio=None, **kwargs) -> BatchFeature:
        """See `Spa3VLMProcessor.__call__`; the scene is in `pixel_values` instead of inputs of its own."""
        if isinstance(images, (list, tuple)):
            images = [[] if row is None else row for row in images]  # as TRL gives rows without images
        if self.stored is not None and self.stored.has_vision:
            keys = _keys(images, len([row for row in images or () if row]))
            if None not in keys:
                return self._from_stored(keys, images, text, **kwargs)
        outputs = super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        if "pixel_values" not in outputs:
            return outputs
        pixels, sizes, num_views = (torch.as_tensor(outputs.pop(name)) for name in (*GEOMETRY, "num_views"))
        if self.model.model.fusion is not None:
            scenes = split_views(pixels, sizes, num_views)
            latents = [self._latents(*scene) for scene in zip(scenes, _keys(images, len(scenes)), strict=True)]
            patches, grids = (torch.as_tensor(outputs[name]) for name in ("pixel_values", "image_grid_thw"))
            outputs["pixel_values"] = attach_latents(patches, grids, num_views, latents)
        return outputs

    def _from_stored(self, keys: list[str], images, text, **kwargs) -> BatchFeature:
        """What `__call__` returns, for images that `stand_ins` made."""
        processor = copy.copy(self.plain)
        processor.image_processor = KeptImages(**self.plain.image_processor.to_dict())
        outputs = processor(images=images, text=text, **kwargs)
        if "num_views" not in outputs:
            return outputs
        num_views, grids = torch.as_tensor(outputs.pop("num_views")), torch.as_tensor(outputs["image_grid_thw"])
        latents = [self.stored[key] for key in keys] if self.stored.has_latents else []
        features = [self.stored.vision_features(key) for key in keys]
        outputs["pixel_values"] = carry_features(features, grids, num_views, latents)
        return outputs

    def _latents(self, views: Tensor, key: str | None) -> Tensor:
        """Latents of a scene, of shape `(num_latents, latent_size)`: stored ones, known ones, or new ones."""
        if self.stored is not None and key is not None:
            return self.stored[key]
        digest = hashlib.sha256(str(tuple(views.shape)).encode() + views.contiguous().numpy().tobytes()).digest()
        if digest not in self.known:
            if len(self.known) >= SCENES_IN_MEMORY:
                self.known.pop(next(iter(self.known)))
            sizes = torch.tensor([views.shape[-2:]] * len(views))
            pixels = views.permute(0, 2, 3, 1).reshape(-1, 3)
            (latents,) = self.model.encode_scene(pixels.to(self.model.device), sizes)
            self.known[digest] = latents.cpu()
        return self.known[digest]


def stand_ins(stored: SceneLatents, key: str) -> list[PIL.Image.Image]:
    """Images in place of those of a scene whose features are stored, with one pixel for each patch."""
    return [PIL.Image.new("L", (columns, rows)) for _, rows, columns in stored.image_grids(key)]


def _keys(images, number: int) -> list[str | None]:
    """The keys of scenes whose images name them."""
    rows = [row for row in images or () if row] if isinstance(images, (list, tuple)) else []
    keys = [getattr(row[0], "info", {}).get(SCENE_KEY) for row in rows if isinstance(row, (list, tuple))]
    return keys if len(keys) == number else [None] * number
