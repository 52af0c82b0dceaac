"""Muon for the matrices of a model's blocks, and AdamW for all else, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """
    torch's Muon and AdamW behind the interface of one optimizer.

    Small models that are trained from nothing learn several times faster with Muon. It is made for matrices of hidden
    layers alone; embeddings, heads, norms, biases and tokens are left to AdamW.

    Args:
        matrices (`Iterable[nn.Parameter]`): Of two dimensions, for Muon.
        others (`Iterable[nn.Parameter]`): For AdamW.
        lr (`float`): Learning rate of AdamW.
        muon_lr (`float`): Learning rate of Muon.
        weight_decay (`float`): Of Muon; AdamW has none.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        muon_lr: float,
        weight_decay: float,
    ):
        self.parts = [
            torch.optim.Muon(list(matrices), lr=muon_lr, weight_decay=weight_decay),
            torch.optim.AdamW(list(others), lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        # Groups are shared, so that a schedule reaches both.
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups = [group]

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]):
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def split_for_muon(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained matrices of linear layers inside blocks, and all other trained parameters."""
    blocks = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    linear = (layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear))
    matrices = list({layer.weight: None for layer in linear if layer.weight.requires_grad})
    chosen = set(map(id, matrices))
    return matrices, [each for each in model.parameters() if each.requires_grad and id(each) not in chosen]
