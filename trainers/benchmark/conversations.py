"""Answers to whole conversations, by one call of `generate` that sees text and images together."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration


def answer_conversations(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    conversations: Sequence[list[dict]],
    **options: Any,
) -> Tensor:
    """Answer a batch of conversations.

    Args:
        model (`Spa3VLMForConditionalGeneration`): On any device.
        processor (`ProcessorMixin`): Its processor.
        conversations (`list[list[dict]]`): As chat templates take them, each up to a question.
        options (*optional*): Passed to `generate`.

    Returns:
        `torch.Tensor` of shape `(num_conversations, num_new_tokens)`: The tokens of the answers.
    """
    inputs = processor.apply_chat_template(
        conversations,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(model.device)
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
