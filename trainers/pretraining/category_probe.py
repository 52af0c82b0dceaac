"""Reads the categories of patches out of features, to see whether predicted features tell what stands where."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data_scripts.rooms.labels import LABELS, STRUCTURE

RIDGE = 1e-3


class CategoryProbe:
    """
    A linear reader of categories: ridge regression on true features, of which only sums are kept.

    It is fitted once and reads all sources of features alike, so a better reading means better features.
    """

    def __init__(self):
        self.gram: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, features: Tensor, categories: Tensor):
        """Add examples.

        Args:
            features (`torch.Tensor` of shape `(..., channels)`): True features of patches.
            categories (`torch.LongTensor` of shape `(...)`): Their categories, see `LABELS`; 0 is left out.
        """
        known = categories > 0
        inputs = _with_one(features[known]).double()
        answers = F.one_hot(categories[known] - 1, len(LABELS)).double()
        gram, products = inputs.T @ inputs, inputs.T @ answers
        self.gram = gram if self.gram is None else self.gram + gram
        self.products = products if self.products is None else self.products + products

    def read(self, features: Tensor) -> Tensor:
        """The most likely category of each patch, of shape `(...)`, for features of shape `(..., channels)`."""
        scale = self.gram.diagonal().mean()
        ridge = RIDGE * scale * torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        weights = torch.linalg.solve(self.gram + ridge, self.products)
        return (_with_one(features).double() @ weights).argmax(-1) + 1


def _with_one(features: Tensor) -> Tensor:
    return F.pad(features, (0, 1), value=1.0)


def patch_categories(labels: Tensor, patch_size: int) -> Tensor:
    """The most frequent category of each patch.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, num_views, height, width)`): Category of each pixel, 0 unknown.
        patch_size (`int`): In pixels; the sides of the image are multiples of it.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_views, num_patches)`.
    """
    patches = labels.long().unflatten(2, (-1, patch_size)).unflatten(4, (-1, patch_size))
    return patches.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3).mode(dim=-1).values


def is_object(categories: Tensor) -> Tensor:
    """Whether categories are those of objects, not of walls, floors and ceilings."""
    return categories > len(STRUCTURE)
