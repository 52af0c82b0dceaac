"""Where an answer looked: from its tokens to image tokens, and from image tokens to latents.

Two attentions are read while the model runs, and none is computed in another way than the model does:

- the language model's, from each step that wrote a token of the answer to all image tokens, by `output_attentions`;
- the adapter's (paper Eq. 14), from each image token to the latents of the scene, from the queries and keys that a
  hook sees. It depends on the scene alone, so it is read once, while the scene is encoded.

Their product says which latents the image tokens that an answer read had queried. Attention shows where information
could come from; it does not prove that it changed the answer.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ....modeling_spa3r.spa3_vlm.fusion import SceneQuery
from ....modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ....modeling_spa3r.spa3_vlm.scene_session import SceneSession, scene_conversation, tokenize_after_prefix


class AnswerAttention(NamedTuple):
    """
    image_tokens (`torch.Tensor` of shape `(num_image_tokens,)`):
        Share of the answer's attention to images that each image token got; sums to 1.
    latents (`torch.Tensor` of shape `(num_latents,)`, *optional*):
        Share of each latent in what these image tokens had queried; sums to 1. Of a model that appends the latents to
        the image tokens, what each latent got of the same attention.
    """

    image_tokens: Tensor
    latents: Tensor | None


@contextmanager
def record_adapter(model: Spa3VLMForConditionalGeneration) -> Iterator[list[Tensor]]:
    """Record the adapter's attention while scenes are encoded one by one.

    Yields:
        `list[torch.Tensor]`: For each scene, weights of shape `(num_image_tokens, num_latents)`, the mean over heads.
        Empty for a model whose images query no latents.
    """
    seen: dict[str, Tensor] = {}
    weights: list[Tensor] = []
    queries = [module for module in model.modules() if isinstance(module, SceneQuery)]

    def finish(module, arguments, output):
        products = torch.einsum("qhc,khc->hqk", seen["q_norm"].float(), seen["k_norm"].float())
        weights.append((products * module.scaling).softmax(-1).mean(0))

    def keep(name):
        return lambda module, arguments, output: seen.__setitem__(name, output.detach())

    handles = [query.register_forward_hook(finish) for query in queries]
    handles += [
        getattr(query, name).register_forward_hook(keep(name)) for query in queries for name in ("q_norm", "k_norm")
    ]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager_attention(model: Spa3VLMForConditionalGeneration) -> Iterator[None]:
    """Let the language model return its attention; no other thread may use the model meanwhile."""
    language_model = model.model.vlm.language_model
    usual = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(usual)


@torch.no_grad()
def attend(session: SceneSession, question: str, answer: list[int], adapter: Tensor | None) -> AnswerAttention:
    """Read where an answer looked. The answer is given, so this is one pass over question and answer.

    Args:
        session (`SceneSession`): The scene.
        question (`str`): What was asked.
        answer (`list[int]`): The tokens of the answer without the end token, at least one.
        adapter (`torch.Tensor` of shape `(num_image_tokens, num_latents)`, *optional*): See `record_adapter`.
    """
    model, prefix = session.model, session.prefix_inputs["input_ids"]
    conversation = scene_conversation(session.num_images, question, session.system)
    asked = tokenize_after_prefix(session.processor, session.prefix, conversation)
    tokens = prefix.new_tensor([[*asked, *answer]])
    mask = torch.ones_like(torch.cat([prefix, tokens], dim=1))
    with eager_attention(model):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            mm_token_type_ids=torch.zeros_like(tokens),
            past_key_values=copy.deepcopy(session.cache),
            output_attentions=True,
        )
    # The step that wrote a token is at the token before it.
    steps = slice(-len(answer) - 1, -1)
    to_prefix = torch.stack(
        [layer[0, :, steps, : prefix.shape[1]].float().mean((0, 1)) for layer in output.attentions]
    )
    shares = to_prefix.mean(0)[prefix[0] == session.processor.image_token_id]
    num_appended = model.config.num_appended_tokens
    image_tokens, appended = shares.split([len(shares) - num_appended, num_appended])
    image_tokens = image_tokens / image_tokens.sum()
    latents = appended if num_appended else None if adapter is None else image_tokens @ adapter
    return AnswerAttention(image_tokens.cpu(), latents if latents is None else (latents / latents.sum()).cpu())


def on_photos(image_tokens: Tensor, image_grid_thw: Tensor, merge_size: int) -> list[Tensor]:
    """Split values of image tokens into one grid `(rows, columns)` for each photo.

    Args:
        image_tokens (`torch.Tensor` of shape `(num_image_tokens,)`): Values, photo after photo and row by row.
        image_grid_thw (`torch.LongTensor` of shape `(num_photos, 3)`): Frames, rows and columns of patches.
        merge_size (`int`): Patches along the side of an image token.
    """
    sizes = [(rows // merge_size, columns // merge_size) for _, rows, columns in image_grid_thw.tolist()]
    grids = image_tokens.split([rows * columns for rows, columns in sizes])
    return [grid.view(size) for grid, size in zip(grids, sizes, strict=True)]
