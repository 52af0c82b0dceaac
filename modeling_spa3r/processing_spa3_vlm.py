"""Text and images of scenes, in one call, as tensors for `Spa3VLMForConditionalGeneration`."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
from transformers import BatchFeature, ProcessorMixin

from .video_frames import read_frames

__all__ = ["CHAT_TEMPLATE", "Spa3VLMProcessor"]

CONTENT = (
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
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


class Spa3VLMProcessor(ProcessorMixin):
    r"""Prepares text and images of scenes: all images of a row are views of one scene, the first its reference.

    A video is a list of images: `num_frames` of it, spread evenly, each an image of its own in the text.

    Args:
        image_processor (`Spa3RImageProcessor`): Prepares the images.
        tokenizer (`PreTrainedTokenizerBase`): Qwen's, or one with its special tokens.
        chat_template (`str`, *optional*): Jinja template of a conversation; `CHAT_TEMPLATE` by default.
        num_frames (`int`, *optional*, defaults to 32): Frames taken of a video file; all of those given as images.
        num_appended_tokens (`int`, *optional*, defaults to 0):
            Placeholders for the latents of a scene after its last image; `Spa3VLMConfig.num_appended_tokens`.

    Example:

    ```python
    >>> from transformers import AutoProcessor
    >>> import spa3r.modeling_spa3r  # registers the Auto classes

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
        **kwargs,
    ):
        self.num_frames = num_frames
        self.num_appended_tokens = num_appended_tokens
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(
                f"The tokenizer has no token `{self.image_token}`; use that of a Qwen2.5-VL checkpoint, or add it and "
                "the other special tokens of Qwen2.5-VL."
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of all that is returned."""
        return [*super().model_input_names, "mm_token_type_ids"]

    def to_dict(self) -> dict[str, Any]:
        """As the library's; names the class for a process that has not imported this package, which the library would
        give a bare tokenizer without a word."""
        return super().to_dict() | {"auto_map": {"AutoProcessor": "processing_spa3_vlm.Spa3VLMProcessor"}}

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):
        """See `ProcessorMixin.apply_chat_template`; a part `{"type": "video", "path": ...}` becomes images, of which
        `processor_kwargs={"num_frames": ...}` tells the number."""
        processor_kwargs = dict(kwargs.pop("processor_kwargs", None) or {})
        num_frames = processor_kwargs.pop("num_frames", self.num_frames)
        is_batch = len(conversation) > 0 and isinstance(conversation[0], (list, tuple))
        conversations = [
            [_with_frames(message, num_frames) for message in messages]
            for messages in (conversation if is_batch else [conversation])
        ]
        return super().apply_chat_template(
            conversations if is_batch else conversations[0],
            chat_template=chat_template,
            processor_kwargs=processor_kwargs,
            **kwargs,
        )

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Turn videos into images, and group the images by rows: a row is a scene."""
        if audio is not None:
            raise ValueError("`audio` is given, but this model takes text, images and videos only.")
        if text is None:
            return super().prepare_inputs_layout(images=images, text=text, videos=videos, **kwargs)
        text = [text] if isinstance(text, str) else list(text)
        if videos is not None:
            num_frames = kwargs.get("num_frames", kwargs.get("videos_kwargs", {}).get("num_frames", self.num_frames))
            text, images = self._expand_videos(text, _flatten_images(images), _list_videos(videos), num_frames)
        if images is not None:
            images = self._group_by_rows(text, images)
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def _expand_videos(
        self, text: list[str], images: list, videos: list, num_frames: int
    ) -> tuple[list[str], list[list]]:
        """Put as many image placeholders as there are frames where a video's is, and the frames among the images."""
        number = sum(sample.count(self.video_token) for sample in text)
        if number != len(videos):
            raise ValueError(
                f"The text has {number} `{self.video_token}` for {len(videos)} videos; give one video for each."
            )
        frames_of, images_of = iter(videos), iter(images)
        one_image = f"<|vision_start|>{self.image_token}<|vision_end|>"
        place = re.compile(
            f"{re.escape(self.image_token)}|(?:<\\|vision_start\\|>)?{re.escape(self.video_token)}(?:<\\|vision_end\\|>)?"
        )
        rows, row_images = [], []
        for sample in text:
            row = []

            def expand(match: re.Match, row: list = row) -> str:
                if match.group() == self.image_token:
                    row.extend(_next_of(images_of))
                    return match.group()
                frames = _frames(next(frames_of), num_frames)
                row.extend(frames)
                return one_image * len(frames)

            rows.append(place.sub(expand, sample))
            row_images.append(row)
        if left := len(list(images_of)):
            raise ValueError(f"{left} of {len(images)} images have no `{self.image_token}` in the text.")
        return rows, row_images

    def _group_by_rows(self, text: list[str], images) -> list[list]:
        counts = [sample.count(self.image_token) for sample in text]
        if isinstance(images, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in images):
            given = [len(row) for row in images]
            if given != counts:
                raise ValueError(
                    f"The rows of `images` hold {given} images, but the texts have {counts} `{self.image_token}`; "
                    "give each row one placeholder for each of its images."
                )
            return [list(row) for row in images]
        flat = _flatten_images(images)
        if sum(counts) != len(flat):
            raise ValueError(
                f"There are {len(flat)} images, but the text has {sum(counts)} `{self.image_token}`; give one for "
                "each."
            )
        rest = iter(flat)
        return [[next(rest) for _ in range(count)] for count in counts]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """As many placeholders as an image has features, and after a scene's last image those of its latents."""
        num_patches = int(image_inputs["image_grid_thw"][image_idx].prod())
        placeholders = self.image_token * (num_patches // self.image_processor.merge_size**2)
        if self.num_appended_tokens and image_idx + 1 in image_inputs["num_views"].cumsum(0).tolist():
            placeholders += "<|vision_end|><|vision_start|>" + self.image_token * self.num_appended_tokens
        return placeholders

    def create_mm_token_type_ids(self, input_ids: list) -> list[list[int]]:
        """1 where an image's placeholder stands, else 0: latents have positions like text, as they have no place."""
        token_types = super().create_mm_token_type_ids(input_ids)
        for row in token_types if self.num_appended_tokens else ():
            images = np.flatnonzero(row)
            for index in images[len(images) - self.num_appended_tokens :] if len(images) else ():
                row[index] = 0
        return token_types

    def __call__(self, images=None, text=None, videos=None, audio=None, **kwargs) -> BatchFeature:
        """Prepare a batch.

        Args:
            images (*optional*):
                Images of all rows in the order of their placeholders, or a list of them for each row; see
                `Spa3RImageProcessor` for what an image can be.
            text (`str` or `list[str]`, *optional*): One for each row, with a `<|image_pad|>` for each image.
            videos (*optional*):
                One or a list: a file, a URL, or a list of frames, for each `<|video_pad|>` in the text.
            num_frames (`int`, *optional*): Frames to take of a video file.

        Returns:
            `BatchFeature`: `input_ids`, `attention_mask` and `mm_token_type_ids` of shape
            `(batch_size, sequence_length)`, and what `Spa3RImageProcessor` returns, with `num_views` of each row.

        Raises:
            ValueError: If placeholders and images differ in number, or an image or video cannot be read.
        """
        return super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)


def _with_frames(message: dict, num_frames: int) -> dict:
    """A message whose videos are images."""
    if not isinstance(message.get("content"), (list, tuple)):
        return message
    content = []
    for part in message["content"]:
        if isinstance(part, dict) and part.get("type") == "video":
            source = next((part[key] for key in ("video", "path", "url") if part.get(key) is not None), None)
            if source is None:
                raise ValueError(
                    f"A video needs a `path`, a `url`, or frames as `video`; got the keys {sorted(part)}."
                )
            content += [{"type": "image", "image": frame} for frame in _frames(source, num_frames)]
        else:
            content.append(part)
    return {**message, "content": content}


def _frames(video, num_frames: int) -> list:
    """Images of a video; frames that are given as such are all taken."""
    return read_frames(video, num_frames) if isinstance(video, (str, os.PathLike)) else list(video)


def _flatten_images(images) -> list:
    if images is None:
        return []
    if isinstance(images, (str, os.PathLike, PIL.Image.Image)) or getattr(images, "ndim", None) == 3:
        return [images]
    return [image for row in images for image in (row if isinstance(row, (list, tuple)) else [row])]


def _list_videos(videos) -> list:
    """Videos one by one; a list of images is one video."""
    is_one = isinstance(videos, (str, os.PathLike)) or getattr(videos, "ndim", None) == 4
    if is_one or all(isinstance(frame, PIL.Image.Image) or getattr(frame, "ndim", None) == 3 for frame in videos):
        return [videos]
    return list(videos)


def _next_of(images: Iterator) -> Sequence:
    try:
        return [next(images)]
    except StopIteration:
        raise ValueError("The text has more `<|image_pad|>` than there are images; give one for each.") from None
