"""What a language model must tell at the name of an object: where it is, which view shows it first, whether any does.

Answers alone teach a small language model no places. It has to learn to search the image tokens for what a name means;
the few letters of an answer hardly reward the search, a place for each name does.
"""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ...modeling_spa3r.layers import MLP
from .points import point_loss

# Shares of the layers after which names are read, then how objects lie to each other, then options; the rest
# is left to the answer.
NAME_DEPTH, RELATION_DEPTH, OPTION_DEPTH = 0.4, 0.7, 0.85
PLACE_WEIGHT, FIRST_VIEW_WEIGHT, PRESENCE_WEIGHT = 3.0, 1.0, 0.3


def layers_up_to(depth: float, num_layers: int) -> int:
    """The number of layers that a share of them stands for, at least one."""
    return math.ceil(depth * num_layers)


class SceneObjects(NamedTuple):
    """
    Objects that some views show, or that the text names although no view shows them.

    names (`torch.LongTensor` of shape `(num_objects,)`):
        Places of their names in `OBJECT_NAMES`.
    places (`torch.Tensor` of shape `(num_objects, 3)`):
        Centers, in meters in the first view's frame; NaN where no view shows one, or the name fits several objects.
    first_views (`torch.Tensor` of shape `(num_objects,)`):
        When a view first shows one, from 0, the first view, to 1, the last; NaN where none does.
    """

    names: Tensor
    places: Tensor
    first_views: Tensor


class Found(NamedTuple):
    """
    What names say of their objects.

    places (`torch.Tensor` of shape `(num_names, 3)`):
        As from `encode_points`.
    first_views (`torch.Tensor` of shape `(num_names,)`):
        See `SceneObjects`.
    presence (`torch.Tensor` of shape `(num_names,)`):
        Logits of whether a view shows the object.
    """

    places: Tensor
    first_views: Tensor
    presence: Tensor


class NameHead(nn.Module):
    """Reads from the hidden state at the end of a name what it says of its object."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.mlp = MLP(hidden_size, hidden_size, 5)

    def forward(self, states: Tensor) -> Found:
        """Read states of shape `(num_names, hidden_size)`."""
        said = self.mlp(self.norm(states.float())).float()  # the states of a model in bfloat16, too
        return Found(said[:, :3], said[:, 3], said[:, 4])


def grounding_losses(found: Found, places: Tensor, first_views: Tensor) -> dict[str, Tensor]:
    """The losses `place`, `first_view` and `presence`, weighted, over the objects for which each is known.

    Args:
        found (`Found`): What names say.
        places, first_views (`torch.Tensor`): The truth; see `SceneObjects`.
    """
    is_shown = ~first_views.isnan()
    presence = F.binary_cross_entropy_with_logits(found.presence, is_shown.float(), reduction="sum")
    first_view = F.smooth_l1_loss(found.first_views, first_views.nan_to_num(), reduction="none", beta=0.1)
    return {
        "place": PLACE_WEIGHT * point_loss(found.places, places),
        "first_view": FIRST_VIEW_WEIGHT * (first_view * is_shown).sum() / is_shown.sum().clamp(min=1),
        "presence": PRESENCE_WEIGHT * presence / max(len(is_shown), 1),
    }
