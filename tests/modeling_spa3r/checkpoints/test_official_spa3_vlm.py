import json
from pathlib import Path

import pytest
import torch
from recordings import (
    Recording,
    full_size_tensors,
    golden,
    manifest,
    needs_golden,
    needs_manifests,
    recordings,
    starting_with,
    untold_vggt_sizes,
)
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_spa3_vlm import conversation, geometry_of, photo, prepare, tiny_config, views_of
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from spa3r import Spa3RForPreTraining, Spa3RModel, Spa3VLMForConditionalGeneration, Spa3VLMProcessor
from spa3r.configuration import Spa3RConfig, Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.assemble import assemble_spa3_vlm, make_processor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.modeling_spa3r.checkpoints.command import main
from spa3r.modeling_spa3r.checkpoints.official import spa3_vlm_from_official

GEOMETRY = ("pixel_values_geometry", "geometry_sizes", "num_views")


# --- The official Spa3-VLM ---


@pytest.fixture(scope="module")
def recording() -> Recording:
    """A small official Spa3-VLM with random weights, an input, and what the official code made of it."""
    names = recordings("vlm_end_to_end")
    if not names:
        pytest.skip("a directory of one's own may hold some kinds only")
    return golden(names[0])


@pytest.fixture
def weights(recording) -> dict[str, Tensor]:
    return dict(recording.weights)


@pytest.fixture
def config(recording) -> dict:
    """Its `config.json`."""
    return dict(recording.info["saved_config_json"])


@pytest.fixture
def spatial_config(recording) -> dict:
    """What the shapes of the weights do not tell."""
    return {"vggt_config": untold_vggt_sizes(recording.info["spa3r_config"]["vggt"])}


@pytest.fixture
def official(weights, config, spatial_config, tmp_path) -> Path:
    """The folder of the official checkpoint, in two shards, without a tokenizer."""
    folder = tmp_path / "official"
    folder.mkdir()
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:100]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[100:]}, folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "sizes.json").write_text(json.dumps(spatial_config))
    return folder


@needs_manifests
def test_full_size_checkpoint_is_used_up_but_for_what_only_pretraining_needs():
    state = full_size_tensors("official-spa3-vlm")
    model, left_out = spa3_vlm_from_official(state, manifest("official-spa3-vlm")["base_config"])
    spa3r = "geometry_encoder.spa3r."
    unused = ("decoder", "pose_tokenizer", "heads", "depth_prob", "camera_head", "depth_head", "point_head", "dino")
    beginnings = tuple(f"{spa3r}{module}." for module in unused)
    assert set(left_out) == {name for name in state if name.startswith(beginnings)} | {"lm_head.weight"}
    kept = sum(tensor.numel() for name, tensor in state.items() if name not in left_out)
    assert sum(parameter.numel() for parameter in model.parameters()) == kept


@needs_manifests
def test_full_size_checkpoint_without_the_tied_head_is_complete():
    state = full_size_tensors("official-spa3-vlm")
    for name in manifest("official-spa3-vlm")["tied_keys"]:
        del state[name]
    model, _ = spa3_vlm_from_official(state, manifest("official-spa3-vlm")["base_config"])
    assert model.lm_head.weight is model.get_input_embeddings().weight


@needs_manifests
def test_full_size_checkpoint_has_the_sizes_of_the_preset():
    official = manifest("official-spa3-vlm")
    model, _ = spa3_vlm_from_official(full_size_tensors("official-spa3-vlm"), official["base_config"])
    preset = Spa3VLMConfig(**load_preset("spa3-vlm-4b"))
    with torch.device("meta"):
        expected = Spa3VLMForConditionalGeneration(preset)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, expected)]
    # The official code gives VGGT's queries and keys a norm without bias across views.
    replaced = {
        name for name in shapes[1] if "global_blocks" in name and name.endswith(("q_norm.bias", "k_norm.bias"))
    }
    assert shapes[0] == {name: shape for name, shape in shapes[1].items() if name not in replaced}
    assert model.config.spatial_config.vggt_config.global_qk_norm == "rms_norm"
    assert model.config.get_text_config().rope_parameters["mrope_section"] == [16, 24, 24]


@needs_golden
def test_what_is_left_out_is_what_the_official_code_does_not_use(recording, weights, config, spatial_config):
    _, left_out = spa3_vlm_from_official(weights, config, **spatial_config)
    groups = recording.info["weight_key_groups"]
    unused = tuple(f"{name}." for name, group in groups.items() if group["unused_in_inference"])
    assert set(left_out) == {name for name in weights if name.startswith(unused)}


@needs_golden
def test_official_folder_becomes_a_model_that_answers_as_officially(recording, official, tmp_path):
    output = tmp_path / "made" / "spa3-vlm"
    main(["spa3-vlm", str(official), str(output), "--config", str(tmp_path / "sizes.json")])
    model, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = {name: recording.inputs[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    inputs |= geometry_of(recording.inputs["geometry_images_u8"].float() / 255)
    tokens = model.generate(**inputs, max_new_tokens=recording.info["max_new_tokens"], do_sample=False)
    expected = recording.outputs["generated_ids"]
    assert torch.equal(tokens[:, -expected.shape[1] :], expected)


@needs_golden
def test_official_folder_with_a_tokenizer_gets_a_processor(recording, official, config, tmp_path):
    byte_tokenizer().save_pretrained(official)
    vlm_config = tiny_config().vlm_config
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids_of_tokenizer = {name: getattr(vlm_config, name) for name in names}
    (official / "config.json").write_text(json.dumps(config | ids_of_tokenizer))
    output, images = tmp_path / "spa3-vlm", recording.inputs["geometry_images_u8"]
    arguments = ["spa3-vlm", str(official), str(output), "--config", str(tmp_path / "sizes.json")]
    main([*arguments, "--image-width", str(images.shape[-1])])
    processor = AutoProcessor.from_pretrained(output)
    assert isinstance(processor, Spa3VLMProcessor) and processor.tokenizer.padding_side == "left"
    inputs = prepare(processor, conversation(images.numpy(), "Where?"))
    torch.testing.assert_close(inputs["pixel_values"], recording.inputs["pixel_values"], atol=1e-5, rtol=0)


@needs_golden
def test_official_folder_without_a_tokenizer_gets_no_processor_and_says_so(official, tmp_path, capsys):
    main(["spa3-vlm", str(official), str(tmp_path / "result"), "--config", str(tmp_path / "sizes.json")])
    assert "no processor was written" in capsys.readouterr().out
    assert not (tmp_path / "result" / "processor_config.json").exists()


@needs_golden
def test_settings_for_generation_are_taken_along(official, tmp_path):
    (official / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.25}))
    main(["spa3-vlm", str(official), str(tmp_path / "result"), "--config", str(tmp_path / "sizes.json")])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "result")
    assert model.generation_config.repetition_penalty == 1.25


@needs_golden
def test_a_tied_checkpoint_is_saved_and_loaded_without_its_head(recording, weights, config, spatial_config, tmp_path):
    del weights["lm_head.weight"]
    model, _ = spa3_vlm_from_official(weights, config | {"tie_word_embeddings": True}, **spatial_config)
    model.save_pretrained(tmp_path / "tied")
    with safe_open(tmp_path / "tied" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "tied")
    assert torch.equal(loaded.lm_head.weight, weights["model.embed_tokens.weight"])


@needs_golden
def test_a_head_that_differs_though_it_is_tied_is_refused(weights, config):
    with pytest.raises(ValueError, match="`tie_word_embeddings`, but `lm_head.weight` differs"):
        spa3_vlm_from_official(weights, config | {"tie_word_embeddings": True})


@needs_golden
def test_a_small_vocabulary_does_not_get_the_ends_of_qwens(weights, config, spatial_config):
    model, _ = spa3_vlm_from_official(weights, config, **spatial_config)
    text_config = model.config.get_text_config()
    assert (text_config.bos_token_id, text_config.eos_token_id) == (None, None)


@needs_golden
def test_given_ends_of_text_are_kept(weights, config, spatial_config):
    model, _ = spa3_vlm_from_official(weights, config | {"eos_token_id": 7}, **spatial_config)
    assert model.config.get_text_config().eos_token_id == 7


@needs_golden
@pytest.mark.parametrize(
    "name", ["geometry_adaptor.3.weight", "geometry_encoder.spa3r.surprise", "geometry_encoder.spa3r.dino.surprise"]
)
def test_an_unknown_tensor_is_named(weights, config, name):
    with pytest.raises(ValueError, match=rf"unknown:\n  \S*{name.rpartition('spa3r.')[2]}$"):
        spa3_vlm_from_official(weights | {name: torch.zeros(1)}, config)


@needs_golden
@pytest.mark.parametrize("name", ["visual.surprise", "model.layers.0.surprise"])
def test_a_tensor_that_qwen_does_not_have_is_named(weights, config, spatial_config, name):
    weights[name] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"in 1 tensors:\n  model\.vlm\.\S+surprise: not in the model$"):
        spa3_vlm_from_official(weights, config, **spatial_config)


@needs_golden
def test_missing_tensors_and_wrong_shapes_are_named(weights, config, spatial_config):
    del weights["geometry_gate.0.bias"]
    weights["ln.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"fusion\.gate\.bias: missing\n  model\.fusion\.norm\.weight: shape \(3,\)"):
        spa3_vlm_from_official(weights, config, **spatial_config)


@needs_golden
def test_a_checkpoint_without_spa3r_is_incomplete(weights, config):
    plain = {name: tensor for name, tensor in weights.items() if not name.startswith("geometry_encoder.")}
    with pytest.raises(ValueError, match="The checkpoint is incomplete"):
        spa3_vlm_from_official(plain, config)


@needs_golden
def test_a_configuration_of_another_model_is_refused(weights):
    with pytest.raises(ValueError, match="`spa3_vlm`"):
        spa3_vlm_from_official(weights, {"model_type": "spa3_vlm"})


@needs_golden
def test_a_file_in_the_place_of_the_folder_is_refused(official, tmp_path):
    file = official / "model-00001-of-00002.safetensors"
    with pytest.raises(SystemExit, match="There is no `.*config.json`; give the whole folder"):
        main(["spa3-vlm", str(file), str(tmp_path / "result")])


# --- Assembling ---


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
def test_assembled_model_gives_the_logits_of_the_plain_one_bit_for_bit(qwen, spa3r, scene):
    plain = {name: tensor for name, tensor in scene.items() if name not in GEOMETRY}
    assert torch.equal(assemble_spa3_vlm(qwen, spa3r)(**scene).logits, qwen(**plain).logits)


@torch.no_grad()
def test_the_new_adapter_is_silent_but_not_deaf(qwen, spa3r, scene):
    model = assemble_spa3_vlm(qwen, spa3r)
    silent = model(**scene).logits
    model.model.fusion.adapter.fc2.weight.normal_()
    assert (model(**scene).logits - silent).abs().max() > 0.01


def test_new_weights_are_drawn_as_the_model_draws_them(qwen, spa3r):
    fusion = assemble_spa3_vlm(qwen, spa3r).model.fusion
    for layer in (fusion.gate, fusion.projector.fc1, fusion.cross_attention.q_proj):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert not layer.bias.any()
    assert torch.equal(fusion.norm.weight, torch.ones_like(fusion.norm.weight))
    assert not fusion.adapter.fc2.weight.any()


def test_parts_are_taken_as_they_are(qwen, spa3r):
    model = assemble_spa3_vlm(qwen, spa3r)
    assert model.model.vlm is qwen.model and model.lm_head is qwen.lm_head
    encoder = model.model.spatial_encoder.state_dict()
    assert all(tensor.data_ptr() == encoder[name].data_ptr() for name, tensor in spa3r.state_dict().items())


def test_scenes_are_encoded_as_by_spa3r(qwen, spa3r, scene):
    latents = assemble_spa3_vlm(qwen, spa3r).encode_scene(*(scene[name] for name in GEOMETRY[:2]))
    assert torch.equal(latents, spa3r(torch.stack(views_of(scene))[None]).latents)


@torch.no_grad()
def test_vggt_takes_the_place_of_spa3r_on_request(qwen, spa3r, scene):
    model = assemble_spa3_vlm(qwen, spa3r, spatial_representation="vggt")
    views = torch.stack(views_of(scene))[None]
    (tokens,) = spa3r.vggt(views, output_layers=[len(spa3r.vggt.frame_blocks) - 2]).layer_patch_tokens
    assert torch.equal(model.encode_scene(*(scene[name] for name in GEOMETRY[:2])), tokens.flatten(1, 2))
    assert model.model.spatial_encoder.camera_token.data_ptr() == spa3r.vggt.camera_token.data_ptr()


def test_without_fusion_there_is_no_spatial_encoder(qwen, spa3r):
    assert assemble_spa3_vlm(qwen, spa3r, fusion="none").model.spatial_encoder is None


def test_settings_for_generation_are_those_of_the_vlm(qwen, spa3r):
    qwen.generation_config.repetition_penalty = 1.25
    assert assemble_spa3_vlm(qwen, spa3r).generation_config.repetition_penalty == 1.25


def test_a_tied_head_stays_tied(spa3r):
    vlm_config = Qwen2_5_VLConfig(**(tiny_config().vlm_config.to_dict() | {"tie_word_embeddings": True}))
    model = assemble_spa3_vlm(Qwen2_5_VLForConditionalGeneration(vlm_config), spa3r)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_spa3r_and_the_adapter_take_the_type_of_the_vlm(qwen, spa3r):
    model = assemble_spa3_vlm(qwen.to(torch.bfloat16), spa3r)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_checkpoint_made_during_training_becomes_a_whole_spa3r(qwen, spa3r):
    spa3r.config.teachers_included = False
    assert assemble_spa3_vlm(qwen, spa3r).config.spatial_config.teachers_included


@pytest.mark.parametrize("settings", [{}, {"fusion": "append"}, {"spatial_representation": "vggt"}], ids=str)
@pytest.mark.parametrize("preset", ["spa3-vlm-4b", "spa3-vlm-8b"])
def test_full_size_is_assembled_without_memory(preset, settings):
    config = Spa3VLMConfig(**load_preset(preset))
    with torch.device("meta"):
        qwen = AutoModelForImageTextToText.from_config(config.vlm_config)
        spa3r = AutoModel.from_config(config.spatial_config)
        expected = Spa3VLMForConditionalGeneration(Spa3VLMConfig(**(load_preset(preset) | settings)))
    model = assemble_spa3_vlm(qwen, spa3r, **settings)
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (model, expected)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_another_vlm_is_refused(spa3r):
    fields = tiny_config().vlm_config.to_dict() | {"model_type": "qwen2_vl"}
    fields["vision_config"] = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    with torch.device("meta"):
        other = Qwen2VLForConditionalGeneration(Qwen2VLForConditionalGeneration.config_class(**fields))
    with pytest.raises(ValueError, match="must be a Qwen2.5-VL .* got a `qwen2_vl`"):
        assemble_spa3_vlm(other, spa3r)


def test_patches_of_two_sizes_are_refused(qwen):
    config = Spa3RConfig(**load_preset("spa3r-tiny"))
    config.vggt_config.patch_size = 8
    with pytest.raises(ValueError, match="`patch_size`.* 14 and 8"):
        assemble_spa3_vlm(qwen, Spa3RModel(config))


# --- The processor ---


def test_processor_leaves_room_for_appended_latents():
    config = tiny_config(fusion="append")
    assert make_processor(config, byte_tokenizer(), 56).num_appended_tokens == config.spatial_config.num_latents


def test_processor_of_another_models_tokenizer_is_refused():
    config = Spa3VLMConfig(**load_preset("spa3-vlm-4b"))
    with pytest.raises(ValueError, match="`tokenizer`.*261.*151655"):
        make_processor(config, byte_tokenizer())


@pytest.mark.parametrize("width", [14, 60])
def test_image_width_of_broken_patches_is_refused(width):
    with pytest.raises(ValueError, match=f"`image_width` .*14.*28.*{width}"):
        make_processor(tiny_config(), byte_tokenizer(), width)


# --- Assembling from the command line ---


@pytest.fixture
def qwen_folder(qwen, tmp_path) -> Path:
    """A Qwen2.5-VL as the library saves it, with a chat template of its own."""
    qwen.save_pretrained(tmp_path / "qwen")
    tokenizer = byte_tokenizer()
    tokenizer.padding_side, tokenizer.chat_template = "right", "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


@pytest.fixture
def spa3r_folder(tmp_path) -> Path:
    """A pre-training checkpoint, decoder and teachers included."""
    torch.manual_seed(3)
    Spa3RForPreTraining(tiny_config().spatial_config).save_pretrained(tmp_path / "spa3r")
    return tmp_path / "spa3r"


def assemble(output: Path, vlm: Path | str, spa3r: Path, *options: str):
    main(["assemble", str(output), "--vlm", str(vlm), "--spa3r", str(spa3r), "--image-width", "56", *options])


def test_assembled_folder_holds_every_weight_of_both_parts(qwen, qwen_folder, spa3r_folder, tmp_path):
    assemble(tmp_path / "result", qwen_folder, spa3r_folder)
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "result", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = model.state_dict()
    encoder = starting_with("model.", Spa3RForPreTraining.from_pretrained(spa3r_folder).state_dict())
    expected = {f"model.spatial_encoder.{name}": tensor for name, tensor in encoder.items()}
    expected |= {f"model.vlm.{name}": tensor for name, tensor in qwen.model.state_dict().items()}
    expected["lm_head.weight"] = qwen.lm_head.weight
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert all(name in expected or name.startswith("model.fusion.") for name in state)


def test_assembled_folder_answers(qwen_folder, spa3r_folder, tmp_path):
    assemble(tmp_path / "result", qwen_folder, spa3r_folder)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "result")
    processor = AutoProcessor.from_pretrained(tmp_path / "result")
    assert processor.image_processor.image_width == 56 and processor.tokenizer.padding_side == "left"
    inputs = prepare(processor, conversation([photo(0)], "Is it there?"))
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def test_template_of_the_vlm_gives_way_to_ours(qwen_folder, spa3r_folder, tmp_path):
    assemble(tmp_path / "result", qwen_folder, spa3r_folder)
    assert "{% generation %}" in AutoProcessor.from_pretrained(tmp_path / "result").chat_template


def test_preset_in_the_place_of_a_vlm_is_untrained_and_says_so(spa3r_folder, tmp_path, capsys):
    assemble(tmp_path / "result", "spa3-vlm-nano", spa3r_folder, "--fusion", "append")
    assert "`spa3-vlm-nano` is an architecture: its vision-language model is untrained" in capsys.readouterr().out
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "result")
    processor = AutoProcessor.from_pretrained(tmp_path / "result")
    inputs = prepare(processor, conversation([photo(0)], "Is it there?"))
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("seed, is_equal", [("0", True), ("1", False)])
def test_seed_decides_new_weights(spa3r_folder, tmp_path, seed, is_equal):
    assemble(tmp_path / "first", "spa3-vlm-tiny", spa3r_folder)
    assemble(tmp_path / "second", "spa3-vlm-tiny", spa3r_folder, "--seed", seed)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert (files[0] == files[1]) == is_equal


def test_type_is_that_of_the_vlm(qwen, spa3r_folder, tmp_path):
    qwen.to(torch.bfloat16).save_pretrained(tmp_path / "qwen")
    byte_tokenizer().save_pretrained(tmp_path / "qwen")
    assemble(tmp_path / "result", tmp_path / "qwen", spa3r_folder)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "result").dtype == torch.bfloat16


def test_type_can_be_chosen(qwen_folder, spa3r_folder, tmp_path):
    assemble(tmp_path / "result", qwen_folder, spa3r_folder, "--dtype", "float16")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "result").dtype == torch.float16


def test_a_preset_whose_vocabulary_is_not_of_bytes_is_refused(spa3r_folder, tmp_path):
    with pytest.raises(SystemExit, match="`tokenizer`"):
        assemble(tmp_path / "result", "spa3-vlm-4b", spa3r_folder)


def test_a_vlm_that_is_neither_folder_nor_preset_is_refused(spa3r_folder, tmp_path):
    with pytest.raises(SystemExit, match="no architecture preset `nowhere`"):
        assemble(tmp_path / "result", "nowhere", spa3r_folder)


def test_a_vlm_without_a_tokenizer_is_refused(qwen, spa3r_folder, tmp_path):
    qwen.save_pretrained(tmp_path / "qwen")
    with pytest.raises(SystemExit, match="There is no tokenizer in `.*qwen`"):
        assemble(tmp_path / "result", tmp_path / "qwen", spa3r_folder)


@pytest.mark.parametrize("part", ["vlm", "spa3r"])
def test_a_folder_that_is_not_there_is_refused(qwen_folder, spa3r_folder, tmp_path, part):
    folders = {"vlm": qwen_folder, "spa3r": spa3r_folder} | {part: tmp_path / "nowhere"}
    with pytest.raises(SystemExit, match="There is no checkpoint at `.*nowhere`; give a folder"):
        assemble(tmp_path / "result", **folders)


def test_settings_that_contradict_each_other_are_refused_in_one_line(qwen_folder, spa3r_folder, tmp_path):
    settings = ("--fusion", "append", "--spatial-representation", "vggt")
    with pytest.raises(SystemExit, match="^spa3r convert: `fusion='append'` needs a fixed number of latents.*$"):
        assemble(tmp_path / "result", qwen_folder, spa3r_folder, *settings)


def test_a_folder_of_another_model_is_refused_as_vlm(spa3r_folder, tmp_path):
    with pytest.raises(SystemExit, match="holds a `spa3r` model; give a Qwen2.5-VL"):
        assemble(tmp_path / "result", spa3r_folder, spa3r_folder)


def test_a_folder_of_another_model_is_refused_as_spa3r(qwen_folder, tmp_path):
    with pytest.raises(SystemExit, match="holds a `qwen2_5_vl` model, not `spa3r`"):
        assemble(tmp_path / "result", qwen_folder, qwen_folder)


@pytest.mark.parametrize("wrong", ["missing", "shape"])
def test_a_vlm_whose_weights_are_not_all_there_is_refused(qwen, qwen_folder, spa3r_folder, tmp_path, wrong):
    state = qwen.state_dict()
    norm = state.pop("model.language_model.norm.weight")
    if wrong == "shape":
        state["model.language_model.norm.weight"] = norm[:3].clone()
    save_file(state, qwen_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=rf"1 tensors[^\n]*:\n  \S+norm.weight: {wrong}"):
        assemble(tmp_path / "result", qwen_folder, spa3r_folder)


def test_nothing_is_left_of_an_assembly_that_fails(qwen_folder, spa3r_folder, tmp_path):
    with pytest.raises(SystemExit, match="`image_width`.*15"):
        assemble(tmp_path / "made" / "result", qwen_folder, spa3r_folder, "--image-width", "15")
    assert not (tmp_path / "made").exists()


def test_an_assembled_checkpoint_carries_its_code_and_a_card(qwen_folder, spa3r_folder, tmp_path):
    assemble(tmp_path / "spa3-vlm-mine", qwen_folder, spa3r_folder, "--image-width", "56")
    files = {path.name for path in (tmp_path / "spa3-vlm-mine").iterdir()}
    assert {"modeling_spa3_vlm.py", "processing_spa3_vlm.py", "configuration_spa3_vlm.py"} <= files
    card = (tmp_path / "spa3-vlm-mine" / "README.md").read_text()
    assert "# spa3-vlm-mine" in card
    assert f"Vision-language model: from `{qwen_folder.name}`" in card
    assert f"the rest of the spatial encoder: from `{spa3r_folder.name}`" in card
    assert "Adapter between the two: **untrained**" in card


def test_an_assembled_checkpoint_names_no_folder_of_the_machine(qwen_folder, spa3r_folder, tmp_path):
    assemble(tmp_path / "model", qwen_folder, spa3r_folder, "--image-width", "56")
    for path in (tmp_path / "model").iterdir():
        assert str(qwen_folder.parent).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("command", ["vggt", "spa3r", "dinov3", "spa3-vlm", "assemble"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "OUTPUT" in capsys.readouterr().out
