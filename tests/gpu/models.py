"""The models and inputs of `make gpu`: the shipped ones for correctness, full size with random weights for figures."""

import numpy as np
import torch
from gpu.job import Job
from PIL import Image
from tiny_spa3_vlm import conversation, prepare
from transformers import AutoProcessor, BatchFeature

from spa3r import (
    Spa3RForPreTraining,
    Spa3VLMForConditionalGeneration,
    Spa3VLMImageProcessor,
    Spa3VLMProcessor,
    VGGTForGeometry,
    nano_path,
)
from spa3r.configuration import Spa3RConfig, Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

QUESTION = "These are frames of a video. How many chairs are there in the room, the two by the window not counted?"
# One of each row of a batch.
QUESTIONS = (QUESTION, "How long is the table, in cm?", "Is the bed left of the door?")
# Of the shipped models.
NANO_SIZE = (84, 112)
# Of the byte tokenizer, whose ids replace those of Qwen's.
TOKENS = {"vision_start_token_id": 259, "vision_end_token_id": 260, "image_token_id": 261, "video_token_id": 262}


def nano_spa3r(device: torch.device | str, dtype: torch.dtype = torch.float32) -> Spa3RForPreTraining:
    """The shipped Spa3R with its teachers."""
    model = Spa3RForPreTraining.from_pretrained(nano_path("spa3r-nano"), dtype=dtype)
    model.freeze_teachers()
    return model.to(device).eval()


def nano_vggt(device: torch.device | str, dtype: torch.dtype = torch.float32) -> VGGTForGeometry:
    """The VGGT of the shipped Spa3R; its head of points has random weights."""
    spa3r = nano_spa3r("cpu")
    torch.manual_seed(0)
    vggt = VGGTForGeometry(spa3r.config.vggt_config)
    vggt.vggt, vggt.camera_head, vggt.depth_head = spa3r.model.vggt, spa3r.camera_head, spa3r.depth_head
    return vggt.to(device, dtype).eval()


def nano_vlm(device: torch.device | str, dtype: torch.dtype = torch.float32) -> Spa3VLMForConditionalGeneration:
    """The shipped Spa3-VLM."""
    return Spa3VLMForConditionalGeneration.from_pretrained(nano_path("spa3-vlm-nano"), dtype=dtype).to(device).eval()


def photos(num_views: int, height: int, width: int, seed: int = 0) -> list[Image.Image]:
    """Smooth photos."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (num_views, 9, 12, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC) for pixels in coarse]


def nano_inputs(*rows: int) -> BatchFeature:
    """A batch of rows, each of which asks its question about a scene of its own, with another number of views."""
    conversations = [conversation(photos(4 + row, *NANO_SIZE, row), QUESTIONS[row]) for row in rows]
    return prepare(AutoProcessor.from_pretrained(nano_path("spa3-vlm-nano")), conversations)


def base_config(job: Job) -> Spa3RConfig:
    """The paper's Spa3R with VGGT-1B and DINOv3 ViT-L."""
    return Spa3RConfig(**load_preset("spa3r-tiny" if job.is_tiny else "spa3r-base"))


def view_size(job: Job) -> tuple[int, int]:
    """Height and width of views at the paper's settings."""
    return (42, 56) if job.is_tiny else (392, 518)


def full_vlm(job: Job) -> Spa3VLMForConditionalGeneration:
    """Spa3-VLM-4B of random weights in bfloat16, with the ids of the byte tokenizer."""
    preset = load_preset("spa3-vlm-tiny" if job.is_tiny else "spa3-vlm-4b")
    config = Spa3VLMConfig(**preset)
    if not job.is_tiny:
        vlm = config.vlm_config.to_dict() | TOKENS
        vlm["text_config"] |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 256}
        config = Spa3VLMConfig(**(preset | {"vlm_config": vlm}))
    model = job.build(lambda: Spa3VLMForConditionalGeneration(config), torch.bfloat16)
    with torch.no_grad():
        # The adapter starts at zero, which would make it too easy.
        model.model.fusion.adapter.fc2.weight.normal_(std=0.02)
    return model


def full_processor(job: Job) -> Spa3VLMProcessor:
    return Spa3VLMProcessor(Spa3VLMImageProcessor(image_width=view_size(job)[1]), byte_tokenizer())


def full_photos(job: Job, num_views: int = 8) -> list[Image.Image]:
    return photos(2, 48, 64) if job.is_tiny else photos(num_views, 480, 640)


def full_inputs(job: Job, processor: Spa3VLMProcessor) -> BatchFeature:
    """A question about one scene of 8 photos, on the device."""
    return prepare(processor, conversation(full_photos(job), QUESTION)).to(job.device)
