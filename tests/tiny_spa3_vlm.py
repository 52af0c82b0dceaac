"""A tiny Spa3-VLM, its processor, and conversations about random photos, for all tests that need one."""

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature

from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r import Spa3RImageProcessor, Spa3VLMForConditionalGeneration, Spa3VLMProcessor
from spa3r.modeling_spa3r.byte_tokenizer import byte_tokenizer


def tiny_config(**changes) -> Spa3VLMConfig:
    """The preset `spa3-vlm-tiny` with some fields changed."""
    return Spa3VLMConfig(**(load_preset("spa3-vlm-tiny") | changes))


def tiny_model(seed: int = 0, **changes) -> Spa3VLMForConditionalGeneration:
    """A model in eval mode with weights of ordinary size, so that differences show: its adapter is not silent."""
    torch.manual_seed(seed)
    model = Spa3VLMForConditionalGeneration(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tiny_processor(**changes) -> Spa3VLMProcessor:
    """A processor of images 56 pixels wide, with a tokenizer of bytes."""
    return Spa3VLMProcessor(Spa3RImageProcessor(image_width=56), byte_tokenizer(), **changes)


def photo(seed: int, width: int = 64, height: int = 48) -> PIL.Image.Image:
    """Noise."""
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(images, question: str) -> list[dict]:
    """One user's turn: images, then a question."""
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def prepare(processor: Spa3VLMProcessor, conversations, **kwargs) -> BatchFeature:
    """Tensors of one conversation or of a padded batch of them, up to where the answer begins."""
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True} | kwargs,
    )
