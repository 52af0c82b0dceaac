"""Many questions about one scene: its photos are seen once."""

import copy
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.generation import GenerationMode
from transformers.utils import logging

from ...data_scripts.common.videos import read_frames
from .modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from .processing_spa3_vlm import Spa3VLMProcessor

__all__ = ["SceneSession"]

logger = logging.get_logger(__name__)

END_OF_IMAGE = "<|vision_end|>"


class SceneSession:
    """Sees a scene once, and answers each question from what it keeps: the keys and values of all that comes before.

    A question is answered by itself, as if it were the first; its tokens are those of a call of `generate` with photos
    and question together, but for rounding where weights are not in float32, which depends on the size of a batch. The
    model is not changed, and may serve several sessions.

    Args:
        model (`Spa3VLMForConditionalGeneration`): The model, on any device.
        processor (`Spa3VLMProcessor`): Its processor.
        images (`Sequence`, *optional*): Views of the scene, the first its reference; see `Spa3VLMImageProcessor`.
        video (`str` or `os.PathLike`, *optional*): A video of the scene, in their place.
        num_frames (`int`, *optional*): Frames to take of the video; the processor's number by default.
        spatial_latents (`torch.Tensor` of shape `(1, num_latents, latent_size)`, *optional*):
            What `model.encode_scene` returned for the same images, so that the scene is not encoded again.

    Attributes:
        spatial_latents (`torch.Tensor` of shape `(1, num_latents, latent_size)`, *optional*):
            The scene, for another session; `None` where the model has no fusion.

    Raises:
        ValueError: If an image or the video cannot be read, or there is none.

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
        images: Sequence | None = None,
        video: str | os.PathLike | None = None,
        num_frames: int | None = None,
        spatial_latents: Tensor | None = None,
    ):
        if (images is None) == (video is None):
            raise ValueError("A session is of one scene: give either its `images` or a `video` of it.")
        if video is None:
            images = processor.image_processor.fetch_images(images)
            images = images if isinstance(images, list) else [images]
        else:
            images = read_frames(video, processor.num_frames if num_frames is None else num_frames)
        if not images:
            raise ValueError("A session needs at least one image of the scene, got none.")
        self.model, self.processor = model, processor
        self.num_images = len(images)
        rendered = self._render("")
        self.prefix = rendered[: rendered.rindex(END_OF_IMAGE) + len(END_OF_IMAGE)]
        self._tokenize("?")  # refuses a template that does not begin with the images, before any work
        inputs = processor(text=[self.prefix], images=[images], return_tensors="pt").to(model.device)
        geometry = {name: inputs.pop(name) for name in ("pixel_values_geometry", "geometry_sizes")}
        if spatial_latents is None and model.config.fusion != "none":
            spatial_latents = model.encode_scene(**geometry, num_views=inputs["num_views"])
        self.spatial_latents = spatial_latents
        self.cache = DynamicCache(config=model.config.get_text_config())
        with torch.no_grad():
            model.model(**inputs, spatial_latents=spatial_latents, past_key_values=self.cache, use_cache=True)
        self.beginning = {name: inputs[name] for name in ("input_ids", "mm_token_type_ids")}
        self.image_grid_thw = inputs["image_grid_thw"]

    def ask(self, questions: str | Sequence[str], **kwargs) -> str | list[str]:
        """Answer a question, or several in one batch.

        Args:
            questions (`str` or `Sequence[str]`): Each is answered by itself.
            kwargs (*optional*): As `generate` takes them, `max_new_tokens` and the like.

        Returns:
            `str` or `list[str]`: The answers; with `num_return_sequences=n`, n for each question in turn, as a list.
        """
        tokens = self.generate([questions] if isinstance(questions, str) else questions, **kwargs)
        answers = [answer.strip() for answer in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return answers[0] if isinstance(questions, str) and len(answers) == 1 else answers

    def generate(
        self, questions: Sequence[str], generation_config: GenerationConfig | None = None, **kwargs
    ) -> Tensor:
        """As `ask`, but the new tokens.

        Returns:
            `torch.LongTensor` of shape `(num_answers, num_new_tokens)`.
        """
        if not questions:
            raise ValueError("There is no question; give at least one.")
        tails = [self._tokenize(question) for question in questions]
        longest = max(map(len, tails))
        # [beginning][padding][question]: what is kept stays in place, and all questions end together. Padding is never
        # seen; it is of a token of the beginning, or a penalty of repetition would be of another token in padded rows.
        pad_token_id = int(self.beginning["input_ids"][0, -1])
        padded = torch.tensor([[pad_token_id] * (longest - len(tail)) + tail for tail in tails])
        is_padding = torch.tensor([[1] * (longest - len(tail)) + [0] * len(tail) for tail in tails])
        number, device = len(tails), self.model.device
        beginning = {name: rows.expand(number, -1) for name, rows in self.beginning.items()}
        padded, is_padding = padded.to(device), is_padding.to(device)
        input_ids = torch.cat([beginning["input_ids"], padded], dim=1)
        config, _ = self.model._prepare_generation_config(generation_config, **kwargs)
        if config.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION:
            raise ValueError(
                "A session cannot have tokens guessed in advance: the library then overlooks what is kept, and "
                "answers are wrong; leave out `prompt_lookup_num_tokens` and `assistant_model`."
            )
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(number * max(config.num_beams, config.num_return_sequences))
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.cat([torch.ones_like(beginning["input_ids"]), 1 - is_padding], dim=1),
            mm_token_type_ids=torch.cat([beginning["mm_token_type_ids"], torch.zeros_like(padded)], dim=1),
            image_grid_thw=self.image_grid_thw.repeat(number, 1),
            past_key_values=cache,
            generation_config=generation_config,
            # Without a cache the library would not know the scene either.
            **(kwargs | {"use_cache": True, "return_dict_in_generate": False}),
        )
        return output[:, input_ids.shape[1] :]

    def _render(self, question: str) -> str:
        content = [{"type": "image"} for _ in range(self.num_images)] + [{"type": "text", "text": question}]
        conversation = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)

    def _tokenize(self, question: str) -> list[int]:
        """What follows the last image. It begins behind a special token, so it is tokenized as in the whole text."""
        rendered = self._render(question)
        if not rendered.startswith(self.prefix):
            raise ValueError(
                "The chat template puts something of the question before the images, so nothing of them can be kept; "
                "use one that begins with the images, such as `CHAT_TEMPLATE`."
            )
        tokens = self.processor.tokenizer(rendered[len(self.prefix) :], add_special_tokens=False)["input_ids"]
        if self.processor.image_token_id in tokens:
            raise ValueError(
                f"The question contains `{self.processor.image_token}`, which stands for an image: {question!r}; ask "
                "without it."
            )
        return tokens
