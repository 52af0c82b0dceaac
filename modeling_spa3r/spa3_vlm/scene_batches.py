"""Conversations about different scenes, continued together.

The library's `generate` does the work: it continues a batch from the keys and values that it left. Between two calls
rows can join and leave, so that in a server a short answer never waits for a long one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from .modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from .scene_session import SceneSession

__all__ = ["Batch", "advance", "begin", "join", "keep"]


@dataclass(frozen=True)
class Batch:
    """Rows of text, in which padding may stand anywhere but at the end.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Padding repeats a token of its row, because a repetition penalty would count any other as seen.
        attention_mask (`torch.LongTensor` of the same shape): 0 marks padding.
        cache (`DynamicCache`): Keys and values of the first columns, and what their images take off positions.
    """

    input_ids: Tensor
    attention_mask: Tensor
    cache: DynamicCache

    def __len__(self) -> int:
        return len(self.input_ids)


def begin(model: Spa3VLMForConditionalGeneration, scenes: Sequence[SceneSession], texts: Sequence[list[int]]) -> Batch:
    """Put a text, as tokens, behind the images of each scene; the scenes stay as they are."""
    prefixes = []
    for scene in scenes:
        input_ids = scene.prefix_inputs["input_ids"]
        prefixes.append(Batch(input_ids, torch.ones_like(input_ids), scene.cache))
    prefix, longest = join(model, prefixes), max(map(len, texts))
    padding = prefix.input_ids[:, -1].tolist()
    ids = [[token] * (longest - len(text)) + text for token, text in zip(padding, texts, strict=True)]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    ids, mask = (torch.tensor(rows, device=prefix.input_ids.device) for rows in (ids, mask))
    return Batch(torch.cat([prefix.input_ids, ids], 1), torch.cat([prefix.attention_mask, mask], 1), prefix.cache)


@torch.no_grad()
def advance(
    model: Spa3VLMForConditionalGeneration, batch: Batch, num_tokens: int, options: dict[str, Any]
) -> tuple[Batch, list[list[int]]]:
    """Generate up to `num_tokens` tokens for each row; those after an end of text mean nothing.

    Args:
        options (`dict`): Further arguments of `generate`.

    Returns:
        `tuple[Batch, list[list[int]]]`: The longer batch, and the new tokens of each row.
    """
    length = batch.input_ids.shape[1]
    output = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        past_key_values=batch.cache,
        max_new_tokens=num_tokens,
        **(options | {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "return_dict_in_generate": False}),
    )
    num_new = output.shape[1] - length
    batch.cache.crop(output.shape[1] - 1 - batch.cache.get_seq_length())  # the last token was not an input yet
    mask = torch.cat([batch.attention_mask, batch.attention_mask.new_ones(len(batch), num_new)], 1)
    return Batch(output, mask, batch.cache), output[:, length:].tolist()


def join(model: Spa3VLMForConditionalGeneration, batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, padded on the left; all batches must have equally many columns that are not cached."""
    longest = max(batch.input_ids.shape[1] for batch in batches)
    rows = [(batch, longest - batch.input_ids.shape[1]) for batch in batches]
    ids = [torch.cat([batch.input_ids[:, -1:].expand(-1, n), batch.input_ids], 1) for batch, n in rows]
    mask = [pad(batch.attention_mask, (n, 0)) for batch, n in rows]
    layers = []
    for index in range(len(batches[0].cache.layers)):
        parts = [(batch.cache.layers[index], (0, 0, n, 0)) for batch, n in rows]
        keys = torch.cat([pad(layer.keys, padding) for layer, padding in parts])
        layers.append((keys, torch.cat([pad(layer.values, padding) for layer, padding in parts])))
    deltas = torch.cat([batch.cache.rope_deltas for batch in batches])
    return Batch(torch.cat(ids), torch.cat(mask), _make_cache(model, layers, deltas))


def keep(model: Spa3VLMForConditionalGeneration, batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, without columns that are padding in all of them at the start."""
    rows = torch.tensor(rows, device=batch.input_ids.device)
    mask = batch.attention_mask[rows]
    start = int(mask.any(0).long().argmax())
    layers = [(layer.keys[rows, :, start:], layer.values[rows, :, start:]) for layer in batch.cache.layers]
    cache = _make_cache(model, layers, batch.cache.rope_deltas[rows])
    return Batch(batch.input_ids[rows, start:], mask[:, start:], cache)


def _make_cache(
    model: Spa3VLMForConditionalGeneration, layers: Sequence[tuple[Tensor, Tensor]], rope_deltas: Tensor
) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config())
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    cache.rope_deltas = rope_deltas
    return cache
