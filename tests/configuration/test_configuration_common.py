"""What transformers, DeepSpeed and PEFT expect of every configuration."""

import pytest
import torch
from tiny_spa3_vlm import tiny_config
from transformers import AutoConfig, Qwen2_5_VLConfig, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

from spa3r import Spa3RModel, Spa3VLMForConditionalGeneration, VGGTModel
from spa3r.configuration import Spa3RConfig, Spa3VLMConfig, VGGTConfig

CLASSES = [VGGTConfig, Spa3RConfig, Spa3VLMConfig]
# Options of all configurations, and what they are read as.
SHARED = {
    "num_labels": (5, 5),
    "id2label": ({"0": "chair"}, {0: "chair"}),
    "problem_type": ("regression", "regression"),
    "return_dict": (False, False),
    "output_hidden_states": (True, True),
    "output_attentions": (True, True),
    "dtype": ("float16", torch.float16),
    "architectures": (["VGGTModel"], ["VGGTModel"]),
}


def without_version(config) -> dict:
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}


@pytest.mark.parametrize("config_class", CLASSES)
@pytest.mark.parametrize(("name", "given", "read"), [(name, *values) for name, values in SHARED.items()])
def test_an_option_of_all_configurations_is_accepted(config_class, name, given, read):
    assert getattr(config_class(**{name: given}), name) == read


@pytest.mark.parametrize("config_class", CLASSES)
def test_a_misspelt_option_is_refused(config_class):
    with pytest.raises(ValueError, match=rf"`{config_class.__name__}`.*\['num_label'\]"):
        config_class(num_label=5)


@pytest.mark.parametrize("config_class", CLASSES)
def test_a_configuration_equals_its_dictionary(config_class):
    config = config_class()
    assert without_version(config_class(**config.to_dict())) == without_version(config)


PARTS = {
    "Spa3R of a Spa3-VLM": (lambda whole: whole, lambda whole: whole.spatial_config),
    "VGGT of a Spa3-VLM": (lambda whole: whole, lambda whole: whole.spatial_config.vggt_config),
    "VGGT of a Spa3R": (lambda whole: whole.spatial_config, lambda whole: whole.spatial_config.vggt_config),
    "Qwen2.5-VL of a Spa3-VLM": (lambda whole: whole, lambda whole: whole.vlm_config),
}


@pytest.mark.parametrize(("saved", "part"), PARTS.values(), ids=PARTS)
def test_the_configuration_of_a_part_loads_from_the_whole(saved, part, tmp_path):
    whole = tiny_config()
    saved(whole).save_pretrained(tmp_path)
    expected = part(whole)
    loaded = type(expected).from_pretrained(tmp_path)
    assert type(loaded) is type(expected) and without_version(loaded) == without_version(expected)


@pytest.mark.parametrize("model_class", [Spa3RModel, VGGTModel])
def test_the_weights_of_a_part_are_not_drawn_at_random_from_the_whole(model_class, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"`spa3_vlm`.*`{model_class.config_class.model_type}`"):
        model_class.from_pretrained(tmp_path)


def test_a_file_names_the_language_model_once(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    settings, _ = Spa3VLMConfig.get_config_dict(tmp_path)
    assert "text_config" not in settings and "text_config" in settings["vlm_config"]
    assert AutoConfig.from_pretrained(tmp_path).text_config.hidden_size == tiny_config().text_config.hidden_size


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_the_whole_has_the_sizes_of_its_language_model(name):
    config = tiny_config()
    assert (
        getattr(config, name) == getattr(config.vlm_config.text_config, name) == config.to_dict()["text_config"][name]
    )


def test_the_whole_has_the_vision_tower_of_its_vlm():
    config = tiny_config()
    assert config.vision_config is config.vlm_config.vision_config
    assert isinstance(config.vlm_config, Qwen2_5_VLConfig)


def test_deepspeed_sizes_its_buckets(tmp_path):
    model = Spa3VLMForConditionalGeneration(tiny_config())
    config = HfTrainerDeepSpeedConfig({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})
    try:
        config.trainer_config_finalize(TrainingArguments(output_dir=tmp_path, use_cpu=True), model, 10)
    finally:
        unset_hf_deepspeed_config()
    size = model.config.get_text_config().hidden_size
    assert config.config["zero_optimization"]["reduce_bucket_size"] == size * size
