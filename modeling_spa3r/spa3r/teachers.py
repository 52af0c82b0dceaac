"""The frozen teachers of Spa3R: vision models whose patch features it predicts, and how teachers get their weights."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ...configuration.configuration_spa3r import Spa3RTeacherConfig
from ..vggt.modeling_vggt import normalize_images

__all__ = ["Spa3RTeacher", "build_untrained", "check_same_architecture", "load_pretrained"]

logger = logging.get_logger(__name__)


class Spa3RTeacher(nn.Module):
    """A frozen vision model whose patch features are resampled to VGGT's patch grid."""

    def __init__(self, config: Spa3RTeacherConfig, attn_implementation: str | None = None):
        super().__init__()
        self.config = config
        self.model = AutoModel.from_config(config.vision_config, attn_implementation=attn_implementation)

    @property
    def feature_size(self) -> int:
        """Number of channels of the features."""
        return self.config.vision_config.hidden_size

    def preprocess(self, pixel_values: Tensor) -> Tensor:
        """Resize images in [0, 1] to the teacher's square, which changes their aspect ratio, and normalise them."""
        size = (self.config.image_size, self.config.image_size)
        resized = F.interpolate(pixel_values.float(), size, mode="bilinear", align_corners=False)
        return normalize_images(resized, self.config.image_mean, self.config.image_std).to(self.model.dtype)

    def forward(self, pixel_values: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_views, 3, height, width)`): RGB in [0, 1].
            grid_size (`tuple[int, int]`): Rows and columns of the grid to resample the features to.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_views, rows * columns, feature_size)`.
        """
        batch_size, num_views = pixel_values.shape[:2]
        tokens = self.model(self.preprocess(pixel_values.flatten(0, 1)), return_dict=True).last_hidden_state
        side = self.config.image_size // self.config.vision_config.patch_size
        features = tokens[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        features = F.interpolate(features.float(), grid_size, mode="bilinear", align_corners=False)
        return features.flatten(2).transpose(1, 2).unflatten(0, (batch_size, num_views))


def build_untrained(build: Callable[[], nn.Module], name: str, seed: int) -> nn.Module:
    """Build a module whose weights depend on the seed alone, and warn that they are untrained."""
    logger.warning(f"No checkpoint is configured for {name}: its weights are untrained, drawn from seed {seed}.")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return build()


def load_pretrained(model_class, checkpoint: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Load a teacher, and refuse a checkpoint that lacks weights, which the library would draw at random."""
    teacher, info = model_class.from_pretrained(checkpoint, config=config, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"`{checkpoint}` lacks {len(missing)} tensors of `{type(teacher).__name__}`, for example `{missing[0]}`; "
            "convert official weights with `spa3r convert`."
        )
    return teacher


def check_same_architecture(name: str, given: nn.Module, expected: nn.Module):
    # DeepSpeed ZeRO-3 keeps the shape of a partitioned parameter in `ds_shape`.
    given_shapes, shapes = (
        {k: tuple(getattr(p, "ds_shape", p.shape)) for k, p in m.named_parameters()} for m in (given, expected)
    )
    if given_shapes != shapes:
        different = sorted(k for k in given_shapes | shapes if given_shapes.get(k) != shapes.get(k))
        raise ValueError(
            f"`{name}` must have the architecture of the configuration, but {len(different)} parameters differ, for "
            f"example `{different[0]}`; give weights of that architecture or change the configuration."
        )
