"""A tiny Spa3-VLM, its processor, and conversations about random photos."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature, GenerationConfig

from spa3r import Spa3VLMForConditionalGeneration, Spa3VLMImageProcessor, Spa3VLMProcessor
from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

# Configuration fields of each variant of the model (paper Tab. 3 and 5).
VARIANTS = {
    "paper": {},
    "append": {"fusion": "append"},
    "none": {"fusion": "none"},
    "vggt": {"spatial_representation": "vggt"},
}


def tiny_config(**changes) -> Spa3VLMConfig:
    """The preset `spa3-vlm-tiny`, with these fields changed."""
    return Spa3VLMConfig(**(load_preset("spa3-vlm-tiny") | changes))


def tiny_model(seed: int = 0, **changes) -> Spa3VLMForConditionalGeneration:
    """A model in eval mode whose random weights are large enough for its tokens to depend on the scene."""
    torch.manual_seed(seed)
    model = Spa3VLMForConditionalGeneration(tiny_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.add_((1.0 if "fusion" in name else 0.2) * torch.randn_like(parameter))
    return model.eval()


def tiny_processor(**changes) -> Spa3VLMProcessor:
    """A processor with images of 56 pixels width and a byte tokenizer."""
    return Spa3VLMProcessor(Spa3VLMImageProcessor(image_width=56), byte_tokenizer(), **changes)


def save_tiny_vlm(folder: Path) -> Path:
    """Save a tiny model whose answers may end early, and its processor; return the folder."""
    answering_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def answering_model() -> Spa3VLMForConditionalGeneration:
    """A tiny model whose answers may end before they are as long as allowed."""
    model = tiny_model()
    model.generation_config = GenerationConfig(eos_token_id=258, pad_token_id=256)
    return model


def fresh_answer(model, images, question: str, max_new_tokens: int, drop=(), **options) -> str:
    """The greedy answer of one call of `generate` to a conversation of one turn, without the inputs in `drop`."""
    processor = tiny_processor()
    inputs = without(prepare(processor, conversation(images, question)), *drop)
    tokens = model.generate(**inputs, **{"max_new_tokens": max_new_tokens, "do_sample": False} | options)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def photo(seed: int, width: int = 64, height: int = 48) -> PIL.Image.Image:
    """A photo of random noise."""
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(images, question: str) -> list[dict]:
    """A conversation of one turn: images, then a question."""
    return user(*({"type": "image", "image": image} for image in images), question)


def user(*parts: dict | str) -> list[dict]:
    """A conversation of one turn, of these parts and texts."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def prepare(processor: Spa3VLMProcessor, conversations, **kwargs) -> BatchFeature:
    """Model inputs of one conversation, or of a padded batch of them, up to the start of the answer."""
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True} | kwargs,
    )


# Inputs of the text, and of the spatial encoder.
TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")
GEOMETRY = ("pixel_values_geometry", "geometry_sizes")
# Scenes that differ in number and size of views, and a text alone. Some images span fewer positions than tokens.
CONVERSATIONS = [
    conversation([photo(0, 48, 64), photo(1, 48, 64)], "How many?"),
    conversation([], "Hello."),
    conversation([photo(2, 48, 64)], "Is it left of the door?"),
    conversation([photo(3, 90, 40), photo(4, 90, 40), photo(5, 90, 40)], "Where?"),
]


def batch_of(model: Spa3VLMForConditionalGeneration, conversations=CONVERSATIONS, **kwargs) -> BatchFeature:
    """Model inputs of these conversations; see `prepare`."""
    return prepare(tiny_processor(num_appended_tokens=model.config.num_appended_tokens), conversations, **kwargs)


def views_of(inputs) -> list[torch.Tensor]:
    """The views for the spatial encoder, each of shape `(3, height, width)`."""
    views, start = [], 0
    for height, width in inputs["geometry_sizes"].tolist():
        pixels = inputs["pixel_values_geometry"][start : start + height * width]
        views.append(pixels.reshape(height, width, 3).permute(2, 0, 1))
        start += len(pixels)
    assert start == len(inputs["pixel_values_geometry"])
    return views


def geometry_of(views: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inverse of `views_of`, for views of shape `(num_views, 3, height, width)`."""
    sizes = torch.tensor([view.shape[1:] for view in views])
    return {"pixel_values_geometry": views.permute(0, 2, 3, 1).reshape(-1, 3), "geometry_sizes": sizes}


def only(inputs, *names) -> dict[str, torch.Tensor]:
    """These inputs."""
    return {name: inputs[name] for name in names}


def without(inputs, *names) -> dict[str, torch.Tensor]:
    """The inputs except these."""
    return {name: tensor for name, tensor in inputs.items() if name not in names}


def latents_of(model: Spa3VLMForConditionalGeneration, inputs) -> torch.Tensor:
    """Latents of the scenes of a batch."""
    return model.encode_scene(**only(inputs, *GEOMETRY, "num_views"))


def assert_same_tensors(given, expected):
    """Compare names, their order, and bits."""
    assert list(given) == list(expected)
    for name, tensor in given.items():
        assert torch.equal(tensor, expected[name]), name
