"""Spa3R and Spa3-VLM for Hugging Face Transformers.

Importing this package registers its classes with transformers' Auto classes.
"""

import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

__all__ = [
    "SceneSession",
    "Spa3RConfig",
    "Spa3RForPreTraining",
    "Spa3RImageProcessor",
    "Spa3RModel",
    "Spa3RTeacherConfig",
    "Spa3VLMConfig",
    "Spa3VLMForConditionalGeneration",
    "Spa3VLMImageProcessor",
    "Spa3VLMModel",
    "Spa3VLMProcessor",
    "VGGTConfig",
    "VGGTForGeometry",
    "VGGTModel",
    "compile_blocks",
    "nano_path",
]

__version__ = version("spa3r")
# Scripts beside this file, for `accelerate launch`.
LAUNCHERS = {"ask.py", "benchmark.py", "grpo.py", "pretrain.py", "sft.py"}


def _is_asked_for_help() -> bool:
    """Whether this is `spa3r VERB --help`, by `python -m spa3r` or by a launcher, which needs none of the models."""
    program = Path(sys.argv[0])
    is_launcher = program.name in LAUNCHERS and program.resolve().parent == Path(__file__).resolve().parent
    is_command = is_launcher or program.name == "spa3r" or ("-m", "spa3r") in pairwise(sys.orig_argv)
    return is_command and not {"--help", "-h"}.isdisjoint(sys.argv)


if not _is_asked_for_help():
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForPreTraining,
        AutoProcessor,
    )

    from .configuration.configuration_spa3_vlm import Spa3VLMConfig
    from .configuration.configuration_spa3r import Spa3RConfig, Spa3RTeacherConfig
    from .configuration.configuration_vggt import VGGTConfig
    from .modeling_spa3r.compilation import compile_blocks
    from .modeling_spa3r.nano import nano_path
    from .modeling_spa3r.spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
    from .modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration, Spa3VLMModel
    from .modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
    from .modeling_spa3r.spa3_vlm.scene_session import SceneSession
    from .modeling_spa3r.spa3r.image_processing_spa3r import Spa3RImageProcessor
    from .modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining, Spa3RModel
    from .modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry, VGGTModel

    AutoConfig.register(VGGTConfig.model_type, VGGTConfig)
    AutoModel.register(VGGTConfig, VGGTModel)
    AutoConfig.register(Spa3RConfig.model_type, Spa3RConfig)
    AutoModel.register(Spa3RConfig, Spa3RModel)
    AutoModelForPreTraining.register(Spa3RConfig, Spa3RForPreTraining)
    AutoConfig.register(Spa3VLMConfig.model_type, Spa3VLMConfig)
    AutoModel.register(Spa3VLMConfig, Spa3VLMModel)
    AutoModelForImageTextToText.register(Spa3VLMConfig, Spa3VLMForConditionalGeneration)
    AutoModelForMultimodalLM.register(Spa3VLMConfig, Spa3VLMForConditionalGeneration)
    AutoImageProcessor.register(Spa3RConfig, image_processor_classes={"pil": Spa3RImageProcessor})
    AutoImageProcessor.register(Spa3VLMConfig, image_processor_classes={"pil": Spa3VLMImageProcessor})
    AutoProcessor.register(Spa3VLMConfig, Spa3VLMProcessor)
