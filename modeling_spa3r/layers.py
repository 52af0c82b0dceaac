"""Transformer blocks shared by VGGT and Spa3R, and the two-dimensional rotary embedding."""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import GradientCheckpointingLayer, PreTrainedConfig

from .geometry import PRoPE
from .library import ALL_ATTENTION_FUNCTIONS

__all__ = ["Attention", "Block", "LayerScale", "MLP", "Rope2D", "grid_positions", "run_attention"]


def grid_positions(grid_size: tuple[int, int], num_prefix_tokens: int, device: torch.device | str) -> Tensor:
    """Row and column of each token of an image: patches count from 1, and the tokens before them are at (0, 0).

    Args:
        grid_size (`tuple[int, int]`): Rows and columns of the patch grid.
        num_prefix_tokens (`int`): Number of tokens before the patches.

    Returns:
        `torch.Tensor` of shape `(num_prefix_tokens + rows * columns, 2)`: Integers (y, x).
    """
    rows, columns = grid_size
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    patches = torch.stack([y.flatten(), x.flatten()], dim=-1) + 1
    return torch.cat([patches.new_zeros(num_prefix_tokens, 2), patches])


class Rope2D:
    """Rotary embedding of tokens on a grid: the first half of each head is rotated by y, the second by x.

    An object holds the tables of one forward pass. They are computed once, in float32, and all layers share them. An
    attention module calls `rotate` before and `restore` after its attention product. Frequencies fall from 1 to about
    1 / base. Within each half, the two channels of a rotated pair are `head_dim / 4` apart, as in CroCo and DUSt3R.

    Products are in the dtype of queries and keys. In bfloat16 that takes 0.4 of the memory traffic of products in
    float32, and the rotated tensors are off by 0.24 % of their norm instead of 0.17 % (docs/performance.md).

    Args:
        positions (`torch.Tensor` of shape `(num_tokens, 2)` or `(batch_size, num_tokens, 2)`): Integers (y, x).
        head_dim (`int`): Channels of an attention head, a multiple of 4.
        base (`float`, *optional*, defaults to 100.0): Base of the frequencies.
    """

    def __init__(self, positions: Tensor, head_dim: int, base: float = 100.0):
        if head_dim % 4:
            raise ValueError(
                f"`head_dim` must be a multiple of 4, got {head_dim}: both axes are rotated in pairs; choose "
                "another number of attention heads."
            )
        num_frequencies = head_dim // 4
        exponents = torch.arange(num_frequencies, device=positions.device, dtype=torch.float32) / num_frequencies
        angles = positions[..., None].float() * base**-exponents
        angles = angles.unsqueeze(-4)  # (..., heads = 1, tokens, 2, head_dim / 4)
        # One entry for each channel of a head: the pair (a, b) becomes (a cos - b sin, b cos + a sin).
        angles = torch.stack([-angles, angles], dim=-2).flatten(-3)
        self.cos, self.sin = angles.cos(), angles.sin()

    def to(self, device: torch.device, **kwargs) -> "Rope2D":
        """Copy to another device; accelerate calls this between the layers of a model that spans devices."""
        moved = copy.copy(self)
        moved.cos, moved.sin = self.cos.to(device, **kwargs), self.sin.to(device, **kwargs)
        return moved

    def rotate(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode queries and keys, each of shape `(batch_size, num_heads, num_tokens, head_dim)`."""
        cos, sin = self.cos.to(query.dtype), self.sin.to(query.dtype)
        return _rotate_pairs(query, cos, sin), _rotate_pairs(key, cos, sin), value

    def restore(self, output: Tensor) -> Tensor:
        """Return the attention output unchanged, because `rotate` leaves the values unchanged."""
        return output


def _rotate_pairs(hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    y_first, y_second, x_first, x_second = hidden_states.chunk(4, dim=-1)
    partners = torch.cat([y_second, y_first, x_second, x_first], dim=-1)
    # In place on tensors made here: these products are bound by memory traffic.
    rotated = hidden_states * cos
    if rotated.dtype is torch.float32:
        return rotated.add_(partners.mul_(sin))
    # Half precision gains from one rounding less; float32 would only get other bits on other machines.
    return rotated.addcmul_(partners, sin)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention without a fused kernel, with the signature of transformers' attention functions and never a mask."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


# The official code's RMS norm has `eps=None`: the epsilon of float32, whatever the dtype of the input.
QK_NORMS: dict[str | None, Callable[[int], nn.Module]] = {
    None: lambda head_dim: nn.Identity(),
    "layer_norm": lambda head_dim: nn.LayerNorm(head_dim, eps=1e-5),
    "rms_norm": lambda head_dim: nn.RMSNorm(head_dim, eps=torch.finfo(torch.float32).eps),
}


def run_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Let all queries attend to all keys, with the attention implementation that `module.config` names.

    Args:
        module (`nn.Module`): Has `config`, `scaling` and `is_causal = False`.
        query, key, value (`torch.Tensor` of shape `(batch_size, num_heads, num_tokens, head_dim)`):
            The number of queries may differ from the number of keys.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Output of shape `(batch_size, num_queries, num_heads, head_dim)`,
        and weights of shape `(batch_size, num_heads, num_queries, num_keys)` if the implementation computes them.
    """
    implementation = module.config._attn_implementation
    if query.dtype is torch.float32 and "flash" in implementation:
        # Flash kernels need half precision, but the camera head runs in float32.
        implementation = "sdpa"
    attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    return attention_interface(module, query, key, value, attention_mask=None, scaling=module.scaling)


class Attention(nn.Module):
    """Multi-head self-attention. The first tokens can be kept from attending to the rest (paper Eq. 5).

    Args:
        config (`PreTrainedConfig`): Names the attention implementation.
        hidden_size (`int`): Channels of a token.
        num_heads (`int`): Number of attention heads.
        qk_norm (`str`, *optional*):
            Norm of each head's queries and keys before rotation, `"layer_norm"` or `"rms_norm"`; none by default.
    """

    is_causal = False

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        qk_norm: Literal["layer_norm", "rms_norm"] | None = None,
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`, got {hidden_size} and {num_heads}; choose another "
                "number of attention heads."
            )
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = QK_NORMS[qk_norm](self.head_dim)
        self.k_norm = QK_NORMS[qk_norm](self.head_dim)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embedding: Rope2D | PRoPE | None = None,
        num_context_tokens: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): Tokens.
            position_embedding (`Rope2D` or `PRoPE`, *optional*):
                Transforms queries, keys and values before the attention product, and the output after it.
            num_context_tokens (`int`, *optional*):
                Number of context tokens, which come first. They attend to one another only; all other tokens attend to
                all tokens. By default all tokens attend to all tokens.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: Output of shape `(batch_size, num_tokens, hidden_size)`, and
            weights of shape `(batch_size, num_heads, num_tokens, num_tokens)` with eager attention, else `None`.
        """
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, tokens, head_dim)
        # Autocast computes norms in float32; attention wants one dtype.
        query, key = self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype)
        if position_embedding is not None:
            query, key, value = position_embedding.rotate(query, key, value)

        if num_context_tokens is None or num_context_tokens == hidden_states.shape[1]:
            output, weights = run_attention(self, query, key, value)
        else:
            # Eq. 5: M_ij = 0 if i is a target or j is context, else -inf. Context tokens come first, so two plain
            # attention products replace the mask: any kernel can run them, and they need less work.
            context, target = slice(None, num_context_tokens), slice(num_context_tokens, None)
            context_output, context_weights = run_attention(
                self, query[:, :, context], key[:, :, context], value[:, :, context]
            )
            target_output, weights = run_attention(self, query[:, :, target], key, value)
            output = torch.cat([context_output, target_output], dim=1)
            if weights is not None:
                unseen = hidden_states.shape[1] - num_context_tokens
                weights = torch.cat([nn.functional.pad(context_weights, (0, unseen)), weights], dim=2)

        if position_embedding is not None:
            output = position_embedding.restore(output.transpose(1, 2)).transpose(1, 2)
        return self.proj(output.flatten(2)), weights


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class LayerScale(nn.Module):
    """Multiply each channel of a residual branch by a learned factor."""

    def __init__(self, hidden_size: int, initial_value: float):
        super().__init__()
        self.initial_value = initial_value
        self.scale = nn.Parameter(torch.full((hidden_size,), initial_value))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.scale


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention and MLP, each added to the residual stream.

    Args:
        config (`PreTrainedConfig`): Names the attention implementation.
        hidden_size (`int`): Channels of a token.
        num_heads (`int`): Number of attention heads.
        mlp_ratio (`float`): Width of the MLP divided by `hidden_size`.
        qk_norm (`str` or `None`): See `Attention`.
        layer_scale_init (`float` or `None`): Initial factor of both branches; `None` for branches without a factor.
        layer_norm_eps (`float`): Epsilon of the two pre-norms.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: Literal["layer_norm", "rms_norm"] | None,
        layer_scale_init: float | None,
        layer_norm_eps: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.attention = Attention(config, hidden_size, num_heads, qk_norm)
        self.norm2 = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.mlp = MLP(hidden_size, int(hidden_size * mlp_ratio), hidden_size)
        if layer_scale_init is None:
            self.layer_scale1, self.layer_scale2 = nn.Identity(), nn.Identity()
        else:
            self.layer_scale1 = LayerScale(hidden_size, layer_scale_init)
            self.layer_scale2 = LayerScale(hidden_size, layer_scale_init)

    def forward(
        self,
        hidden_states: Tensor,
        position_embedding: Rope2D | PRoPE | None = None,
        num_context_tokens: int | None = None,
    ) -> Tensor:
        """See `Attention.forward`."""
        # While the MLP, the widest part, runs, only the residual stream has a name; all else is free.
        hidden_states = hidden_states + self.layer_scale1(
            self.attention(self.norm1(hidden_states), position_embedding, num_context_tokens)[0]
        )
        return hidden_states + self.layer_scale2(self.mlp(self.norm2(hidden_states)))
