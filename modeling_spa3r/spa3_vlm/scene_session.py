"""Answers many questions about one scene, whose photos are encoded once."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache, GenerationConfig
from transformers.utils import logging

from ...data_scripts.common.videos import read_frames
from ..library import GenerationMode
from .modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from .processing_spa3_vlm import Spa3VLMProcessor

__all__ = ["SceneSession"]

logger = logging.get_logger(__name__)

END_OF_IMAGE = "<|vision_end|>"


@dataclass(frozen=True)
class SceneInputs:
    """What a model needs to encode a scene; `prepare_scene` makes it without the model, in any thread.

    Args:
        prefix (`str`): The conversation up to its last image.
        num_images (`int`): Number of views.
        inputs (`BatchFeature`): What the processor makes of both.
    """

    prefix: str
    num_images: int
    inputs: BatchFeature


def prepare_scene(processor: Spa3VLMProcessor, images: Sequence, system: str | None = None) -> SceneInputs:
    """Read and resize the images of a scene.

    Args:
        processor (`Spa3VLMProcessor`): A processor, which no other thread uses meanwhile.
        images (`Sequence`): Views of the scene, the reference view first.
        system (`str`, *optional*): System message, instead of the chat template's own.

    Raises:
        ValueError: If there is no image, an image cannot be read, or the chat template does not begin with the images.
    """
    images = processor.image_processor.fetch_images(images)
    images = images if isinstance(images, list) else [images]
    if not images:
        raise ValueError(f"A session needs at least one image of the scene, got `images` {images}; pass some.")
    prefix = scene_prefix(processor, len(images), system)
    # Refuses an unusable chat template before any image is encoded.
    tokenize_after_prefix(processor, prefix, scene_conversation(len(images), "?", system))
    return SceneInputs(prefix, len(images), processor(text=[prefix], images=[images], return_tensors="pt"))


def scene_conversation(num_images: int, question: str, system: str | None = None) -> list[dict]:
    """A conversation of one question that follows the images of a scene."""
    content = [{"type": "image"} for _ in range(num_images)] + [{"type": "text", "text": question}]
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": content}]


def scene_prefix(processor: Spa3VLMProcessor, num_images: int, system: str | None = None) -> str:
    """The text that all conversations about a scene begin with, up to its last image."""
    rendered = _render(processor, scene_conversation(num_images, "", system))
    return rendered[: rendered.rindex(END_OF_IMAGE) + len(END_OF_IMAGE)]


def tokenize_after_prefix(processor: Spa3VLMProcessor, prefix: str, conversation: Sequence[dict]) -> list[int]:
    """Tokenize what follows the images of a scene, up to the start of the answer.

    It follows a special token, so its tokens are those of the whole.

    Args:
        processor (`Spa3VLMProcessor`): The processor.
        prefix (`str`): The prefix of the scene.
        conversation (`Sequence[dict]`): The scene's images and a first question, and any further turns.

    Raises:
        ValueError: If the text does not begin with the prefix, or has a placeholder of an image.
    """
    rendered = _render(processor, conversation)
    if not rendered.startswith(prefix):
        raise ValueError(
            "`chat_template` puts part of the question before the images, so they cannot be cached; use one that "
            "begins with the images, such as `CHAT_TEMPLATE`."
        )
    text = rendered[len(prefix) :]
    tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if processor.image_token_id in tokens:
        raise ValueError(f"The text {text!r} contains the image placeholder `{processor.image_token}`; leave it out.")
    return tokens


def _render(processor: Spa3VLMProcessor, conversation: Sequence[dict]) -> str:
    return processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


class SceneSession:
    """Encodes a scene once and answers each question from the cached keys and values of its prefix.

    The prefix is the text up to the last image. Each question is answered on its own, with the same tokens as a call
    of `generate` that gets the photos and the question together. Weights in half precision may round differently,
    depending on the batch size. The session does not change the model, so several sessions can share one.

    Args:
        model (`Spa3VLMForConditionalGeneration`): The model, on any device.
        processor (`Spa3VLMProcessor`): Its processor.
        images (`Sequence` or `SceneInputs`, *optional*):
            Views of the scene; the first is its reference view. See `Spa3VLMImageProcessor` for the kinds of images.
            Or what `prepare_scene` made of them, perhaps in another thread.
        video (`str` or `os.PathLike`, *optional*): A video of the scene, instead of `images`.
        num_frames (`int`, *optional*): Number of frames to take from the video. Defaults to the processor's.
        spatial_latents (`torch.Tensor` of shape `(1, num_latents, latent_size)`, *optional*):
            Output of `model.encode_scene` for the same images, so that the scene is not encoded again.
        system (`str`, *optional*): System message, instead of the chat template's own.

    Attributes:
        spatial_latents (`torch.Tensor` of shape `(1, num_latents, latent_size)`, *optional*):
            Latents of the scene, for another session; `None` if the model has no fusion.

    Raises:
        ValueError: If there is no image, an image or the video cannot be read, or the chat template does not begin
            with the images.

    Example:

    ```python
    >>> from spa3r import SceneSession

    >>> scene = SceneSession(model, processor, images=["door.jpg", "sofa.jpg", "window.jpg"])
    >>> scene.ask("How many chairs are there?", max_new_tokens=16)
    >>> scene.ask(["How long is the table in cm?", "Is the sofa left of the door?"], max_new_tokens=16)
    ```
    """

    def __init__(
        self,
        model: Spa3VLMForConditionalGeneration,
        processor: Spa3VLMProcessor,
        images: Sequence | SceneInputs | None = None,
        video: str | os.PathLike | None = None,
        num_frames: int | None = None,
        spatial_latents: Tensor | None = None,
        system: str | None = None,
    ):
        if (images is None) == (video is None):
            raise ValueError(
                f"A session needs either `images` or `video`, got {'neither' if images is None else 'both'}; pass one."
            )
        if video is not None:
            images = read_frames(video, processor.num_frames if num_frames is None else num_frames)
        if not isinstance(images, SceneInputs):
            images = prepare_scene(processor, images, system)
        elif system is not None:
            raise ValueError(f"`system` is {system!r}, but `images` are prepared already; give it to `prepare_scene`.")
        self.model, self.processor, self.system = model, processor, system
        self.num_images, self.prefix = images.num_images, images.prefix
        inputs = images.inputs.copy().to(model.device)
        geometry = {name: inputs.pop(name) for name in ("pixel_values_geometry", "geometry_sizes")}
        if spatial_latents is None and model.config.fusion != "none":
            spatial_latents = model.encode_scene(**geometry, num_views=inputs["num_views"])
        self.spatial_latents = spatial_latents
        self.cache = DynamicCache(config=model.config.get_text_config())
        with torch.no_grad():
            model.model(**inputs, spatial_latents=spatial_latents, past_key_values=self.cache, use_cache=True)
        self.prefix_inputs = {name: inputs[name] for name in ("input_ids", "mm_token_type_ids")}
        self.image_grid_thw = inputs["image_grid_thw"]

    def ask(self, questions: str | Sequence[str], **kwargs) -> str | list[str]:
        """Answer a question, or several in one batch.

        Args:
            questions (`str` or `Sequence[str]`): One question, or several that are answered independently.
            kwargs (*optional*): Arguments of the model's `generate`, such as `max_new_tokens`.

        Returns:
            `str` or `list[str]`: The answer to each question. With `num_return_sequences=n`, a list with n answers per
            question.
        """
        tokens = self.generate([questions] if isinstance(questions, str) else questions, **kwargs)
        answers = [answer.strip() for answer in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return answers[0] if isinstance(questions, str) and len(answers) == 1 else answers

    def generate(
        self, questions: Sequence[str], generation_config: GenerationConfig | None = None, **kwargs
    ) -> Tensor:
        """Like `ask`, but return the new tokens.

        Returns:
            `torch.LongTensor` of shape `(num_answers, num_new_tokens)`.
        """
        if not questions:
            raise ValueError(f"`questions` is {questions!r}; give at least one question.")
        config, _ = self.model._prepare_generation_config(generation_config, **kwargs)
        if config.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION:
            raise ValueError(
                "A session cannot use assisted generation, in which transformers ignores the cached scene and answers "
                "are wrong; leave out `prompt_lookup_num_tokens` and `assistant_model`."
            )
        inputs = self._batch_of([self._tokenize_after_prefix(question) for question in questions])
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(questions) * max(config.num_beams, config.num_return_sequences))
        output = self.model.generate(
            **inputs,
            image_grid_thw=self.image_grid_thw.repeat(len(questions), 1),
            past_key_values=cache,
            generation_config=generation_config,
            # The cache holds the scene, so it must be used.
            **(kwargs | {"use_cache": True, "return_dict_in_generate": False}),
        )
        return output[:, inputs["input_ids"].shape[1] :]

    def _batch_of(self, questions: list[list[int]]) -> dict[str, Tensor]:
        """Put tokenized questions behind the prefix, one per row, as `[prefix][padding][question]`.

        The prefix keeps the positions it has in the cache, and all questions end together. Padding is masked out. It
        repeats a token of the prefix, because a repetition penalty would count any other token as seen.
        """
        longest, device = max(map(len, questions)), self.model.device
        prefix = {name: row.expand(len(questions), -1) for name, row in self.prefix_inputs.items()}
        pad_token_id = int(self.prefix_inputs["input_ids"][0, -1])
        tokens = [[pad_token_id] * (longest - len(question)) + question for question in questions]
        mask = [[0] * (longest - len(question)) + [1] * len(question) for question in questions]
        tokens, mask = torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
        return {
            "input_ids": torch.cat([prefix["input_ids"], tokens], dim=1),
            "attention_mask": torch.cat([torch.ones_like(prefix["input_ids"]), mask], dim=1),
            "mm_token_type_ids": torch.cat([prefix["mm_token_type_ids"], torch.zeros_like(tokens)], dim=1),
        }

    def _tokenize_after_prefix(self, question: str) -> list[int]:
        conversation = scene_conversation(self.num_images, question, self.system)
        return tokenize_after_prefix(self.processor, self.prefix, conversation)
