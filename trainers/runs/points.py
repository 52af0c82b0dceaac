"""Points that a head predicts: how they are encoded, what a wrong one costs, and how far it is off."""

import torch.nn.functional as F
from torch import Tensor


def encode_points(points: Tensor) -> Tensor:
    """Compress coordinates, `sign(x) log(1 + |x|)`, so that far points do not dominate a loss."""
    return points.sign() * points.abs().log1p()


def decode_points(encoded: Tensor) -> Tensor:
    """The inverse of `encode_points`."""
    return encoded.sign() * encoded.abs().expm1()


def point_loss(encoded: Tensor, points: Tensor) -> Tensor:
    """Smooth L1 between predicted and true points, both encoded, over the points that are known.

    Args:
        encoded (`torch.Tensor` of shape `(..., 3)`): Predictions, as from `encode_points`.
        points (`torch.Tensor` of shape `(..., 3)`): True points; NaN where unknown.
    """
    known = ~points.isnan()
    losses = F.smooth_l1_loss(encoded.float(), encode_points(points).nan_to_num(), reduction="none", beta=0.1)
    return (losses * known).sum() / known.sum().clamp(min=1)


def point_errors(encoded: Tensor, points: Tensor) -> Tensor:
    """Distance of each predicted point from the true one, in the unit of the points; NaN where that is unknown."""
    return (decode_points(encoded.float()) - points).norm(dim=-1)
