"""Spa3-VLM as a model of lmms-eval, which finds it through this package's entry point `lmms_eval.models`.

    lmms-eval --model spa3_vlm --model_args pretrained=checkpoints/spa3-vlm-4b --tasks vsibench --batch_size 16
    accelerate launch --num_processes 8 -m lmms_eval --model spa3_vlm ...

Each question is asked about all visuals of its own document: images in order, or frames spread evenly over a video.
Images stand where the question has `<image>`, if it has one for each; else before the question. Questions that follow
the same visuals are answered together from their cached keys and values, as in `spa3r benchmark`. A plain Qwen2.5-VL
is asked in the same way. Only this module of the package needs lmms-eval.
"""

import hashlib
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from ...data_scripts.common.processes import load_ahead
from ...data_scripts.common.videos import VIDEO_SUFFIXES, read_frames
from ...modeling_spa3r.spa3_vlm.scene_session import SceneSession
from ..benchmark.conversations import answer_conversations
from ..benchmark.models import load_benchmark_model
from ..runs.distributed import PATIENCE

logger = logging.get_logger(__name__)

# For tasks that set no limit, as in the official evaluation.
MAX_NEW_TOKENS = 4096
# Options of a task that `generate` receives. Others, such as `image_aspect_ratio`, are for other models.
PASSED_ON = ("max_new_tokens", "min_new_tokens", "num_beams", "length_penalty", "repetition_penalty")
SAMPLING = ("temperature", "top_p", "top_k")
# lmms-eval's default for tasks that do not name a text that ends an answer. Its own Qwen models ignore it, too.
NO_END = "\n\n"
# Marks the place of an image.
PLACEHOLDER = "<image>"


@dataclass
class Scene:
    """Requests about the same visuals.

    Args:
        example (`Instance`): One of the requests.
        numbers (`dict`): Numbers of the requests in order, by their generation options as text.
    """

    example: Instance
    numbers: dict[str, list[int]] = field(default_factory=dict)


class Spa3VLM(lmms):
    """Answers the requests of lmms-eval.

    Args:
        pretrained (`str`): Folder or Hub name of a Spa3-VLM or a plain Qwen2.5-VL.
        dtype (`str`, *optional*): Type of the weights; by default as in the checkpoint.
        attn_implementation (`str`, *optional*): Attention; by default the library's choice.
        max_num_frames (`int`, *optional*, defaults to 32): Most frames of a video, spread evenly.
        batch_size (`int`, *optional*, defaults to 1): Most questions about the same visuals answered together.
        device (`str`, *optional*): Device; by default the accelerator of this process, or the CPU.
        device_map (`str`, *optional*):
            Another name for `device`. `auto` means the default, because each process holds the whole model.
    """

    is_simple = True  # lmms-eval then passes the text of a question and its visuals instead of a conversation

    def __init__(
        self,
        pretrained: str,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        max_num_frames: int = 32,
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
    ):
        super().__init__()
        for name, value in {"batch_size": batch_size, "max_num_frames": max_num_frames}.items():
            if not str(value).isdigit() or int(value) < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        self.batch_size, self.max_num_frames = int(batch_size), int(max_num_frames)
        self.accelerator = Accelerator(
            # Without an accelerator, processes find each other only if told that they run on CPUs.
            cpu=torch.accelerator.current_accelerator(check_available=True) is None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        place = device if device_map in (None, "auto") else device_map
        is_alone = self._world_size == 1
        self.device = torch.device(place) if is_alone and place is not None else self.accelerator.device
        self.model, self.processor = load_benchmark_model(pretrained, self.device, dtype, attn_implementation)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return answers in the order of the requests, with the whitespace around them."""
        answers = [""] * len(requests)
        scenes = self._group(requests)
        total = sum(len(numbers) for scene in scenes for numbers in scene.numbers.values())
        progress = tqdm(total=total, desc="Asking", unit="question", disable=self.rank != 0)
        for scene, loading in load_ahead(self._load, scenes):
            images, session = loading.result(), None
            for numbers in scene.numbers.values():
                options, ends = _read_options(requests[numbers[0]].args[1])
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    texts = [_split_at_images(requests[number].args[0], len(images)) for number in batch]
                    if images and not any(text for before in texts for text in before[:-1]):
                        session = session or SceneSession(self.model, self.processor, images)
                        tokens = session.generate([after for *_, after in texts], **options)
                    else:
                        tokens = self._generate(images, texts, options)
                    answered = self.processor.batch_decode(tokens, skip_special_tokens=True)
                    for number, text in zip(batch, answered, strict=True):
                        answers[number] = _cut(text, ends)
                    progress.update(len(batch))
        progress.close()
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError(
            "`generate_until_multi_round` is not supported by `spa3_vlm`; choose tasks with a single round."
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise NotImplementedError(
            "`loglikelihood` is not supported by `spa3_vlm`; choose tasks with `output_type: generate_until`."
        )

    def _group(self, requests: Sequence[Instance]) -> list[Scene]:
        """Group requests by their visuals, in the order of the first request about each."""
        scenes: dict[str, Scene] = {}
        progress = tqdm(requests, desc="Hashing visuals", disable=self.rank != 0)
        for number, request in enumerate(progress):
            if request.metadata.get("__padding_only__"):
                continue  # a copy for models whose processes must run in lockstep; its answer is discarded
            key = hashlib.sha256(pickle.dumps(self._visuals(request))).hexdigest()
            scene = scenes.setdefault(key, Scene(request))
            scene.numbers.setdefault(repr(request.args[1]), []).append(number)
        return list(scenes.values())

    def _visuals(self, request: Instance) -> list:
        """Return the images of a request's document, and the paths of its videos."""
        _, _, doc_to_visual, doc_id, task, split = request.args
        return doc_to_visual(self.task_dict[task][split][doc_id]) or []

    def _load(self, scene: Scene) -> list:
        images = []
        for visual in self._visuals(scene.example):
            is_video = isinstance(visual, str) and os.path.splitext(visual)[1].lower() in VIDEO_SUFFIXES
            images += read_frames(visual, self.max_num_frames) if is_video else [visual]
        return images

    def _generate(self, images: Sequence, texts: Sequence[list[str]], options: dict[str, Any]) -> Tensor:
        """Answer questions by a call of their own, each with its texts before, between and after the images.

        Returns:
            `torch.Tensor` of shape `(num_questions, num_new_tokens)`: The new tokens.
        """
        conversations = []
        for *before, after in texts:
            content = []
            for text, image in zip(before, images, strict=True):
                content += [{"type": "text", "text": text}] if text else []
                content.append({"type": "image", "image": image})
            conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": after}]}])
        return answer_conversations(self.model, self.processor, conversations, **options)


def manifest():
    """Describe the model to lmms-eval's registry."""
    # Imported late: the registry imports this module, which would not be complete yet.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="spa3_vlm", simple_class_path=f"{__name__}.{Spa3VLM.__name__}")


def _split_at_images(question: str, num_images: int) -> list[str]:
    """Return the texts before, between and after the images, of which the last is all that most questions have."""
    texts = question.split(PLACEHOLDER)
    if num_images and len(texts) == num_images + 1:
        return [text.strip() for text in texts]  # as tasks do that lay out a conversation themselves
    return [""] * num_images + ["".join(texts)]


def _read_options(asked: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options of `generate`, and the texts that end an answer. Greedy unless the task samples."""
    asked = {name: value for name, value in asked.items() if value is not None}
    until = asked.pop("until", [])
    ends = [end for end in ([until] if isinstance(until, str) else until) if end and end != NO_END]
    # A temperature alone means sampling, unless it is zero.
    is_sampled = asked.get("temperature") != 0 and bool(asked.get("do_sample", asked.get("temperature")))
    options = {"max_new_tokens": MAX_NEW_TOKENS, "num_beams": 1, "do_sample": is_sampled}
    options |= {name: asked[name] for name in PASSED_ON if name in asked}
    # The library warns about sampling options without sampling.
    options |= {name: asked[name] if is_sampled else None for name in SAMPLING if name in asked or not is_sampled}
    if unknown := sorted(asked.keys() - {*PASSED_ON, *SAMPLING, "do_sample"}):
        logger.warning_once(f"`spa3_vlm` ignores the generation options {', '.join(unknown)}.")
    return options, ends


def _cut(text: str, ends: Sequence[str]) -> str:
    """Cut a text at the first of its ends."""
    for end in ends:
        text = text.split(end)[0]
    return text
