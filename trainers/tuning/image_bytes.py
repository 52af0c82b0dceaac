"""Images travel from the loader's workers to the device as bytes, and get the processor's numbers there.

A photo has 256 levels of each colour. So a table of these levels, made by the processor itself, gives the same bits as
the processor, on any device. The bytes take a sixth of the memory: the numbers have four bytes each, and the vision
tower gets each of them twice.
"""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from trl import SFTTrainer

from ...modeling_spa3r.spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor

LEVELS = 256


class ByteImageProcessor(Spa3VLMImageProcessor):
    """An image processor that leaves pixels as bytes, for `pixels_from_bytes`.

    `pixel_values` has shape `(num_patches, channels * patch_size**2)`, and `pixel_values_geometry` that of the parent;
    both are `uint8`.
    """

    def preprocess(self, images, *args, **kwargs) -> BatchFeature:
        """See `Spa3VLMImageProcessor`."""
        kwargs |= {"do_rescale": False, "do_normalize": False, "temporal_patch_size": 1}
        features = super().preprocess(images, *args, **kwargs)
        patches = features["pixel_values"]
        features["pixel_values"] = (
            patches.to(torch.uint8) if isinstance(patches, Tensor) else np.asarray(patches, np.uint8)
        )
        return features

    def geometry_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """See `Spa3VLMImageProcessor`."""
        return pixels


def with_image_bytes(processor: Spa3VLMProcessor) -> Spa3VLMProcessor:
    """The processor, with a `ByteImageProcessor` of the same settings."""
    processor = copy.copy(processor)
    processor.image_processor = ByteImageProcessor(**processor.image_processor.to_dict())
    return processor


def level_tables(processor: Spa3VLMImageProcessor) -> dict[str, Tensor]:
    """What the processor makes of each byte, by input of the model.

    Returns:
        `dict[str, torch.Tensor]`: Of shape `(channels, 256)` for patches, of shape `(1, 256)` for the spatial encoder.
    """
    levels = np.arange(LEVELS, dtype=np.uint8)
    patches = np.broadcast_to(levels[:, None], (3, LEVELS, 1))
    if processor.do_rescale:
        patches = processor.rescale(patches, processor.rescale_factor)
    if processor.do_normalize:
        patches = processor.normalize(patches, processor.image_mean, processor.image_std)
    patches = np.ascontiguousarray(patches[..., 0], dtype=np.float32)
    geometry = processor.geometry_pixels(levels)[None]
    return {"pixel_values": torch.from_numpy(patches), "pixel_values_geometry": torch.from_numpy(geometry)}


def pixels_from_bytes(pixels: Tensor, table: Tensor, repeats: int = 1) -> Tensor:
    """Look levels up.

    Args:
        pixels (`torch.ByteTensor` of shape `(num_rows, num_columns)`): Channels one after another in each row.
        table (`torch.Tensor` of shape `(channels, 256)`): On the same device; see `level_tables`.
        repeats (`int`, *optional*, defaults to 1): How often each channel stands in a row of the result.

    Returns:
        `torch.Tensor` of shape `(num_rows, num_columns * repeats)`.
    """
    by_channel = pixels.unflatten(1, (len(table), -1))
    offsets = LEVELS * torch.arange(len(table), dtype=torch.int32, device=pixels.device)
    places = by_channel.int() + offsets[:, None]
    found = table.flatten().index_select(0, places.flatten()).view_as(by_channel)
    return found[:, :, None].expand(-1, -1, repeats, -1).flatten(1)


class LevelTables:
    """Makes numbers of the images of a batch on its device; see `with_image_bytes`.

    Args:
        processor (`Spa3VLMImageProcessor`): The one whose pixels the model gets.
        device (`torch.device`): That of the batches.
    """

    def __init__(self, processor: Spa3VLMImageProcessor, device: torch.device):
        self.tables = {name: table.to(device) for name, table in level_tables(processor).items()}
        self.repeats = {"pixel_values": processor.temporal_patch_size, "pixel_values_geometry": 1}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs that are bytes, as numbers; no others."""
        return {
            name: pixels_from_bytes(inputs[name], table, self.repeats[name])
            for name, table in self.tables.items()
            if name in inputs and inputs[name].dtype is torch.uint8
        }


class ImageBytesTrainer(SFTTrainer):
    """TRL's SFTTrainer for batches whose images are bytes; see `with_image_bytes`.

    Its `processing_class` is the processor whose pixels the model gets.
    """

    @cached_property
    def _tables(self) -> LevelTables:
        return LevelTables(self.processing_class.image_processor, self.args.device)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """See `Trainer`; this is where it moves a batch to the device."""
        inputs = super()._prepare_inputs(inputs)
        # Once more, because DeepSpeed has its own type for numbers.
        return inputs | self._prepare_input(self._tables(inputs))
