"""Prepares text, images and videos of scenes for `Spa3VLMForConditionalGeneration`."""

import os
import re
import sys
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
from transformers import BatchFeature, ProcessingKwargs, ProcessorMixin, TextKwargs

from ...data_scripts.common.videos import read_frames, spread_evenly
from ..library import MultiModalData, is_valid_image
from ..scene_images import list_scenes

__all__ = ["CHAT_TEMPLATE", "PLAIN_CHAT_TEMPLATE", "Spa3VLMProcessor"]

CONTENT = (
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}"
    "{% else %}{{ raise_exception('A part of a message must be an image, a video or text, got the type `' ~ part.type"
    " ~ '`.') }}{% endif %}"
    "{% endfor %}{% endif %}"
)
MESSAGES = (
    "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}"
    "{% generation %}" + CONTENT + "<|im_end|>\n{% endgeneration %}"
    "{% else %}" + CONTENT + "<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen's format. `generation` marks the answers, whose tokens count in the loss as in the official training.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}" + MESSAGES
)
# Qwen3-VL's format has no message of the system but a given one.
PLAIN_CHAT_TEMPLATE = "{% for message in messages %}" + MESSAGES
BETWEEN_IMAGES = "<|vision_end|><|vision_start|>"
# How frames are taken from a video. A video becomes images, so its other options are those of images.
VIDEO_OPTIONS = ("num_frames", "fps", "do_sample_frames")
SPECIAL_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


class Spa3VLMProcessor(ProcessorMixin):
    r"""Prepares text and images of scenes.

    All images of a row show one scene, and the first is its reference view. A video becomes `num_frames` images that
    are spread evenly over it.

    Args:
        image_processor (`Spa3VLMImageProcessor`): Prepares the images.
        tokenizer (`PreTrainedTokenizerBase`): Qwen's, or one with its special tokens.
        chat_template (`str`, *optional*):
            Jinja template of a conversation. Defaults to `CHAT_TEMPLATE`, Qwen2.5-VL's; Qwen3-VL's is
            `PLAIN_CHAT_TEMPLATE`.
        num_frames (`int`, *optional*, defaults to 32):
            Number of frames to take from a video file. A video given as images keeps all of them.
        num_appended_tokens (`int`, *optional*, defaults to 0):
            Number of placeholders for a scene's latents after its last image; `Spa3VLMConfig.num_appended_tokens`.

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
        if "image_grid_thw" not in image_processor.model_input_names:
            raise ValueError(
                f"`image_processor` must be a `Spa3VLMImageProcessor`, got a `{type(image_processor).__name__}`; in a "
                "checkpoint of an older version, correct `image_processor_type` in its processor_config.json."
            )
        self.num_frames = num_frames
        self.num_appended_tokens = num_appended_tokens
        token_ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
        missing = [token for token, index in token_ids.items() if index in (None, tokenizer.unk_token_id)]
        if missing:
            raise ValueError(
                f"`tokenizer` lacks the tokens {missing}; use the tokenizer of a Qwen-VL checkpoint, or add these "
                "special tokens."
            )
        self.image_token, self.video_token = SPECIAL_TOKENS[:2]
        self.image_token_id, self.video_token_id = token_ids[self.image_token], token_ids[self.video_token]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the outputs that the model takes."""
        return [*super().model_input_names, "mm_token_type_ids"]

    def to_dict(self) -> dict[str, Any]:
        """Add this class to the saved settings.

        Without `auto_map`, a process that has not imported this package gets a bare tokenizer from `AutoProcessor`,
        and no error.
        """
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
        """Render a conversation, and tokenize it if asked; see `ProcessorMixin.apply_chat_template`.

        A message holds parts: text as `{"type": "text", "text": ...}`, an image as `{"type": "image", ...}` with
        `image`, `path`, `url` or `base64`, and a video as `{"type": "video", ...}` with `video`, `path` or `url`. The
        frames of a video replace it as images. `processor_kwargs` are those of `__call__`; options of videos may also
        be given directly.
        """
        if len(conversation) == 0:
            raise ValueError(f"`conversation` is {conversation!r}, without a message; give at least one.")
        processor_kwargs = dict(processor_kwargs or {})
        if tokenize:
            # Before rendering, so that the answers are marked where they stand once the frames are inserted.
            names = [name for name in (*VIDEO_OPTIONS, "videos_kwargs") if name in kwargs]
            processor_kwargs = {name: kwargs.pop(name) for name in names} | processor_kwargs
            sampling = _take_video_options(processor_kwargs)
            is_batch = isinstance(conversation[0], (list, tuple))
            conversation = [
                [self._replace_videos(message, sampling) for message in messages]
                for messages in (conversation if is_batch else [conversation])
            ]
            conversation = conversation if is_batch else conversation[0]
        # Marking the answers reads the place of each token many times, which is slow in tensors: make them afterwards.
        tensor_type = kwargs.get("return_tensors", "auto")
        marks_answers = tokenize and kwargs.get("return_assistant_tokens_mask") and kwargs.get("return_dict")
        if marks_answers and tensor_type != "auto":
            kwargs["return_tensors"] = None
        output = super().apply_chat_template(
            conversation, chat_template=chat_template, tokenize=tokenize, processor_kwargs=processor_kwargs, **kwargs
        )
        return output.convert_to_tensors(tensor_type) if marks_answers and tensor_type != "auto" else output

    def __call__(self, images=None, text=None, videos=None, audio=None, **kwargs) -> BatchFeature:
        """Prepare a batch of texts with their images and videos.

        Args:
            images (*optional*):
                A list of images for each row, or one list of the images of all rows in the order of their
                placeholders. See `Spa3VLMImageProcessor` for the kinds of images.
            text (`str` or `list[str]`, *optional*): Text of each row, with one `<|image_pad|>` per image.
            videos (*optional*):
                One video per `<|video_pad|>` in the text, in order: a path, a URL, an array of frames or a list of
                frames.
            kwargs (*optional*):
                Options of the tokenizer and of the image processor, as they are or in `text_kwargs`, `images_kwargs`
                or `common_kwargs`; and of videos, as they are or in `videos_kwargs`: `num_frames` (`int`), the number
                of frames to take from each, or `fps` (`float`), how many for each second of a file, evenly spread; or
                `do_sample_frames=False`, which takes all. By default `self.num_frames` are taken from a file, and all
                from a video given as images.

        Returns:
            `BatchFeature`: `input_ids`, `attention_mask` and `mm_token_type_ids` of shape
            `(batch_size, sequence_length)`, and the outputs of `Spa3VLMImageProcessor`, with one scene per row.

        Raises:
            ValueError: If placeholders and images differ in number, an image or video cannot be read, or an option is
                unknown.
        """
        sampling = _take_video_options(kwargs)
        self._check_options(kwargs)
        if audio is not None:
            raise ValueError("This model takes no `audio`; pass text, images and videos only.")
        if text is None and videos is not None:
            raise ValueError(f"`videos` need `text`, got `None`; pass text with one `{self.video_token}` per video.")
        if text is None:
            return super().__call__(images=images, **kwargs)
        text = [text] if isinstance(text, str) else text
        if not (isinstance(text, (list, tuple)) and text and all(isinstance(sample, str) for sample in text)):
            raise ValueError(f"`text` must be a string or a non-empty list of strings, got {str(text)[:200]}.")
        rows = self._group_by_rows(text, images)
        if videos is not None:
            text, rows = self._insert_frames(text, rows, _list_videos(videos), sampling)
        return super().__call__(images=rows if any(rows) else None, text=list(text), **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """Check that each row has as many images as placeholders; transformers calls this hook.

        `text` comes without the control tokens that `sanitize_control_tokens` made plain text.
        """
        if text is not None:
            self._check_counts(text, images or [[] for _ in text])
        super().validate_inputs(images=images, text=text, **kwargs)

    def _check_options(self, options: dict):
        """Refuse unknown options, which transformers ignores with a warning."""
        known = {*ProcessingKwargs.__annotations__, *TextKwargs.__annotations__}
        known = known.union(self.image_processor.valid_kwargs.__annotations__) - {"audio_kwargs"}
        nested = [options.get(name, {}) for name in ("text_kwargs", "images_kwargs", "common_kwargs")]
        given = {*options, *(name for part in nested for name in part)} - {"common_kwargs"}
        if unknown := sorted(given - known):
            raise ValueError(
                f"The processor has no options {unknown}; use options of videos (`num_frames`, `fps`, "
                "`do_sample_frames`), of the tokenizer (`padding`, `max_length`, ...) or of the image processor "
                "(`image_width`, ...)."
            )

    def _group_by_rows(self, text: list[str], images) -> list[list]:
        """Assign the images to the rows of text."""
        if images is None:
            return [[] for _ in text]
        scenes, is_nested = list_scenes(self.image_processor.fetch_images(images))
        if is_nested or len(text) == 1:
            return scenes
        (images,) = scenes
        self._check_total("images", len(images), self.image_token, text)
        rest = iter(images)
        return [list(islice(rest, sample.count(self.image_token))) for sample in text]

    def _check_total(self, name: str, number: int, token: str, text: list[str]):
        """Check that all texts together have one placeholder for each image or video."""
        expected = sum(sample.count(token) for sample in text)
        if number != expected:
            raise ValueError(
                f"`{name}` holds {number}, but the {len(text)} texts have {expected} `{token}`; put one in the text "
                "for each."
            )

    def _check_counts(self, text: list[str], rows: list[list]):
        if len(rows) != len(text):
            raise ValueError(
                f"`images` has {len(rows)} rows, but `text` has {len(text)}; give a list of images per text, or the "
                "images of all texts in one list."
            )
        for index, (sample, row) in enumerate(zip(text, rows, strict=True)):
            count = sample.count(self.image_token)
            if count != len(row):
                raise ValueError(
                    f"Row {index} has {len(row)} images, but its text has {count} `{self.image_token}`; put exactly "
                    "one in the text for each image."
                )
            if self.image_token * 2 in sample:
                raise ValueError(
                    f"Row {index} has two adjacent `{self.image_token}`, which would count as one image; put each "
                    "between `<|vision_start|>` and `<|vision_end|>`."
                )

    def _insert_frames(
        self, text: list[str], rows: list[list], videos: list, sampling: dict[str, Any]
    ) -> tuple[list[str], list[list]]:
        """Insert the frames of videos into the images of each row, and their placeholders into its text."""
        self._check_counts(text, rows)
        self._check_total("videos", len(videos), self.video_token, text)
        placeholder = re.compile(f"({re.escape(self.image_token)}|{re.escape(self.video_token)})")
        rest = iter(videos)
        samples, images_and_frames = [], []
        for sample, row in zip(text, rows, strict=True):
            images, views, pieces = iter(row), [], []
            for piece in placeholder.split(sample):
                if piece == self.image_token:
                    views.append(next(images))
                elif piece == self.video_token:
                    frames = self._frames_of(next(rest), **sampling)
                    views += frames
                    piece = BETWEEN_IMAGES.join([self.image_token] * len(frames))
                pieces.append(piece)
            samples.append("".join(pieces))
            images_and_frames.append(views)
        return samples, images_and_frames

    def _replace_videos(self, message: dict, sampling: dict[str, Any]) -> dict:
        """Replace the videos of a message with their frames."""
        if not isinstance(message.get("content"), (list, tuple)):
            return message
        content = []
        for part in message["content"]:
            if part.get("type") == "video":
                source = next((part[key] for key in ("video", "path", "url") if part.get(key) is not None), None)
                if source is None:
                    raise ValueError(
                        f"A video part has the keys {sorted(part)}; give a `path`, a `url`, or frames as `video`."
                    )
                content += [{"type": "image", "image": frame} for frame in self._frames_of(source, **sampling)]
            else:
                content.append(part)
        return {**message, "content": content}

    def _frames_of(self, video, num_frames: int | None, fps: float | None, do_sample_frames: bool | None) -> list:
        """The frames of a video as images; see `__call__` for the options."""
        is_file = isinstance(video, (str, os.PathLike))
        if do_sample_frames is False:
            num_frames = sys.maxsize
        elif num_frames is None and fps is None and (is_file or do_sample_frames):
            num_frames = self.num_frames
        if is_file:
            return read_frames(video, num_frames, fps)
        if not (isinstance(video, (list, tuple)) or _is_array(video, 4)):
            raise ValueError(
                f"`videos` holds a {type(video).__name__}; give each video as path, URL, list of frames, or array of "
                "4 dimensions."
            )
        if len(video) == 0:
            raise ValueError("`videos` holds a video of 0 frames; give at least one frame.")
        if fps is not None:
            raise ValueError(
                f"`fps` is {fps}, but a video is given as frames, whose rate is not known; use `num_frames`, or give "
                "the file."
            )
        return list(video) if num_frames is None else [video[index] for index in spread_evenly(len(video), num_frames)]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """Repeat the placeholder for each feature of an image, and add those of the latents after a scene's last."""
        num_patches = int(image_inputs["image_grid_thw"][image_idx].prod())
        placeholders = self.image_token * (num_patches // self.image_processor.merge_size**2)
        if self.num_appended_tokens and image_idx + 1 in image_inputs["num_views"].cumsum(0).tolist():
            placeholders += BETWEEN_IMAGES + self.image_token * self.num_appended_tokens
        return placeholders

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs) -> MultiModalData:
        """Count placeholders of images that are not read yet; vLLM calls this hook.

        Args:
            image_sizes (`list[tuple[int, int]]`, *optional*): Height and width in pixels of each image of one scene.
            video_sizes (`list[tuple[int, int, int]]`, *optional*): Number of frames, height and width of each video.
        """
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        count, merged = self.image_processor.get_number_of_image_patches, self.image_processor.merge_size**2
        counts = {}
        if image_sizes is not None:
            patches = [count(height, width, options) for height, width in image_sizes]
            tokens = [number // merged for number in patches]
            if tokens:
                tokens[-1] += self.num_appended_tokens
            counts |= {"num_image_tokens": tokens, "num_image_patches": patches}
        if video_sizes is not None:
            counts["num_video_tokens"] = [
                number * (count(height, width, options) // merged) + self.num_appended_tokens
                for number, height, width in video_sizes
            ]
        return MultiModalData(**counts)

    def create_mm_token_type_ids(self, input_ids: list) -> list[list[int]]:
        """Mark image placeholders with 1. Appended latents count as text (0): they have no place in an image."""
        token_types = super().create_mm_token_type_ids(input_ids)
        if self.num_appended_tokens:
            for row in token_types:
                for index in np.flatnonzero(row)[-self.num_appended_tokens :]:
                    row[index] = 0
        return token_types


def _take_video_options(options: dict) -> dict[str, Any]:
    """Take `VIDEO_OPTIONS` out of the options of a call: as they are, in `videos_kwargs` or in `common_kwargs`."""
    common = dict(options.pop("common_kwargs", None) or {})
    nested = {name: value for name, value in (options.pop("videos_kwargs", None) or {}).items() if value is not None}
    if unknown := sorted(nested.keys() - set(VIDEO_OPTIONS)):
        raise ValueError(
            f"`videos_kwargs` has no options {unknown}, because the frames of a video are prepared as images; use "
            f"{', '.join(f'`{name}`' for name in VIDEO_OPTIONS)}, and `images_kwargs` for the rest."
        )
    if twice := sorted(nested.keys() & options.keys()):
        raise ValueError(f"The options {twice} are given in `videos_kwargs` and beside it; give each once.")
    nested = common | nested | options
    chosen = {name: nested.get(name) for name in VIDEO_OPTIONS}
    for name in VIDEO_OPTIONS:
        options.pop(name, None)
        common.pop(name, None)
    if common:
        options["common_kwargs"] = common
    given = [f"`{name}={value}`" for name, value in chosen.items() if value is not None and value is not True]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} contradict each other; give one of them.")
    return chosen


def _list_videos(videos) -> list:
    """List the videos; a list of images is one video."""
    if not isinstance(videos, (list, tuple)):
        return [videos]
    is_frame = [isinstance(each, PIL.Image.Image) or _is_array(each, 3) for each in videos]
    return [videos] if is_frame and all(is_frame) else list(videos)


def _is_array(value, num_dimensions: int) -> bool:
    return is_valid_image(value) and not isinstance(value, PIL.Image.Image) and value.ndim == num_dimensions
