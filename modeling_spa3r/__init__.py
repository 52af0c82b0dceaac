"""Models and processors; importing this package registers them with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoProcessor,
)

from ..configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..configuration.configuration_spa3r import Spa3RConfig
from ..configuration.configuration_vggt import VGGTConfig
from .image_processing_spa3r import Spa3RImageProcessor
from .modeling_spa3_vlm import Spa3VLMForConditionalGeneration, Spa3VLMModel
from .modeling_spa3r import Spa3RForPreTraining, Spa3RModel
from .modeling_vggt import VGGTForGeometry, VGGTModel
from .processing_spa3_vlm import Spa3VLMProcessor
from .scene_session import SceneSession

__all__ = [
    "SceneSession",
    "Spa3RForPreTraining",
    "Spa3RImageProcessor",
    "Spa3RModel",
    "Spa3VLMForConditionalGeneration",
    "Spa3VLMModel",
    "Spa3VLMProcessor",
    "VGGTForGeometry",
    "VGGTModel",
]

AutoConfig.register(VGGTConfig.model_type, VGGTConfig)
AutoModel.register(VGGTConfig, VGGTModel)
AutoConfig.register(Spa3RConfig.model_type, Spa3RConfig)
AutoModel.register(Spa3RConfig, Spa3RModel)
AutoModelForPreTraining.register(Spa3RConfig, Spa3RForPreTraining)
AutoConfig.register(Spa3VLMConfig.model_type, Spa3VLMConfig)
AutoModel.register(Spa3VLMConfig, Spa3VLMModel)
AutoModelForImageTextToText.register(Spa3VLMConfig, Spa3VLMForConditionalGeneration)
AutoImageProcessor.register(Spa3VLMConfig, image_processor_classes={"pil": Spa3RImageProcessor})
AutoProcessor.register(Spa3VLMConfig, Spa3VLMProcessor)
