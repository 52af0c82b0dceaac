"""Spa3VLMConfig: its defaults, its round trip through a file, and what it refuses."""

import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from tiny_spa3_vlm import tiny_config
from transformers import AutoConfig, Qwen2_5_VLConfig

from spa3r.configuration import PRESETS, Spa3RConfig, Spa3VLMConfig, load_preset


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


@pytest.mark.parametrize("preset", sorted(file.stem for file in PRESETS.glob("spa3-vlm-*.json")))
def test_a_saved_configuration_is_loaded_the_same(preset, tmp_path):
    config = Spa3VLMConfig(**load_preset(preset))
    config.save_pretrained(tmp_path)
    saved, loaded = (c.to_diff_dict() for c in (config, AutoConfig.from_pretrained(tmp_path)))
    origin = {"_name_or_path", "transformers_version"}  # which a file adds
    assert {k: v for k, v in loaded.items() if k not in origin} == {k: v for k, v in saved.items() if k not in origin}


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


def one_layer_of_vggt() -> dict:
    spatial_config = load_preset("spa3-vlm-tiny")["spatial_config"]
    spatial_config["vggt_config"] |= {"num_hidden_layers": 1, "dense_layers": [0, 0, 0, 0]}
    return {"spatial_config": spatial_config, "spatial_representation": "vggt"}


REFUSED = {
    "appended VGGT features": ({"fusion": "append", "spatial_representation": "vggt"}, "`fusion='append'`"),
    "an unknown fusion": ({"fusion": "concat"}, "fusion"),
    "an unknown representation": ({"spatial_representation": "dinov3"}, "spatial_representation"),
    "an unknown setting": ({"latent_size": 3}, r"`Spa3VLMConfig`.*\['latent_size'\]"),
    "a language model without vision": ({"vlm_config": {"model_type": "qwen2"}}, "`vlm_config`.*`qwen2`"),
    "no last layer of VGGT but one": (one_layer_of_vggt(), "`spatial_representation='vggt'`.* 1"),
}


@pytest.mark.parametrize(("changes", "named"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_configuration_is_refused(changes, named):
    errors = (ValueError, StrictDataclassClassValidationError, StrictDataclassFieldValidationError)
    with pytest.raises(errors, match=named):
        tiny_config(**changes)


@pytest.mark.parametrize("other", [Spa3RConfig(), Qwen2_5_VLConfig()], ids=["spa3r", "qwen2_5_vl"])
def test_the_configuration_of_another_model_is_refused(other, tmp_path):
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"`{other.model_type}`.*`spa3_vlm`"):
        Spa3VLMConfig.from_pretrained(tmp_path)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="`spa3-vlm-5b`.*spa3-vlm-4b"):
        load_preset("spa3-vlm-5b")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\x89PNG"])
def test_a_file_that_is_no_preset_is_named(content, tmp_path):
    file = tmp_path / "preset.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"`{file}`")):
        load_preset(str(file))
