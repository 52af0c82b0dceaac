"""What alignment runs and does not train: vision tower, spatial encoder and, for points without labels, VGGT."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...modeling_spa3r.spa3_vlm.input_checks import split_views
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMModel
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry, VGGTModel
from ..runs.grounding import SceneObjects


class EncodedScenes(NamedTuple):
    """
    image_tokens (`list[torch.Tensor]` of shape `(num_tokens, hidden_size)`):
        Image tokens of each scene before they are fused.
    latents (`list[torch.Tensor]` of shape `(num_latents, latent_size)`):
        Latents of each scene.
    points (`torch.Tensor` of shape `(sum(num_tokens), patches_per_token, 3)`):
        Points to predict, in the first view's frame; NaN where unknown.
    grids (`list[torch.LongTensor]` of shape `(num_images, 3)`):
        Frames, rows and columns of patches of each image of a scene; on the host.
    objects (`list[SceneObjects]`, *optional*):
        The objects of each scene, on the host, if they were read.
    """

    image_tokens: list[Tensor]
    latents: list[Tensor]
    points: Tensor
    grids: list[Tensor]
    objects: list[SceneObjects] | None


class FrozenEncoders:
    """Encodes batches of scenes, each of its networks once, without gradients.

    If the given VGGT is the one in the spatial encoder, it runs once for both. Without a spatial encoder, latents are
    empty.

    Args:
        model (`Spa3VLMModel`): The model. Its language model is not used.
        geometry (`VGGTForGeometry`, *optional*): Estimates the points, if the batches have none.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Type of image tokens and latents.
    """

    def __init__(
        self, model: Spa3VLMModel, geometry: VGGTForGeometry | None = None, dtype: torch.dtype = torch.float32
    ):
        self.dtype = dtype
        self.model = model.eval()
        self.has_latents = model.config.spatial_representation == "spa3r"
        encoder = model.spatial_encoder
        self.vggt: VGGTModel | None = encoder.vggt if self.has_latents and encoder is not None else encoder
        self.geometry, self.point_head, self.dense_layers = None, None, ()
        if geometry is not None:
            self.point_head, self.dense_layers = geometry.point_head.eval(), tuple(geometry.config.dense_layers)
            self.geometry = None if has_same_weights(geometry.vggt, self.vggt) else geometry.vggt.eval()

    def to(self, device: torch.device) -> "FrozenEncoders":
        """Move the networks that run to a device."""
        for network in (self.model.vlm.visual, self.model.spatial_encoder, self.geometry, self.point_head):
            if network is not None:
                network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> EncodedScenes:
        """Encode a batch of `collate_alignment`; points come back in float32."""
        features = self.model.encode_images(inputs["pixel_values"], inputs["image_grid_thw"])
        # Those of earlier layers (DeepStack) are not fused.
        tokens = features[:, : self.model.config.get_text_config().hidden_size].to(self.dtype)
        num_tokens = inputs["num_tokens"].tolist()
        scenes = split_views(inputs["pixel_values_geometry"], inputs["geometry_sizes"], inputs["num_views"])
        pixels = inputs["patch_pixels"].split(num_tokens)
        latents, points = [], []
        if self.vggt is None:
            scenes, latents = [], [tokens.new_empty(0, 0)] * len(num_tokens)
        for stacked in _stacks(scenes):
            stacked_latents, maps = self._encode_views(stacked)
            latents += stacked_latents.to(self.dtype).unbind()
            points += [] if maps is None else maps.unbind()
        if self.point_head is None:
            targets = inputs["points"]
        else:
            targets = torch.cat([each[pixel.unbind(-1)] for each, pixel in zip(points, pixels, strict=True)])
        grids, objects = read_grids(inputs), split_objects(inputs)
        return EncodedScenes(list(tokens.split(num_tokens)), latents, targets, grids, objects)

    def _encode_views(self, views: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents of shape `(batch_size, num_latents, latent_size)`, and VGGT's points of each pixel, if any."""
        shared = self.dense_layers if self.geometry is None else ()
        own = () if self.has_latents else (self.vggt.config.num_hidden_layers - 2,)
        # Not `self.vggt(...)`: as the spatial encoder itself, VGGT takes a list of scenes.
        output = VGGTModel.forward(self.vggt, views, output_layers=(*shared, *own))
        if self.has_latents:
            latents = self.model.spatial_encoder.encode(output.patch_tokens, self.vggt.grid_size(views))
        else:
            latents = output.layer_patch_tokens[-1].flatten(1, 2)
        if self.point_head is None:
            return latents, None
        layers = output.layer_patch_tokens[: len(shared)]
        if self.geometry is not None:
            layers = self.geometry(views, output_layers=self.dense_layers).layer_patch_tokens
        # Like VGGT's own code: heads in float32, because coordinates do not survive bfloat16.
        with torch.autocast(views.device.type, enabled=False):
            return latents, self.point_head(layers, tuple(views.shape[-2:]))[0]


def read_grids(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Frames, rows and columns of patches of each image of each scene of a batch, on the host."""
    return list(inputs["image_grid_thw"].cpu().split(inputs["num_views"].tolist()))


def split_objects(inputs: Mapping[str, Tensor]) -> list[SceneObjects] | None:
    """The objects of each scene of a batch, on the host; `None` if the batch has none."""
    if "num_objects" not in inputs:
        return None
    counts = inputs["num_objects"].tolist()
    fields = (inputs[name].cpu().split(counts) for name in SceneObjects._fields)
    return [SceneObjects(*scene) for scene in zip(*fields, strict=True)]


def _stacks(scenes: Sequence[Tensor]) -> list[Tensor]:
    """Stack scenes that all have one shape; leave those of different shapes alone."""
    if len({scene.shape for scene in scenes}) == 1:
        return [torch.stack(list(scenes))]
    return [scene[None] for scene in scenes]


def has_same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have the same weights, in the precision of the second."""
    weights, others = (dict(module.named_parameters()) for module in (first, second))
    return weights.keys() == others.keys() and all(
        weights[name].shape == other.shape and torch.equal(weights[name].to(other), other)
        for name, other in others.items()
    )
