"""Text and images of scenes, in one call, as tensors for `Spa3VLMForConditionalGeneration`."""

import os
import re
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import is_valid_image
from transformers.processing_utils import ProcessingKwargs, TextKwargs

from ...data_scripts.common.videos import read_frames, spread_evenly
from .image_processing_spa3_vlm import list_scenes

__all__ = ["CHAT_TEMPLATE", "Spa3VLMProcessor"]

CONTENT = (
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}"
    "{% else %}{{ raise_exception('A part of a message must be an image, a video or text, got the type `' ~ part.type"
    " ~ '`.') }}{% endif %}"
    "{% endfor %}{% endif %}"
)
# Qwen's format; `generation` marks what an answer's loss is taken of, as in the official training.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}"
    "{% generation %}" + CONTENT + "<|im_end|>\n{% endgeneration %}"
    "{% else %}" + CONTENT + "<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BETWEEN_IMAGES = "<|vision_end|><|vision_start|>"
SPECIAL_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


class Spa3VLMProcessor(ProcessorMixin):
    r"""Prepares text and images of scenes: all images of a row are views of one scene, the first its reference.

    A video is a list of images: `num_frames` of it, spread evenly, each an image of its own in the text.

    Args:
        image_processor (`Spa3VLMImageProcessor`): Prepares the images.
        tokenizer (`PreTrainedTokenizerBase`): Qwen's, or one with its special tokens.
        chat_template (`str`, *optional*): Jinja template of a conversation; `CHAT_TEMPLATE` by default.
        num_frames (`int`, *optional*, defaults to 32): Frames taken of a video file; all of those given as images.
        num_appended_tokens (`int`, *optional*, defaults to 0):
            Placeholders for the latents of a scene after its last image; `Spa3VLMConfig.num_appended_tokens`.

    Example:

    ```python
    >>> from transformers import AutoProcessor
    >>> import spa3r  # registers the Auto classes

    >>> processor = AutoProcessor.from_pretrained("spa3-vlm-4b")
    >>> content = [{"type": "video", "path": "room.mp4"}, {"type": "text", "text": "How many chairs are there?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    ...     processor_kwargs={"num_frames": 16},
    ... )
    ```
    """

    return_mm_token_type_ids = True

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        num_frames: int = 32,
        num_appended_tokens: int = 0,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.num_frames = num_frames
        self.num_appended_tokens = num_appended_tokens
        token_ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
        missing = [token for token, index in token_ids.items() if index in (None, tokenizer.unk_token_id)]
        if missing:
            raise ValueError(
                f"The tokenizer has no token {missing}; use that of a Qwen2.5-VL checkpoint, or add the special "
                "tokens of Qwen2.5-VL."
            )
        self.image_token, self.video_token = SPECIAL_TOKENS[:2]
        self.image_token_id, self.video_token_id = token_ids[self.image_token], token_ids[self.video_token]

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of all that is returned."""
        return [*super().model_input_names, "mm_token_type_ids"]

    def to_dict(self) -> dict[str, Any]:
        """As the library's; names the class for a process that has not imported this package, which the library would
        give a bare tokenizer without a word."""
        return super().to_dict() | {"auto_map": {"AutoProcessor": "processing_spa3_vlm.Spa3VLMProcessor"}}

    def apply_chat_template(
        self,
        conversation,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        """See `ProcessorMixin.apply_chat_template`; `processor_kwargs` are those of `__call__`.

        A part of a message is `{"type": "text", "text": ...}`, an image with `image`, `path`, `url` or `base64`, or a
        video with `video`, `path` or `url`, which becomes images where it stands."""
        if len(conversation) == 0:
            raise ValueError("The conversation has no message; give at least one.")
        processor_kwargs = dict(processor_kwargs or {})
        if tokenize:
            # Before the template is rendered, so that the places of answers in the text are those after expansion.
            num_frames = processor_kwargs.pop("num_frames", kwargs.pop("num_frames", None))
            is_batch = isinstance(conversation[0], (list, tuple))
            conversation = [
                [self._with_frames(message, num_frames) for message in messages]
                for messages in (conversation if is_batch else [conversation])
            ]
            conversation = conversation if is_batch else conversation[0]
        return super().apply_chat_template(
            conversation, chat_template=chat_template, tokenize=tokenize, processor_kwargs=processor_kwargs, **kwargs
        )

    def __call__(
        self, images=None, text=None, videos=None, audio=None, num_frames: int | None = None, **kwargs
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images (*optional*):
                Images of all rows in the order of their placeholders, or a list of them for each row; see
                `Spa3VLMImageProcessor` for what an image can be.
            text (`str` or `list[str]`, *optional*): One for each row, with a `<|image_pad|>` for each image.
            videos (*optional*):
                One for each `<|video_pad|>` in the text, in order: a file, a URL, an array of frames, or a list of
                frames.
            num_frames (`int`, *optional*):
                Frames to take of each video; by default `self.num_frames` of a file, and all that are given as images.
            kwargs (*optional*): Options of the tokenizer and of the image processor, as the library calls them.

        Returns:
            `BatchFeature`: `input_ids`, `attention_mask` and `mm_token_type_ids` of shape
            `(batch_size, sequence_length)`, and what `Spa3VLMImageProcessor` returns, with `num_views` of each row.

        Raises:
            ValueError: If placeholders and images differ in number, an image or video cannot be read, or an option is
                unknown.
        """
        self._refuse_unknown(kwargs)
        if audio is not None:
            raise ValueError("`audio` is given, but this model takes text, images and videos only.")
        if text is None:
            if videos is not None:
                raise ValueError(f"`videos` need a `text` with a `{self.video_token}` for each of them.")
            return super().__call__(images=images, **kwargs)
        text = [text] if isinstance(text, str) else text
        if not (isinstance(text, (list, tuple)) and text and all(isinstance(sample, str) for sample in text)):
            raise ValueError(f"`text` must be a string or a list of strings, got {str(text)[:200]}.")
        rows = self._group_by_rows(text, images)
        if videos is not None:
            text, rows = self._insert_frames(text, rows, _list_videos(videos), num_frames)
        return super().__call__(images=rows if any(rows) else None, text=list(text), **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """As the library's, and that each row has its own images. `text` is without what was marked as plain text."""
        if text is not None:
            self._check_counts(text, images or [[] for _ in text])
        super().validate_inputs(images=images, text=text, **kwargs)

    def _refuse_unknown(self, options: dict):
        """The library goes on with a warning."""
        known = {*ProcessingKwargs.__annotations__, *TextKwargs.__annotations__}
        known = known.union(self.image_processor.valid_kwargs.__annotations__) - {"videos_kwargs", "audio_kwargs"}
        given = {*options, *options.get("text_kwargs", {}), *options.get("images_kwargs", {})}
        if unknown := sorted(given - known):
            raise ValueError(
                f"The processor has no options {unknown}; it takes `num_frames`, those of the tokenizer (`padding`, "
                "`max_length`, ...) and those of the image processor (`image_width`, ...)."
            )

    def _group_by_rows(self, text: list[str], images) -> list[list]:
        """Images of each row of text."""
        if images is None:
            return [[] for _ in text]
        scenes, is_nested = list_scenes(self.image_processor.fetch_images(images))
        if is_nested or len(text) == 1:
            return scenes
        (images,) = scenes
        counts = [sample.count(self.image_token) for sample in text]
        if sum(counts) != len(images):
            raise ValueError(
                f"There are {len(images)} images, but the {len(text)} texts have {sum(counts)} `{self.image_token}`; "
                "give one for each image."
            )
        rest = iter(images)
        return [list(islice(rest, count)) for count in counts]

    def _check_counts(self, text: list[str], rows: list[list]):
        if len(rows) != len(text):
            raise ValueError(
                f"`images` has {len(rows)} rows, but `text` {len(text)}; give a list of images for each "
                "text, or all in one list."
            )
        for index, (sample, row) in enumerate(zip(text, rows, strict=True)):
            count = sample.count(self.image_token)
            if count != len(row):
                raise ValueError(
                    f"Row {index} has {len(row)} images, but its text {count} `{self.image_token}`; give one for each "
                    "image, and no other."
                )
            if self.image_token * 2 in sample:
                raise ValueError(
                    f"Row {index} has two `{self.image_token}` side by side, and the features of both would count as "
                    "one image's; put each between `<|vision_start|>` and `<|vision_end|>`."
                )

    def _insert_frames(
        self, text: list[str], rows: list[list], videos: list, num_frames: int | None
    ) -> tuple[list[str], list[list]]:
        """Put the frames of videos among the images of each row, and placeholders for them in its text."""
        self._check_counts(text, rows)
        number = sum(sample.count(self.video_token) for sample in text)
        if number != len(videos):
            raise ValueError(
                f"There are {len(videos)} videos, but {number} `{self.video_token}` in the text; give one for each."
            )
        placeholder = re.compile(f"({re.escape(self.image_token)}|{re.escape(self.video_token)})")
        rest = iter(videos)
        samples, images_and_frames = [], []
        for sample, row in zip(text, rows, strict=True):
            images, views, pieces = iter(row), [], []
            for piece in placeholder.split(sample):
                if piece == self.image_token:
                    views.append(next(images))
                elif piece == self.video_token:
                    frames = self._frames(next(rest), num_frames)
                    views += frames
                    piece = BETWEEN_IMAGES.join([self.image_token] * len(frames))
                pieces.append(piece)
            samples.append("".join(pieces))
            images_and_frames.append(views)
        return samples, images_and_frames

    def _with_frames(self, message: dict, num_frames: int | None) -> dict:
        """A message whose videos are images."""
        if not isinstance(message.get("content"), (list, tuple)):
            return message
        content = []
        for part in message["content"]:
            if part.get("type") == "video":
                source = next((part[key] for key in ("video", "path", "url") if part.get(key) is not None), None)
                if source is None:
                    raise ValueError(
                        f"A video needs a `path`, a `url`, or frames as `video`; got the keys {sorted(part)}."
                    )
                content += [{"type": "image", "image": frame} for frame in self._frames(source, num_frames)]
            else:
                content.append(part)
        return {**message, "content": content}

    def _frames(self, video, num_frames: int | None) -> list:
        """Images of a video."""
        if isinstance(video, (str, os.PathLike)):
            return read_frames(video, self.num_frames if num_frames is None else num_frames)
        if not (isinstance(video, (list, tuple)) or _is_array(video, 4)):
            raise ValueError(
                "A video must be a path, a URL, a list of frames or an array of 4 dimensions, got "
                f"{type(video).__name__}."
            )
        if len(video) == 0:
            raise ValueError("A video is given as a list without frames; give at least one.")
        return list(video) if num_frames is None else [video[index] for index in spread_evenly(len(video), num_frames)]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """As many placeholders as an image has features, and after a scene's last image those of its latents."""
        num_patches = int(image_inputs["image_grid_thw"][image_idx].prod())
        placeholders = self.image_token * (num_patches // self.image_processor.merge_size**2)
        if self.num_appended_tokens and image_idx + 1 in image_inputs["num_views"].cumsum(0).tolist():
            placeholders += BETWEEN_IMAGES + self.image_token * self.num_appended_tokens
        return placeholders

    def create_mm_token_type_ids(self, input_ids: list) -> list[list[int]]:
        """1 where an image's placeholder stands, else 0: latents have positions like text, as they have no place."""
        token_types = super().create_mm_token_type_ids(input_ids)
        if self.num_appended_tokens:
            for row in token_types:
                for index in np.flatnonzero(row)[-self.num_appended_tokens :]:
                    row[index] = 0
        return token_types


def _list_videos(videos) -> list:
    """Videos one by one; a list of images is one video."""
    if not isinstance(videos, (list, tuple)):
        return [videos]
    is_frame = [isinstance(each, PIL.Image.Image) or _is_array(each, 3) for each in videos]
    return [videos] if is_frame and all(is_frame) else list(videos)


def _is_array(value, num_dimensions: int) -> bool:
    return is_valid_image(value) and not isinstance(value, PIL.Image.Image) and value.ndim == num_dimensions
