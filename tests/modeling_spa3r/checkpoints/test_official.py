"""Models built from official weights: small recorded ones, and full-size ones by names and shapes alone."""

from collections.abc import Callable, Iterable

import pytest
import torch
from recordings import full_size_tensors, manifest, needs_manifests
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, Qwen2_5_VLTextConfig

from spa3r import Spa3RForPreTraining, Spa3VLMForConditionalGeneration
from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.configuration.configuration_vggt import VGGTConfig
from spa3r.modeling_spa3r.checkpoints.names import convert_dinov3_state_dict
from spa3r.modeling_spa3r.checkpoints.official import (
    dinov3_from_official,
    spa3_vlm_from_official,
    spa3r_from_official,
    vggt_from_official,
)

SPA3R_IN_VLM = "geometry_encoder.spa3r."
# By manifest: how its model is built, and where the names of tensors begin that are left out on purpose.
FULL_SIZE = {
    "vggt-1b": (vggt_from_official, ("track_head.",)),
    "official-spa3r-ckpt": (spa3r_from_official, ("model.point_head.", "model.dino.rope_embed.periods")),
    "official-spa3-vlm": (
        lambda state: spa3_vlm_from_official(state, manifest("official-spa3-vlm")["base_config"]),
        tuple(
            f"{SPA3R_IN_VLM}{module}."
            for module in "decoder pose_tokenizer heads depth_prob camera_head depth_head point_head dino".split()
        ),
    ),
}


def global_qk_norm(state: dict) -> str:
    """The norm of VGGT's queries and keys across views: only a LayerNorm has a bias."""
    has_bias = any("global_blocks" in name and name.endswith("q_norm.bias") for name in state)
    return "layer_norm" if has_bias else "rms_norm"


# Full size, on the meta device.


@needs_manifests
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_checkpoint_is_used_up_but_for_what_is_left_out_on_purpose(name):
    build, unused = FULL_SIZE[name]
    state = full_size_tensors(name)
    model, left_out = build(state)
    expected = {key for key in state if key.startswith(unused) or key.endswith("bias_mask")}
    if name == "official-spa3-vlm" and model.config.tie_word_embeddings:
        expected |= {"lm_head.weight"} & state.keys()
    assert set(left_out) == expected
    kept = {key: tensor.numel() for key, tensor in state.items() if key not in left_out}
    # DINOv3's keys have no bias: a third of each stored one is dropped.
    kept |= {key: size * 2 // 3 for key, size in kept.items() if ".dino." in key and key.endswith("attn.qkv.bias")}
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(kept.values())


@needs_manifests
def test_full_size_vggt_has_the_default_configuration():
    model, _ = vggt_from_official(full_size_tensors("vggt-1b"))
    assert model.config.to_dict() == VGGTConfig().to_dict()


@needs_manifests
def test_full_size_spa3r_keeps_every_trainable_parameter():
    state = full_size_tensors("official-spa3r-ckpt")
    model, _ = spa3r_from_official(state)
    model.freeze_teachers()
    trainable = manifest("official-spa3r-ckpt")["trainable"]
    assert sum(parameter.requires_grad for parameter in model.parameters()) == len(trainable)
    assert model.config.vggt_config.global_qk_norm == global_qk_norm(state)


@needs_manifests
def test_a_full_size_spa3_vlm_without_its_tied_head_is_complete():
    state = full_size_tensors("official-spa3-vlm")
    for name in manifest("official-spa3-vlm")["tied_keys"]:
        del state[name]
    model, _ = FULL_SIZE["official-spa3-vlm"][0](state)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@needs_manifests
def test_a_full_size_spa3_vlm_has_the_sizes_of_the_preset():
    state = full_size_tensors("official-spa3-vlm")
    model, _ = FULL_SIZE["official-spa3-vlm"][0](state)
    with torch.device("meta"):
        expected = Spa3VLMForConditionalGeneration(Spa3VLMConfig(**load_preset("spa3-vlm-4b")))
    shapes, preset = ({name: tensor.shape for name, tensor in m.state_dict().items()} for m in (model, expected))
    # The official code may give VGGT's queries and keys a norm without bias across views.
    norm_biases = {
        name for name in preset if "global_blocks" in name and name.endswith(("q_norm.bias", "k_norm.bias"))
    }
    assert shapes == {name: shape for name, shape in preset.items() if name in shapes or name not in norm_biases}
    assert model.config.spatial_config.vggt_config.global_qk_norm == global_qk_norm(state)
    rope = manifest("official-spa3-vlm")["base_config"]["rope_scaling"]
    assert model.config.get_text_config().rope_parameters["mrope_section"] == rope["mrope_section"]


# Small, with weights.


def test_every_converted_parameter_survives_saving(spa3r_state, vggt_sizes, tmp_path):
    model, _ = spa3r_from_official(spa3r_state, vggt_config=vggt_sizes)
    model.save_pretrained(tmp_path)
    loaded, info = Spa3RForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_dinov3_bias_mask_is_applied(dinov3_state):
    name = next((name for name in dinov3_state if name.endswith("qkv.bias_mask")), None)
    if name is None:
        pytest.skip("the recorded DINOv3 stores no mask")
    mask, bias = dinov3_state[name].clone(), dinov3_state[name.removesuffix("_mask")]
    mask[0] = 0
    converted, _ = convert_dinov3_state_dict(dinov3_state | {name: mask})
    layer, size = name.split(".")[1], dinov3_state["cls_token"].shape[-1]
    query_bias = converted[f"model.layer.{layer}.attention.q_proj.bias"]
    assert query_bias[0] == 0
    assert torch.equal(query_bias[1:], bias[1:size])


def test_spa3_vlm_leaves_out_what_the_official_code_does_not_use(vlm_recording, vlm_state, vlm_config, spatial_config):
    _, left_out = spa3_vlm_from_official(vlm_state, vlm_config, **spatial_config)
    groups = vlm_recording.info["weight_key_groups"]
    unused = tuple(f"{name}." for name, group in groups.items() if group["unused_in_inference"])
    assert set(left_out) == {name for name in vlm_state if name.startswith(unused)}


def test_a_tied_checkpoint_is_saved_and_loaded_without_its_head(vlm_state, vlm_config, spatial_config, tmp_path):
    vlm_state.pop("lm_head.weight", None)
    model, _ = spa3_vlm_from_official(vlm_state, vlm_config | {"tie_word_embeddings": True}, **spatial_config)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, vlm_state["model.embed_tokens.weight"])


@pytest.mark.parametrize("given", [{}, {"eos_token_id": 7}], ids=str)
def test_ids_that_the_official_configuration_omits_become_qwens_only_if_the_vocabulary_has_them(
    vlm_state, vlm_config, spatial_config, given
):
    names = ("bos_token_id", "eos_token_id")
    fields = {name: value for name, value in vlm_config.items() if name not in names}
    model, _ = spa3_vlm_from_official(vlm_state, fields | given, **spatial_config)
    for name in names:
        default = getattr(Qwen2_5_VLTextConfig, name)
        expected = given.get(name, default if default < vlm_config["vocab_size"] else None)
        assert getattr(model.config.get_text_config(), name) == expected


# Wrong checkpoints.


def without(state: dict, *beginnings: str) -> dict:
    return {name: tensor for name, tensor in state.items() if not name.startswith(beginnings)}


def assert_refused(named: Iterable[str], build: Callable, *arguments, **options):
    """Expect an error that names these tensors; it has a line for each."""
    with pytest.raises(ValueError) as error:
        build(*arguments, **options)
    assert [name for name in named if name not in str(error.value)] == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(
            lambda state: state | {"aggregator.surprise": torch.zeros(1), "adapter.weight": torch.zeros(1)},
            ["aggregator.surprise", "adapter.weight"],
            id="unknown tensors",
        ),
        pytest.param(
            lambda state: without(state, "camera_head.token_norm.bias", "point_head.norm.weight"),
            ["camera_head.token_norm.bias", "point_head.norm.weight"],
            id="missing tensors",
        ),
        pytest.param(
            lambda state: without(state, "aggregator.camera_token"), ["vggt.camera_token"], id="missing size"
        ),
        pytest.param(
            lambda state: state | {"camera_head.empty_pose_tokens": torch.zeros(1, 1, 8)},
            ["camera_head.empty_pose", "(1, 1, 8)", "(1, 1, 9)"],
            id="another shape",
        ),
    ],
)
def test_a_wrong_vggt_is_refused_by_its_tensors(vggt_state, vggt_sizes, change, named):
    assert_refused(named, vggt_from_official, change(vggt_state), **vggt_sizes)


def test_all_tensors_of_another_model_are_named(dinov3_state):
    assert_refused(dinov3_state, vggt_from_official, dinov3_state)


def test_dinov3_with_a_key_bias_in_use_is_refused(dinov3_state):
    name = next(name for name in dinov3_state if name.endswith("attn.qkv.bias"))
    state = without(dinov3_state, f"{name}_mask") | {name: torch.ones_like(dinov3_state[name])}
    assert_refused([f"`{name}`"], dinov3_from_official, state)


@pytest.mark.parametrize(
    ("change", "fields", "named"),
    [
        *(
            pytest.param(lambda state, name=name: state | {name: torch.zeros(1)}, {}, [named], id=name)
            for name, named in [
                ("geometry_adaptor.3.weight", "geometry_adaptor.3.weight"),
                (f"{SPA3R_IN_VLM}surprise", "surprise"),
                (f"{SPA3R_IN_VLM}dino.surprise", "dino.surprise"),
                ("visual.surprise", "model.vlm.visual.surprise"),
                ("model.layers.0.surprise", "model.vlm.language_model.layers.0.surprise"),
            ]
        ),
        pytest.param(
            lambda state: without(state, "geometry_gate.0.bias") | {"ln.weight": torch.zeros(3)},
            {},
            ["model.fusion.gate.bias", "model.fusion.norm.weight", "(3,)"],
            id="missing and another shape",
        ),
        pytest.param(
            lambda state: without(state, "geometry_encoder."), {}, ["model.projection.weight"], id="no spatial encoder"
        ),
        pytest.param(lambda state: state, {"model_type": "spa3_vlm"}, ["`spa3_vlm`", "`qwen2_5_vl`"], id="converted"),
        pytest.param(
            lambda state: state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1},
            {"tie_word_embeddings": True},
            ["`tie_word_embeddings`", "`lm_head.weight`"],
            id="a tied head that differs",
        ),
    ],
)
def test_a_wrong_spa3_vlm_is_refused_by_its_tensors(vlm_state, vlm_config, spatial_config, change, fields, named):
    assert_refused(named, spa3_vlm_from_official, change(vlm_state), vlm_config | fields, **spatial_config)
