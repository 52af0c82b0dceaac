"""Compiles the transformer blocks of VGGT and Spa3R, wherever they are in a model."""

from typing import Any

import torch
from torch import nn
from transformers import GradientCheckpointingLayer

from .spa3r.modeling_spa3r import Spa3RPreTrainedModel
from .vggt.modeling_vggt import VGGTPreTrainedModel

__all__ = ["compile_blocks"]

# All blocks share one cache of compilations: 7 kinds of blocks, each with and without gradients, for scenes of one
# shape, of several, and batches of one. Torch's limit is 8, and what exceeds it runs uncompiled.
COMPILATIONS = 64


def compile_blocks(model: nn.Module, **options: Any):
    """Compile every block of VGGT, its vision transformer, Spa3R's encoder and decoder, and its teachers, in place.

    Names of weights stay the same. A block is compiled when it first runs, and all blocks of a kind share what was
    compiled; other numbers or sizes of views compile once more, then for all sizes. Of a Spa3-VLM, only the spatial
    encoder is compiled. Compiled blocks round differently. On a CPU, the default backend needs a C++ compiler.

    Args:
        model (`nn.Module`): A VGGT, a Spa3R, or a module that contains one.
        options: Arguments of `torch.compile`, such as `backend`.

    Raises:
        ValueError: If the model contains no such block.

    Example:

    ```python
    >>> import spa3r

    >>> model = spa3r.Spa3RModel.from_pretrained("checkpoints/spa3r-base").to("cuda")
    >>> spa3r.compile_blocks(model)
    ```
    """
    parts = [part for part in model.modules() if isinstance(part, VGGTPreTrainedModel | Spa3RPreTrainedModel)]
    blocks = {id(b): b for part in parts for b in part.modules() if isinstance(b, GradientCheckpointingLayer)}
    if not blocks:
        raise ValueError(
            f"`{type(model).__name__}` has no blocks to compile, because it contains no VGGT and no Spa3R; give a "
            "model that does."
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    for block in blocks.values():
        block.compile(**options)
