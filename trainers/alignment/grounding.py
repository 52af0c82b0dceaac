"""Grounding: the language model reads names of objects after the images, and each must tell where its object is."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMModel
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ..runs.grounding import NAME_DEPTH, Found, NameHead, layers_up_to
from .objects import OBJECT_NAMES
from .probe import AdapterWithHead

# Stands for the names in a message.
_NAMES = "names"


class NamedText(NamedTuple):
    """
    Images followed by names, row by row, as inputs of a VLM.

    input_ids, attention_mask, mm_token_type_ids (`torch.LongTensor` of shape `(num_scenes, sequence_length)`):
        Padded on the right.
    image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`):
        Frames, rows and columns of patches of each image; on the host.
    positions (`torch.LongTensor` of shape `(num_names,)`):
        Where each name ends in the flattened rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mm_token_type_ids: Tensor
    image_grid_thw: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> "NamedText":
        """Move what the language model reads to a device; the grid stays."""
        grid = self.image_grid_thw
        return NamedText(*(tensor.to(device) for tensor in self))._replace(image_grid_thw=grid)


class TextWriter:
    """Writes the images of scenes and the names of objects as a user's message.

    Args:
        processor (`Spa3VLMProcessor`): Of the model.
    """

    def __init__(self, processor: Spa3VLMProcessor):
        self.processor = processor
        self.patches_per_token = processor.image_processor.merge_size**2
        self.names = [self._tokens(f" {name}") for name in OBJECT_NAMES]
        self.comma = self._tokens(",")

    def _tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _between_images(self, num_images: int) -> list[list[int]]:
        """Tokens before the first of some images, between each two, and after the last."""
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": _NAMES}]
        message = self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        *before, after = message.split(self.processor.image_token)
        return [self._tokens(part) for part in [*before, after.partition(_NAMES)[0]]]

    def __call__(self, grids: Sequence[Tensor], names: Sequence[Tensor]) -> NamedText:
        """
        Args:
            grids (`list[torch.LongTensor]` of shape `(num_images, 3)`): Frames, rows and columns of patches of each
                image of a scene.
            names (`list[torch.LongTensor]` of shape `(num_names,)`): Of a scene, as places in `OBJECT_NAMES`.
        """
        rows, ends = [], []
        for grid, scene_names in zip(grids, names, strict=True):
            first, *others = self._between_images(len(grid))
            row, row_ends = list(first), []
            for num_tokens, after in zip((grid.prod(-1) // self.patches_per_token).tolist(), others, strict=True):
                row += [self.processor.image_token_id] * num_tokens + after
            for name in scene_names.tolist():
                row += self.names[name]
                row_ends.append(len(row) - 1)
                row += self.comma
            rows.append(torch.tensor(row))
            ends.append(torch.tensor(row_ends, dtype=torch.long))
        pad = self.processor.tokenizer.pad_token_id
        input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        is_image = (input_ids == self.processor.image_token_id).long()
        positions = torch.cat([end + index * input_ids.shape[1] for index, end in enumerate(ends)])
        return NamedText(input_ids, mask, is_image, torch.cat(list(grids)), positions)


class GroundedAdapter(AdapterWithHead):
    """The adapter and its head, and a language model with a head of its own.

    Args:
        model (`Spa3VLMModel`): Its adapter and its language model are trained.
        patches_per_token (`int`): Patches that an image token stands for.
    """

    def __init__(self, model: Spa3VLMModel, patches_per_token: int):
        text_config = model.config.get_text_config()
        size = text_config.hidden_size
        super().__init__(model.fusion, size, patches_per_token)
        self.language_model = model.language_model
        self.layer = layers_up_to(NAME_DEPTH, text_config.num_hidden_layers)
        if self.layer < text_config.num_hidden_layers:
            # What follows learns nothing here, and data parallelism waits for all that is to learn.
            for later in (*self.language_model.layers[self.layer :], self.language_model.norm):
                later.requires_grad_(False)
        self.name_head = NameHead(size)
        self._run_vlm = model.vlm.forward  # not the module: its vision tower is not trained

    def forward(self, image_tokens: list[Tensor], latents: list[Tensor], text: NamedText) -> tuple[Tensor, Found]:
        """The points of all patches, as `AdapterWithHead` returns them, and what the names of the text say."""
        fused = self.fuse(image_tokens, latents)
        num_patches = text.image_grid_thw.prod(-1)
        num_tokens = num_patches * len(fused) // num_patches.sum()
        images = BaseModelOutputWithPooling(pooler_output=list(fused.split(num_tokens.tolist())))
        output = self._run_vlm(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            mm_token_type_ids=text.mm_token_type_ids,
            image_grid_thw=text.image_grid_thw,
            mm_encoder_outputs={"image": images},
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
        )
        states = output.hidden_states[self.layer].flatten(0, 1)[text.positions]
        return self.head(fused), self.name_head(states)
