"""Initial weights for small models that are trained from nothing.

The models' own initial values suit the training of giants, or the tuning of pretrained ones: residual branches that
add almost nothing, and tokens of almost zero length. A thousand steps of a nano model do not move them far enough.
"""

import torch
from torch import nn

from ...modeling_spa3r.layers import LayerScale

# Standard deviation of a weight, times the square root of the number of its inputs.
GAIN = 0.8
# Standard deviation of learned tokens: registers, camera tokens, latent queries, position embeddings.
TOKEN_STD = 0.5


@torch.no_grad()
def initialize_for_scratch(model: nn.Module, gain: float = GAIN, token_std: float = TOKEN_STD):
    """Draw the weights of a model anew, so that its blocks and tokens matter from the first step.

    Linear and convolution weights have a standard deviation of `gain` over the square root of their inputs, and no
    bias; factors of residual branches are 1. Norms, and layers that must start at zero, keep their values.

    Args:
        model (`nn.Module`): Changed in place.
        gain (`float`, *optional*, defaults to 0.8): See above.
        token_std (`float`, *optional*, defaults to 0.5): Standard deviation of all other parameters but norms'.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)):
            if not getattr(module, "zero_init", False):
                inputs = module.weight[0].numel() if not isinstance(module, nn.ConvTranspose2d) else module.in_channels
                nn.init.normal_(module.weight, std=gain / inputs**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale) or type(module).__name__.endswith("LayerScale"):
            for factor in module.parameters(recurse=False):
                nn.init.ones_(factor)
        elif not type(module).__name__.endswith("Norm"):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=token_std)
