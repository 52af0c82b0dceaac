"""Spa3-VLM put together from a Qwen2.5-VL and a Spa3R."""

import pytest
import torch
from refusals import refused
from tiny_spa3_vlm import GEOMETRY, conversation, only, photo, prepare, tiny_config, views_of, without
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from spa3r import Spa3RModel, Spa3VLMForConditionalGeneration
from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.assemble import assemble_spa3_vlm, make_processor, plain_vlm
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer


@pytest.fixture
def qwen() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(1)
    return AutoModelForImageTextToText.from_config(tiny_config().vlm_config).eval()


@pytest.fixture
def spa3r() -> Spa3RModel:
    torch.manual_seed(2)
    return Spa3RModel(tiny_config().spatial_config).eval()


@pytest.fixture
def scene():
    """Two photos and a question, as tensors."""
    processor = make_processor(tiny_config(), byte_tokenizer(), image_width=56)
    return prepare(processor, conversation([photo(0), photo(1)], "How many chairs are there?"))


@torch.no_grad()
def test_an_assembled_model_gives_the_logits_of_the_plain_one_bit_for_bit(qwen, spa3r, scene):
    logits = assemble_spa3_vlm(qwen, spa3r)(**scene).logits
    assert torch.equal(logits, qwen(**without(scene, *GEOMETRY, "num_views")).logits)


@torch.no_grad()
def test_a_trained_adapter_changes_the_logits(qwen, spa3r, scene):
    model = assemble_spa3_vlm(qwen, spa3r)
    untrained = model(**scene).logits
    model.model.fusion.adapter.fc2.weight.normal_()
    assert (model(**scene).logits - untrained).abs().max() > 0.01


@torch.no_grad()
def test_the_plain_model_inside_an_assembled_one_gives_the_logits_it_had_bit_for_bit(qwen, spa3r, scene):
    inside = plain_vlm(assemble_spa3_vlm(qwen, spa3r))
    inputs = without(scene, *GEOMETRY, "num_views")
    assert torch.equal(inside(**inputs).logits, qwen(**inputs).logits)
    assert inside.state_dict().keys() == qwen.state_dict().keys()


def test_new_weights_are_drawn_as_the_model_draws_them(qwen, spa3r):
    fusion = assemble_spa3_vlm(qwen, spa3r).model.fusion
    for layer in (fusion.gate, fusion.projector.fc1, fusion.cross_attention.q_proj):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert not layer.bias.any()
    assert torch.equal(fusion.norm.weight, torch.ones_like(fusion.norm.weight))
    assert not fusion.adapter.fc2.weight.any()


def test_the_parts_are_used_without_a_copy(qwen, spa3r):
    model = assemble_spa3_vlm(qwen, spa3r)
    assert model.model.vlm is qwen.model and model.lm_head is qwen.lm_head
    encoder = model.model.spatial_encoder.state_dict()
    assert all(tensor.data_ptr() == encoder[name].data_ptr() for name, tensor in spa3r.state_dict().items())


def test_scenes_are_encoded_as_by_spa3r(qwen, spa3r, scene):
    latents = assemble_spa3_vlm(qwen, spa3r).encode_scene(**only(scene, *GEOMETRY))
    assert torch.equal(latents, spa3r(torch.stack(views_of(scene))[None]).latents)


@torch.no_grad()
def test_vggt_replaces_spa3r_on_request(qwen, spa3r, scene):
    model = assemble_spa3_vlm(qwen, spa3r, spatial_representation="vggt")
    views = torch.stack(views_of(scene))[None]
    (tokens,) = spa3r.vggt(views, output_layers=[len(spa3r.vggt.frame_blocks) - 2]).layer_patch_tokens
    assert torch.equal(model.encode_scene(**only(scene, *GEOMETRY)), tokens.flatten(1, 2))
    assert model.model.spatial_encoder.camera_token.data_ptr() == spa3r.vggt.camera_token.data_ptr()


def test_without_fusion_there_is_no_spatial_encoder(qwen, spa3r):
    assert assemble_spa3_vlm(qwen, spa3r, fusion="none").model.spatial_encoder is None


def test_generation_settings_and_dtype_are_those_of_the_vlm(qwen, spa3r):
    qwen.generation_config.repetition_penalty = 1.25
    model = assemble_spa3_vlm(qwen.to(torch.bfloat16), spa3r)
    assert model.generation_config.repetition_penalty == 1.25
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_spa3r_from_a_training_checkpoint_is_saved_with_its_vggt(qwen, spa3r):
    spa3r.config.teachers_included = False
    assert assemble_spa3_vlm(qwen, spa3r).config.spatial_config.teachers_included


def test_a_tied_head_stays_tied(spa3r):
    vlm_config = Qwen2_5_VLConfig(**(tiny_config().vlm_config.to_dict() | {"tie_word_embeddings": True}))
    model = assemble_spa3_vlm(Qwen2_5_VLForConditionalGeneration(vlm_config), spa3r)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


# Weights of the base; the configuration of the 4B alone was compared with a published one.
FULL_SIZES = {
    "spa3-vlm-4b": 3_754_622_976,
    "spa3-vlm-8b": 8_292_166_656,
    "spa3-vlm-qwen3-2b": 2_127_532_032,
    "spa3-vlm-qwen3-4b": 4_437_815_808,
    "spa3-vlm-qwen3-8b": 8_767_123_696,
}


@pytest.mark.parametrize("settings", [{}, {"fusion": "append"}, {"spatial_representation": "vggt"}], ids=str)
@pytest.mark.parametrize("preset", FULL_SIZES)
def test_the_full_size_is_assembled_without_memory(preset, settings):
    config = Spa3VLMConfig(**load_preset(preset))
    with torch.device("meta"):
        qwen = AutoModelForImageTextToText.from_config(config.vlm_config)
        spa3r = AutoModel.from_config(config.spatial_config)
        expected = Spa3VLMForConditionalGeneration(Spa3VLMConfig(**(load_preset(preset) | settings)))
    assert qwen.num_parameters() == FULL_SIZES[preset]
    model = assemble_spa3_vlm(qwen, spa3r, **settings)
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (model, expected)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_processor_leaves_room_for_appended_latents():
    config = tiny_config(fusion="append")
    assert make_processor(config, byte_tokenizer(), 56).num_appended_tokens == config.spatial_config.num_latents


@pytest.mark.parametrize(
    "preset, width, named",
    [
        ("spa3-vlm-4b", 518, ["`tokenizer`", "151655"]),
        ("spa3-vlm-tiny", 14, ["`image_width`", "14"]),
        ("spa3-vlm-tiny", 60, ["`image_width`", "60"]),
    ],
    ids=["tokenizer of another model", "width of one patch", "width of broken patches"],
)
def test_a_processor_that_does_not_fit_is_refused(preset, width, named):
    with refused(*named):
        make_processor(Spa3VLMConfig(**load_preset(preset)), byte_tokenizer(), width)
