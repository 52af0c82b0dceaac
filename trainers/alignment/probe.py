"""What alignment trains: the adapter of a Spa3-VLM, and a head that reads points from fused image tokens.

The head is thrown away afterwards. It is there to have the adapter fetch from the latents where things are.
"""

import torch
from torch import Tensor, nn

from ...modeling_spa3r.layers import MLP


class PointHead(nn.Module):
    """Reads from an image token the points that its patches show at their centers."""

    def __init__(self, hidden_size: int, patches_per_token: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.mlp = MLP(hidden_size, hidden_size, 3 * patches_per_token)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(num_tokens, hidden_size)` to encoded points `(num_tokens, patches_per_token, 3)`."""
        return self.mlp(self.norm(tokens)).float().unflatten(-1, (-1, 3))


class AdapterWithHead(nn.Module):
    """The adapter of a Spa3-VLM and the head, without the encoders, which stay frozen.

    Args:
        fusion (`QueryFusion`, *optional*): The adapter of the model itself; without one, image tokens stay the same.
        hidden_size (`int`): Size of an image token.
        patches_per_token (`int`): Patches that an image token stands for.
    """

    def __init__(self, fusion: nn.Module | None, hidden_size: int, patches_per_token: int):
        super().__init__()
        self.fusion = fusion
        self.head = PointHead(hidden_size, patches_per_token)

    def forward(self, image_tokens: list[Tensor], latents: list[Tensor]) -> Tensor:
        """
        Args:
            image_tokens (`list[torch.Tensor]` of shape `(num_tokens, hidden_size)`): Image tokens of each scene.
            latents (`list[torch.Tensor]` of shape `(num_latents, latent_size)`): Latents of each scene.

        Returns:
            `torch.Tensor` of shape `(sum(num_tokens), patches_per_token, 3)`: Encoded points, scene after scene.
        """
        return self.head(self.fuse(image_tokens, latents))

    def fuse(self, image_tokens: list[Tensor], latents: list[Tensor]) -> Tensor:
        """The fused image tokens of all scenes, of shape `(sum(num_tokens), hidden_size)`."""
        # In float32, whatever they were kept in: the adapter rounds its output to the type of the image tokens.
        image_tokens, latents = ([scene.float() for scene in scenes] for scenes in (image_tokens, latents))
        return torch.cat(image_tokens if self.fusion is None else self.fusion(image_tokens, latents))
