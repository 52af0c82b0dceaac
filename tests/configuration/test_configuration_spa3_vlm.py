"""Spa3VLMConfig: its defaults, its round trip through a file, and what it refuses."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from tiny_spa3_vlm import tiny_config
from transformers import AutoConfig, Qwen2_5_VLConfig

from spa3r.configuration import Spa3RConfig, Spa3VLMConfig, load_preset


def test_the_defaults_are_qwen_3b_and_spa3r():
    config = Spa3VLMConfig()
    text = config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.vocab_size) == (
        2048,
        36,
        16,
        151936,
    )
    assert (config.vlm_config.vision_config.out_hidden_size, config.spatial_config.hidden_size) == (2048, 768)
    assert config.tie_word_embeddings and config.fusion == "cross_attention"


@pytest.mark.parametrize("preset", ["spa3-vlm-4b", "spa3-vlm-8b", "spa3-vlm-nano", "spa3-vlm-tiny"])
def test_a_saved_configuration_is_loaded_the_same(preset, tmp_path):
    config = Spa3VLMConfig(**load_preset(preset))
    config.save_pretrained(tmp_path)
    # A file adds where it came from.
    saved, loaded = (c.to_diff_dict() for c in (config, AutoConfig.from_pretrained(tmp_path)))
    where = {"_name_or_path", "transformers_version"}
    assert {k: v for k, v in loaded.items() if k not in where} == {k: v for k, v in saved.items() if k not in where}


def test_parts_can_be_given_as_objects():
    parts = {"vlm_config": Qwen2_5_VLConfig(), "spatial_config": Spa3RConfig(num_latents=5)}
    config = Spa3VLMConfig(**parts)
    assert config.vlm_config is parts["vlm_config"] and config.spatial_config.num_latents == 5


@pytest.mark.parametrize(
    "changes, latent_size, num_appended_tokens",
    [
        ({}, 32, 0),
        ({"fusion": "append"}, 32, 8),
        ({"spatial_representation": "vggt"}, 64, 0),
    ],
)
def test_sizes_follow_from_the_parts(changes, latent_size, num_appended_tokens):
    config = tiny_config(**changes)
    assert (config.latent_size, config.num_appended_tokens) == (latent_size, num_appended_tokens)


@pytest.mark.parametrize("tied", [True, False])
def test_word_embeddings_are_tied_as_the_whole_says_not_its_part(tied):
    config = tiny_config(tie_word_embeddings=tied)
    assert config.tie_word_embeddings is tied and config.vlm_config.tie_word_embeddings is tied


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fusion": "append", "spatial_representation": "vggt"}, "needs a fixed number of latents"),
        ({"fusion": "concat"}, "fusion"),
        ({"spatial_representation": "dinov3"}, "spatial_representation"),
        ({"latent_size": 3}, "has no settings"),
        ({"vlm_config": {"model_type": "qwen2"}}, "type `qwen2` is no vision-language model"),
    ],
)
def test_what_does_not_exist_is_refused(changes, message):
    errors = (ValueError, StrictDataclassClassValidationError, StrictDataclassFieldValidationError)
    with pytest.raises(errors, match=message):
        tiny_config(**changes)


def test_vggt_of_one_layer_has_no_last_but_one():
    spatial_config = load_preset("spa3-vlm-tiny")["spatial_config"]
    vggt_config = spatial_config["vggt_config"] | {"num_hidden_layers": 1, "dense_layers": [0, 0, 0, 0]}
    with pytest.raises(StrictDataclassClassValidationError, match="takes the last layer but one"):
        tiny_config(spatial_representation="vggt", spatial_config=spatial_config | {"vggt_config": vggt_config})


@pytest.mark.parametrize("other", [Spa3RConfig(), Qwen2_5_VLConfig()], ids=["spa3r", "qwen2_5_vl"])
def test_the_configuration_of_another_model_is_refused(other, tmp_path):
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"holds a `{other.model_type}` model, not `spa3_vlm`"):
        Spa3VLMConfig.from_pretrained(tmp_path)
