"""Spa3R on a geometry model that is not VGGT: `NanoGeometry` has another patch size, meters, and takes two passes."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from nano_geometry import NanoGeometry, NanoGeometryConfig
from refusals import refused
from tiny_pretraining import TINY_RECIPE
from transformers import AutoModel, CLIPConfig

from spa3r import Spa3RForPreTraining, Spa3RModel, VGGTModel
from spa3r.configuration import Spa3RConfig, Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.assemble import make_processor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.trainers.pretraining.pretrain import main as pretrain

PASSES = {"view_aggregation": "separate", "normalize_cameras": False}
NUM_VIEWS, NUM_CONTEXT = 4, 2


def nano_config(geometry=None, **changes):
    geometry = {"model_type": "nano_geometry"} | (geometry or {})
    return Spa3RConfig(**(load_preset("spa3r-tiny") | PASSES | {"vggt_config": geometry} | changes))


def nano_model(geometry=None, **changes):
    torch.manual_seed(0)
    model = Spa3RForPreTraining(nano_config(geometry, **changes))
    model.freeze_teachers()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return nano_model()


@pytest.fixture(scope="module")
def views():
    return torch.rand(2, NUM_VIEWS, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def cameras(num_views=NUM_VIEWS):
    """Cameras that look one way, two meters apart, the first at the origin."""
    extrinsics = torch.eye(4).repeat(2, num_views, 1, 1)
    extrinsics[:, :, 0, 3] = -2.0 * torch.arange(num_views)
    intrinsics = torch.tensor([[48.0, 0, 24], [0, 48, 16], [0, 0, 1]]).repeat(2, num_views, 1, 1)
    return {"extrinsics": extrinsics, "intrinsics": intrinsics}


def test_vggt_is_the_geometry_model_by_default():
    model = Spa3RModel(Spa3RConfig(**load_preset("spa3r-tiny")))
    config = model.config.vggt_config
    assert isinstance(model.vggt, VGGTModel)
    assert (config.patch_size, config.feature_size, config.has_asymmetric_pass, config.unit) == (14, 64, True, "own")


@torch.no_grad()
def test_features_cameras_and_depth_are_those_of_the_geometry_model(model, views):
    output = model(views, NUM_CONTEXT)
    seen = model.model.vggt(views)
    assert torch.equal(output.target_features["geometry"], seen.patch_tokens[:, NUM_CONTEXT:])
    assert torch.equal(output.extrinsics, seen.extrinsics) and torch.equal(output.intrinsics, seen.intrinsics)
    assert torch.equal(output.target_depth, seen.depth[:, NUM_CONTEXT:].flatten(-2))
    assert output.predicted_features["geometry"].shape == (2, NUM_VIEWS - NUM_CONTEXT, 2 * 3, 24)


@torch.no_grad()
def test_latents_ignore_target_views(model, views):
    changed = views.clone()
    changed[:, NUM_CONTEXT:] = 1 - changed[:, NUM_CONTEXT:]
    assert torch.equal(model(changed, NUM_CONTEXT).latents, model(views, NUM_CONTEXT).latents)
    assert not torch.equal(model.model.vggt(changed).patch_tokens[:, :1], model.model.vggt(views).patch_tokens[:, :1])


@torch.no_grad()
def test_given_cameras_keep_their_meters(model, views):
    output = model(views, NUM_CONTEXT, **cameras())
    torch.testing.assert_close(output.extrinsics, cameras()["extrinsics"])


def test_without_depth_the_probe_learns_nothing(views):
    losses = nano_model({"has_depth": False})(views, NUM_CONTEXT).losses
    assert losses["depth_probe"] == 0 and losses["geometry_l1"] > 0


def test_the_geometry_model_is_frozen_and_all_else_trains(views):
    model = nano_model().train()
    model(views, NUM_CONTEXT).loss.backward()
    frozen = tuple(f"{name}." for name in model.frozen_modules())
    assert not model.model.vggt.training
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


def test_a_saved_model_loads_with_its_geometry_model(model, views, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded.vggt, NanoGeometry) and isinstance(loaded.config.vggt_config, NanoGeometryConfig)
    with torch.no_grad():
        assert torch.equal(loaded(views).latents, model.model(views).latents)


def test_weights_come_from_the_checkpoint_of_the_geometry_model(tmp_path):
    torch.manual_seed(5)
    teacher = NanoGeometry(NanoGeometryConfig())
    teacher.save_pretrained(tmp_path)
    model = nano_model(vggt_checkpoint=str(tmp_path))
    model.load_teachers()
    assert all(
        torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in model.model.vggt.state_dict().items()
    )


def test_it_trains_from_a_preset_and_ends_with_a_model(rooms, tmp_path):
    preset = tmp_path / "nano.json"
    preset.write_text(json.dumps(nano_config().to_diff_dict()))
    options = TINY_RECIPE | {"preset": preset, "image_width": 64, "max_steps": 1, "output_dir": tmp_path / "run"}
    scenes = ["--scenes", f"rooms:{rooms}"]
    pretrain([*scenes, *(str(part) for name, value in options.items() for part in (f"--{name}", value))])
    assert isinstance(Spa3RModel.from_pretrained(tmp_path / "run" / "model").vggt, NanoGeometry)


def test_a_vision_language_model_gets_images_for_patches_of_both_sizes():
    vlm = load_preset("spa3-vlm-qwen3-tiny") | {"spatial_config": nano_config().to_dict()}
    same = make_processor(Spa3VLMConfig(**vlm), byte_tokenizer(), 64).image_processor
    other = Spa3VLMConfig(**(vlm | {"vlm_config": load_preset("spa3-vlm-tiny")["vlm_config"]}))
    apart = make_processor(other, byte_tokenizer(), 64).image_processor
    assert (same.patch_size, same.geometry_patch_size) == (16, None)
    assert (apart.patch_size, apart.geometry_patch_size) == (14, 16)


# Wrong input.

WRONG = {
    "two passes are needed": ({}, {"view_aggregation": "asymmetric"}, "`nano_geometry`.*`separate`"),
    "meters and scaled cameras": ({}, {"normalize_cameras": True}, "`normalize_cameras`.*meters"),
    "an unknown unit": ({"unit": "feet"}, {}, "`unit`.*`feet`"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_geometry_model_that_does_not_fit_the_configuration_is_refused(wrong):
    geometry, changes, named = WRONG[wrong]
    with pytest.raises(StrictDataclassClassValidationError, match=named):
        nano_config(geometry, **changes)


def test_a_model_that_is_no_geometry_model_is_refused_by_what_it_lacks():
    with pytest.raises(StrictDataclassClassValidationError, match="`clip`.*`patch_size`.*`unit`"):
        nano_config(vggt_config=CLIPConfig())


def test_images_that_are_no_whole_patches_are_refused(model):
    with refused("`pixel_values`", "28 x 42", "16 pixels"):
        model(torch.rand(1, 3, 3, 28, 42), 2)


def test_missing_cameras_are_refused(views):
    with refused("`nano_geometry`", "`extrinsics`"):
        nano_model({"has_cameras": False})(views, NUM_CONTEXT)


def test_vggts_features_as_representation_need_vggt():
    vlm = load_preset("spa3-vlm-tiny") | {"spatial_config": nano_config().to_dict()}
    with pytest.raises(StrictDataclassClassValidationError, match="`spatial_representation='vggt'`.*`nano_geometry`"):
        Spa3VLMConfig(**vlm, spatial_representation="vggt")
