"""How the VLM's image features query the latents of a scene (paper Eq. 14-15), and the variant that appends them.

The layers are those of the official code, so its weights load. To the paper's equations it adds a projection of the
latents to the VLM's size, a norm of the queried features, and a gate on the residual.
"""

import torch
from torch import Tensor, nn

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..layers import MLP, run_attention

__all__ = ["FUSIONS", "AppendFusion", "QueryFusion", "SceneQuery"]


class SceneQuery(nn.Module):
    """Eq. 14: F_fused = CrossAttn(q = F_V, k = z, v = z). Each scene's image tokens attend to its own latents.

    Not named `*Attention`: transformers disables `set_attn_implementation` for such classes unless they call its
    attention interface in this file.
    """

    is_causal = False

    def __init__(self, config: Spa3VLMConfig):
        super().__init__()
        text_config = config.get_text_config()
        size = text_config.hidden_size
        self.config = config
        self.num_heads = text_config.num_attention_heads
        self.head_dim = size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.q_norm = nn.LayerNorm(self.head_dim)
        self.k_norm = nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(size, size)

    def forward(self, image_tokens: Tensor, latents: Tensor, num_tokens: list[int], num_latents: list[int]) -> Tensor:
        """
        Args:
            image_tokens (`torch.Tensor` of shape `(sum(num_tokens), hidden_size)`): Image tokens, scene after scene.
            latents (`torch.Tensor` of shape `(sum(num_latents), hidden_size)`): Projected latents, scene after scene.
            num_tokens (`list[int]`): Number of image tokens in each scene.
            num_latents (`list[int]`): Number of latents in each scene.

        Returns:
            `torch.Tensor` of shape `(sum(num_tokens), hidden_size)`.
        """
        # Each layer runs once over all scenes, so ranks with different batches stay in lockstep. Only the attention
        # product, which has no weights, runs scene by scene: it needs no padding and no mask that could leak.
        query, key, value = self.q_proj(image_tokens), self.k_proj(latents), self.v_proj(latents)
        query, key, value = (states.unflatten(-1, (self.num_heads, -1)) for states in (query, key, value))
        query, key = self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype)
        scenes = zip(query.split(num_tokens), key.split(num_latents), value.split(num_latents), strict=True)
        output = [run_attention(self, *(states.transpose(0, 1)[None] for states in scene))[0][0] for scene in scenes]
        return self.proj(torch.cat(output).flatten(1))


class QueryFusion(nn.Module):
    """Eq. 15: F_V' = F_V + MLP(F_fused), here with the official code's gate on the MLP."""

    def __init__(self, config: Spa3VLMConfig):
        super().__init__()
        size = config.get_text_config().hidden_size
        self.projector = MLP(config.latent_size, size, size)
        self.cross_attention = SceneQuery(config)
        self.norm = nn.LayerNorm(size)
        self.adapter = MLP(size, size // 4, size)
        # Zero at first (paper), so that a fresh adapter changes nothing. The mark is on the layer itself, because
        # transformers never calls `_init_weights` on a module without parameters of its own.
        self.adapter.fc2.zero_init = True
        self.gate = nn.Linear(size, size)

    def forward(self, image_tokens: list[Tensor], latents: list[Tensor]) -> list[Tensor]:
        """
        Args:
            image_tokens (`list[torch.Tensor]` of shape `(num_tokens, hidden_size)`): Image tokens of each scene.
            latents (`list[torch.Tensor]` of shape `(num_latents, latent_size)`): Latents of each scene.

        Returns:
            `list[torch.Tensor]` of shape `(num_tokens, hidden_size)`: Fused image tokens of each scene.
        """
        num_tokens, num_latents = [len(tokens) for tokens in image_tokens], [len(scene) for scene in latents]
        residual, latents = torch.cat(image_tokens), torch.cat(latents)
        queried = self.norm(self.cross_attention(residual, self.projector(latents), num_tokens, num_latents))
        fused = residual + self.adapter(queried) * self.gate(queried).sigmoid()
        return list(fused.to(residual.dtype).split(num_tokens))


class AppendFusion(nn.Module):
    """Appends the projected latents of a scene to its image tokens (paper Tab. 5, sequence append)."""

    def __init__(self, config: Spa3VLMConfig):
        super().__init__()
        size = config.get_text_config().hidden_size
        self.projector = MLP(config.latent_size, size, size)

    def forward(self, image_tokens: list[Tensor], latents: list[Tensor]) -> list[Tensor]:
        """See `QueryFusion.forward`. Each scene returns `num_tokens + num_latents` tokens."""
        projected = self.projector(torch.cat(latents)).split([len(scene) for scene in latents])
        pairs = zip(image_tokens, projected, strict=True)
        return [torch.cat([tokens, scene.to(tokens.dtype)]) for tokens, scene in pairs]


FUSIONS = {"cross_attention": QueryFusion, "append": AppendFusion}
