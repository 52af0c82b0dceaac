"""Models; importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from ..configuration.configuration_spa3r import Spa3RConfig
from ..configuration.configuration_vggt import VGGTConfig
from .modeling_spa3r import Spa3RForPreTraining, Spa3RModel
from .modeling_vggt import VGGTForGeometry, VGGTModel

__all__ = ["Spa3RForPreTraining", "Spa3RModel", "VGGTForGeometry", "VGGTModel"]

AutoConfig.register(VGGTConfig.model_type, VGGTConfig)
AutoModel.register(VGGTConfig, VGGTModel)
AutoConfig.register(Spa3RConfig.model_type, Spa3RConfig)
AutoModel.register(Spa3RConfig, Spa3RModel)
AutoModelForPreTraining.register(Spa3RConfig, Spa3RForPreTraining)
