"""Teaches a vision transformer the categories of its patches, as the semantic teacher of small worlds needs."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from ...modeling_spa3r.vggt.modeling_vggt import normalize_images


class PatchClassifier(nn.Module):
    """
    A vision transformer with a head that predicts, for each patch, the shares of the categories in it and its mean
    color. The color keeps what categories alone would let the model forget.

    Args:
        backbone (`PreTrainedModel`):
            A vision transformer whose `last_hidden_state` ends with the patch tokens, or Qwen2.5-VL's, whose tokens
            are squares of patches.
        image_size (`tuple[int, int]`): Height and width in pixels that images are resized to.
        num_categories (`int`): Categories are numbered from 1; 0 is unknown.
    """

    def __init__(self, backbone: PreTrainedModel, image_size: tuple[int, int], num_categories: int):
        super().__init__()
        self.backbone, self.config = backbone, backbone.config
        self.image_size, self.num_categories = image_size, num_categories
        self.is_qwen = isinstance(backbone, Qwen2_5_VisionTransformerPretrainedModel)
        self.merge_size = self.config.spatial_merge_size if self.is_qwen else 1
        token_size = self.config.out_hidden_size if self.is_qwen else self.config.hidden_size
        self.norm = nn.LayerNorm(token_size)
        self.head = nn.Linear(token_size, self.merge_size**2 * (num_categories + 3))

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        return height // self.config.patch_size, width // self.config.patch_size

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`): RGB in [0, 1].

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Logits of shape `(num_images, rows, columns, num_categories)` and
            colors of shape `(num_images, rows, columns, 3)`, both float32.
        """
        tokens = self._encode_qwen(pixel_values) if self.is_qwen else self._encode(pixel_values)
        outputs = self.head(self.norm(tokens)).float()
        rows, columns = self.grid_size
        merge = self.merge_size
        outputs = outputs.unflatten(1, (rows // merge, columns // merge)).unflatten(-1, (merge, merge, -1))
        outputs = outputs.permute(0, 1, 3, 2, 4, 5).reshape(len(pixel_values), rows, columns, -1)
        return outputs[..., :-3], outputs[..., -3:]

    def _encode(self, pixel_values: Tensor) -> Tensor:
        rows, columns = self.grid_size
        return self.backbone(normalize_images(pixel_values)).last_hidden_state[:, -rows * columns :]

    def _encode_qwen(self, pixel_values: Tensor) -> Tensor:
        patches, grids = qwen_patches(pixel_values, self.config)
        tokens = self.backbone(patches, grid_thw=grids).pooler_output
        return tokens.unflatten(0, (len(pixel_values), -1))


def qwen_patches(pixel_values: Tensor, config) -> tuple[Tensor, Tensor]:
    """Arrange images as Qwen2.5-VL's image processor does: flat patches, the squares that it merges one by one.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`): RGB in [0, 1].
        config (`Qwen2_5_VLVisionConfig`): Sizes of patches and squares.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Patches of shape `(num_patches, channels * frames * patch_size**2)` and
        frames, rows and columns of each image, `(num_images, 3)`.
    """
    merge, size = config.spatial_merge_size, config.patch_size
    images = normalize_images(pixel_values, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    num_images, channels, height, width = images.shape
    rows, columns = height // size, width // size
    patches = images.reshape(num_images, channels, rows // merge, merge, size, columns // merge, merge, size)
    patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)  # image, square, patch in it, channel, pixel
    patches = patches.unsqueeze(6).expand(*(-1,) * 6, config.temporal_patch_size, -1, -1)
    grids = torch.tensor([[1, rows, columns]], device=images.device).expand(num_images, -1)
    return patches.reshape(num_images * rows * columns, -1), grids


@torch.no_grad()
def standardize_tokens(tower: Qwen2_5_VisionTransformerPretrainedModel, batches: Iterable[Tensor]):
    """Change the last layer of a vision tower so that each channel of its tokens has mean 0 and standard deviation 1.

    A small language model that starts from nothing does not learn to tell apart tokens that share a large mean.

    Args:
        tower (`Qwen2_5_VisionTransformerPretrainedModel`): Changed in place.
        batches (`Iterable[torch.FloatTensor]` of shape `(num_images, 3, height, width)`): Images that mean and
            deviation are taken over, RGB in [0, 1], of a size that the tower can see.

    Raises:
        ValueError: If there are no images.
    """
    count, total, squares = 0, 0, 0
    for images in batches:
        patches, grids = qwen_patches(images, tower.config)
        tokens = tower(patches, grid_thw=grids).pooler_output.double()
        count, total, squares = count + len(tokens), total + tokens.sum(0), squares + tokens.square().sum(0)
    if not count:
        raise ValueError("There are no images to standardize tokens by: give at least one batch.")
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    deviation = torch.where(deviation > 1e-6 * mean.abs(), deviation, 1)  # a constant channel becomes 0
    last = tower.merger.mlp[-1]
    last.weight.copy_(last.weight / deviation[:, None])
    last.bias.copy_((last.bias - mean) / deviation)


def category_shares(labels: Tensor, grid_size: tuple[int, int], num_categories: int) -> Tensor:
    """The share of each category among the known pixels of each patch.

    Args:
        labels (`torch.Tensor` of shape `(num_images, height, width)`): Categories from 1 on, 0 where unknown.
        grid_size (`tuple[int, int]`): Rows and columns of patches; sides of the image are multiples of them.
        num_categories (`int`): Number of categories.

    Returns:
        `torch.Tensor` of shape `(num_images, rows, columns, num_categories)`: 0 throughout where nothing is known.

    Raises:
        ValueError: If there is a category above `num_categories`.
    """
    if (highest := int(labels.max())) > num_categories:
        raise ValueError(
            f"A pixel has the category {highest}, but there are {num_categories}: render the rooms with this version "
            "of `spa3r rooms`."
        )
    rows, columns = grid_size
    patches = labels.long().unflatten(1, (rows, -1)).unflatten(3, (columns, -1))  # (images, rows, y, columns, x)
    patches = patches.permute(0, 1, 3, 2, 4).flatten(3)
    counts = torch.zeros(*patches.shape[:3], num_categories + 1, device=labels.device)
    counts = counts.scatter_add(3, patches, torch.ones_like(patches, dtype=counts.dtype))[..., 1:]
    return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def category_losses(classifier: PatchClassifier, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The losses `category` (cross-entropy with the shares) and `color` (L1), and the metric `accuracy`.

    Args:
        classifier (`PatchClassifier`): The model, possibly wrapped for several processes.
        pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`): RGB in [0, 1].
        labels (`torch.Tensor` of shape `(num_images, height, width)`): Categories from 1 on, 0 where unknown.
    """
    settings = getattr(classifier, "module", classifier)
    images = F.interpolate(pixel_values, settings.image_size, mode="bilinear", align_corners=False)
    labels = F.interpolate(labels[:, None].float(), settings.image_size, mode="nearest-exact").squeeze(1)
    shares = category_shares(labels, settings.grid_size, settings.num_categories)
    logits, colors = classifier(images)
    known = shares.sum(-1)
    category = -(shares * logits.log_softmax(-1)).sum(-1).sum() / known.sum().clamp(min=1)
    patches = F.adaptive_avg_pool2d(images, settings.grid_size).permute(0, 2, 3, 1)
    return {"category": category, "color": F.l1_loss(colors, patches)}
