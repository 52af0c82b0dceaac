"""Every supported base of Spa3-VLM, tiny, assembled from its configuration, with its own processor."""

import torch
from tiny_spa3_vlm import tiny_config
from transformers import AutoModelForImageTextToText, PreTrainedModel

from spa3r import Spa3RModel, Spa3VLMForConditionalGeneration, Spa3VLMProcessor
from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.assemble import assemble_spa3_vlm, make_processor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

QWEN2, QWEN3 = (load_preset(name)["vlm_config"] for name in ("spa3-vlm-tiny", "spa3-vlm-qwen3-tiny"))
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# The configuration of each base, whose tokens are those of a byte tokenizer.
VLM_CONFIGS = {
    "qwen2_vl": QWEN2
    | {"model_type": "qwen2_vl", "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}},
    "qwen2_5_vl": QWEN2,
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": QWEN3 | {"model_type": "qwen3_vl_moe", "text_config": QWEN3["text_config"] | EXPERTS},
}


def tiny_base(base: str) -> PreTrainedModel:
    """A base with its head, whose random weights are large enough for its tokens to depend on the images."""
    torch.manual_seed(1)
    vlm = AutoModelForImageTextToText.from_config(Spa3VLMConfig(vlm_config=dict(VLM_CONFIGS[base])).vlm_config)
    return enlarge(vlm).eval()


def assembled(base: str, **settings) -> Spa3VLMForConditionalGeneration:
    """A Spa3-VLM with a fresh adapter."""
    torch.manual_seed(2)
    return assemble_spa3_vlm(tiny_base(base), Spa3RModel(tiny_config().spatial_config), **settings)


def enlarge(module: torch.nn.Module, size: float = 0.2) -> torch.nn.Module:
    """Add random numbers to the weights of a module."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.add_(size * torch.randn_like(parameter))
    return module


def processor_of(model: Spa3VLMForConditionalGeneration) -> Spa3VLMProcessor:
    """The processor of a model, for images of 56 pixels width, and with fewer pixels at least than the base's own."""
    processor = make_processor(model.config, byte_tokenizer(), image_width=56)
    processor.image_processor.size["shortest_edge"] = 32**2
    return processor
