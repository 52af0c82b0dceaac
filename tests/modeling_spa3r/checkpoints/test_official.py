import json
import os
from pathlib import Path

import pytest
import torch
from recordings import GOLDEN, full_size_tensors, manifest, needs_golden, needs_manifests, untold_vggt_sizes
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DINOv3ViTModel

from spa3r.configuration.configuration_vggt import VGGTConfig
from spa3r.modeling_spa3r.checkpoints.command import main
from spa3r.modeling_spa3r.checkpoints.names import convert_dinov3_state_dict, convert_vggt_state_dict
from spa3r.modeling_spa3r.checkpoints.official import dinov3_from_official, spa3r_from_official, vggt_from_official
from spa3r.modeling_spa3r.checkpoints.tensors import read_tensors
from spa3r.modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining, Spa3RModel
from spa3r.modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry


@pytest.fixture(scope="module")
def recording() -> dict[str, Tensor]:
    """A small official Spa3R with random weights, an input, and the latents that the official code made of it."""
    return load_file(GOLDEN / "spa3r_predict.safetensors")


@pytest.fixture
def spa3r_state(recording) -> dict[str, Tensor]:
    """The recorded weights as in the `state_dict` of the official `.ckpt`."""
    return {f"model.{n.removeprefix('weights.')}": t for n, t in recording.items() if n.startswith("weights.")}


@pytest.fixture
def vggt_state(spa3r_state) -> dict[str, Tensor]:
    """The VGGT inside, as in the file of facebook/VGGT-1B."""
    modules = ("aggregator.", "camera_head.", "depth_head.", "point_head.")
    state = {name.removeprefix("model."): tensor for name, tensor in spa3r_state.items()}
    return {name: tensor for name, tensor in state.items() if name.startswith(modules)}


@pytest.fixture
def dinov3_state(spa3r_state) -> dict[str, Tensor]:
    """The DINOv3 inside, as Meta publishes it."""
    prefix = "model.dino."
    return {name.removeprefix(prefix): t for name, t in spa3r_state.items() if name.startswith(prefix)}


@pytest.fixture
def vggt_sizes() -> dict:
    """What the shapes of the recorded weights do not tell."""
    return untold_vggt_sizes(json.loads((GOLDEN / "spa3r_predict.json").read_text())["config"]["vggt"])


# Full size, on the meta device


@needs_manifests
def test_full_size_vggt_is_used_up_but_for_the_track_head():
    state = full_size_tensors("vggt-1b")
    model, left_out = vggt_from_official(state)
    assert set(left_out) == {name for name in state if name.startswith("track_head.")}
    assert model.config.global_qk_norm == "layer_norm"


@needs_manifests
def test_full_size_vggt_has_the_default_configuration():
    model, _ = vggt_from_official(full_size_tensors("vggt-1b"))
    assert model.config.to_dict() == VGGTConfig().to_dict()


@needs_manifests
def test_full_size_spa3r_is_used_up_but_for_points_and_dinov3_buffers():
    state = full_size_tensors("official-spa3r-ckpt")
    model, left_out = spa3r_from_official(state)
    unused = ("model.point_head.", "model.dino.rope_embed.periods")
    assert set(left_out) == {name for name in state if name.startswith(unused) or name.endswith("bias_mask")}
    assert model.config.vggt_config.global_qk_norm == "rms_norm"


@needs_manifests
def test_full_size_spa3r_keeps_every_trainable_parameter():
    trainable = manifest("official-spa3r-ckpt")["trainable"]
    model, _ = spa3r_from_official(full_size_tensors("official-spa3r-ckpt"))
    model.freeze_teachers()
    assert sum(parameter.requires_grad for parameter in model.parameters()) == len(trainable)


@needs_manifests
def test_full_size_conversion_keeps_the_number_of_values():
    state = full_size_tensors("vggt-1b")
    model, left_out = vggt_from_official(state)
    kept = sum(tensor.numel() for name, tensor in state.items() if name not in left_out)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == kept


# From file to model


@needs_golden
def test_converted_spa3r_gives_the_latents_of_the_official_code(recording, spa3r_state, vggt_sizes, tmp_path):
    torch.save({"state_dict": spa3r_state, "epoch": 3, "hyper_parameters": {"lr": 1e-3}}, tmp_path / "spa3r.ckpt")
    (tmp_path / "sizes.json").write_text(json.dumps({"vggt_config": vggt_sizes}))
    output = tmp_path / "made" / "spa3r"
    main(["spa3r", str(tmp_path / "spa3r.ckpt"), str(output), "--config", str(tmp_path / "sizes.json")])
    images = recording["inputs.images_u8"].float() / 255
    for loaded in (Spa3RForPreTraining.from_pretrained(output).model, Spa3RModel.from_pretrained(output)):
        latents = loaded.eval()(images).latents
        torch.testing.assert_close(latents, recording["outputs.latents"], atol=1e-4, rtol=0)


@needs_golden
def test_every_converted_parameter_survives_saving(spa3r_state, vggt_sizes, tmp_path):
    model, _ = spa3r_from_official(spa3r_state, vggt_config=vggt_sizes)
    model.save_pretrained(tmp_path / "spa3r")
    loaded, info = Spa3RForPreTraining.from_pretrained(tmp_path / "spa3r", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@needs_golden
@pytest.mark.parametrize("layout", ["file", "shards", "pt"])
def test_vggt_is_read_from_a_file_from_shards_and_from_pytorch(vggt_state, vggt_sizes, tmp_path, layout):
    source = tmp_path / "source"
    source.mkdir()
    names = sorted(vggt_state)
    if layout == "file":
        source = source / "model.safetensors"
        save_file(vggt_state, source)
    elif layout == "shards":
        save_file({name: vggt_state[name] for name in names[:100]}, source / "model-00001-of-00002.safetensors")
        save_file({name: vggt_state[name] for name in names[100:]}, source / "model-00002-of-00002.safetensors")
    else:
        source = source / "model.pt"
        torch.save(vggt_state, source)
    read = read_tensors(source)
    assert read.keys() == vggt_state.keys()
    model, _ = vggt_from_official(read, **vggt_sizes)
    assert torch.equal(model.vggt.camera_token, vggt_state["aggregator.camera_token"])


@needs_golden
def test_dtype_option_casts_what_is_written(vggt_state, vggt_sizes, tmp_path):
    save_file(vggt_state, tmp_path / "model.safetensors")
    (tmp_path / "sizes.json").write_text(json.dumps(vggt_sizes))
    arguments = ["vggt", str(tmp_path / "model.safetensors"), str(tmp_path / "vggt"), "--dtype", "bfloat16"]
    main([*arguments, "--config", str(tmp_path / "sizes.json")])
    assert VGGTForGeometry.from_pretrained(tmp_path / "vggt").dtype == torch.bfloat16


@needs_golden
def test_what_is_left_out_is_printed_with_the_reason(dinov3_state, tmp_path, capsys):
    save_file(dinov3_state, tmp_path / "dinov3.safetensors")
    main(["dinov3", str(tmp_path / "dinov3.safetensors"), str(tmp_path / "dinov3")])
    assert "`rope_embed.periods`: computed from the configuration." in capsys.readouterr().out
    assert DINOv3ViTModel.from_pretrained(tmp_path / "dinov3").config.num_register_tokens == 4


# DINOv3's masked bias


@needs_golden
def test_dinov3_bias_mask_is_applied(dinov3_state):
    size = dinov3_state["cls_token"].shape[-1]
    mask = dinov3_state["blocks.0.attn.qkv.bias_mask"].clone()
    mask[0] = 0
    converted, _ = convert_dinov3_state_dict(dinov3_state | {"blocks.0.attn.qkv.bias_mask": mask})
    query_bias = converted["model.layer.0.attention.q_proj.bias"]
    assert query_bias[0] == 0
    assert torch.equal(query_bias[1:], dinov3_state["blocks.0.attn.qkv.bias"][1:size])


@needs_golden
def test_dinov3_with_a_key_bias_in_use_is_refused(dinov3_state):
    del dinov3_state["blocks.0.attn.qkv.bias_mask"]
    with pytest.raises(ValueError, match="`blocks.0.attn.qkv.bias` has no place .* not zero"):
        dinov3_from_official(dinov3_state)


# Wrong checkpoints


def test_unknown_tensors_are_all_named():
    state = {name: torch.zeros(1) for name in ("aggregator.camera_token", "aggregator.surprise", "adapter.weight")}
    with pytest.raises(ValueError, match="2 tensors are unknown:\n  aggregator.surprise\n  adapter.weight$"):
        convert_vggt_state_dict(state)


@needs_golden
def test_missing_tensors_are_all_named(vggt_state, vggt_sizes):
    del vggt_state["aggregator.patch_embed.norm.bias"], vggt_state["point_head.norm.weight"]
    with pytest.raises(
        ValueError, match=r"2 tensors:\n  vggt\S+layernorm.bias: missing\n  point_head.norm.weight: mis"
    ):
        vggt_from_official(vggt_state, **vggt_sizes)


@needs_golden
def test_a_missing_tensor_that_tells_a_size_is_named(vggt_state, vggt_sizes):
    del vggt_state["aggregator.camera_token"]
    with pytest.raises(ValueError, match="'vggt.camera_token'"):
        vggt_from_official(vggt_state, **vggt_sizes)


@needs_golden
def test_tensors_of_another_shape_are_named(vggt_state, vggt_sizes):
    vggt_state["camera_head.empty_pose_tokens"] = torch.zeros(1, 1, 8)
    with pytest.raises(ValueError, match=r"empty_pose: shape \(1, 1, 8\) instead of \(1, 1, 9\)"):
        vggt_from_official(vggt_state, **vggt_sizes)


@needs_golden
def test_a_checkpoint_of_another_model_is_refused(dinov3_state):
    with pytest.raises(ValueError, match="another architecture"):
        vggt_from_official(dinov3_state)


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("code-has-run",))


def test_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "callback": RunsCode()}, "evil.ckpt")
    with pytest.raises(ValueError, match="could run code"):
        read_tensors("evil.ckpt")
    assert not Path("code-has-run").exists()


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        read_tensors(tmp_path / "empty.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.ckpt"])
def test_a_damaged_file_is_refused(tmp_path, name):
    torch.save({"weight": torch.zeros(100)}, tmp_path / "whole.pt")
    (tmp_path / name).write_bytes((tmp_path / "whole.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        read_tensors(tmp_path / name)


def test_command_line_says_in_one_line_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match=r"^spa3r convert: There is no checkpoint at `\S+nowhere.pt`[^\n]*$"):
        main(["vggt", str(tmp_path / "nowhere.pt"), str(tmp_path / "result")])


@pytest.mark.parametrize("name", ["nowhere.ckpt", "."])
def test_an_absent_checkpoint_is_an_error(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no checkpoint at|no `.safetensors` file"):
        read_tensors(tmp_path / name)
