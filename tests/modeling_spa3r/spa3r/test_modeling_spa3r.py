"""Spa3R: what its latents and predictions depend on, what trains, how it is saved and loaded."""

import json
import socket

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, CLIPVisionConfig, SiglipVisionConfig
from transformers.utils import logging

from spa3r import Spa3RForPreTraining, Spa3RModel, VGGTForGeometry
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.modeling_spa3r.geometry import PRoPE, quaternion_to_rotation
from spa3r.modeling_spa3r.layers import Rope2D
from spa3r.modeling_spa3r.spa3r.teachers import Spa3RTeacher

VARIANTS = {
    "paper": {},
    "plucker": {"camera_embedding": "plucker"},
    "separate": {"view_aggregation": "separate"},
    "official_losses": {"regression_loss": "smooth_l1", "predict_context_views": True},
    "geometry_only": {"targets": ["geometry"], "teachers": {}},
    "semantic_only": {"targets": ["semantic"]},
}


def tiny_config(**changes):
    return Spa3RConfig(**(load_preset("spa3r-tiny") | changes))


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = Spa3RForPreTraining(tiny_config(**changes))
    # Weights of ordinary size, so that differences show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.freeze_teachers()
    return model.eval()


def random_views(batch_size=2, num_views=4, seed=1):
    return torch.rand(batch_size, num_views, 3, 28, 42, generator=torch.Generator().manual_seed(seed))


def random_cameras(batch_size=2, num_views=4, seed=2):
    generator = torch.Generator().manual_seed(seed)
    extrinsics = torch.eye(4).repeat(batch_size, num_views, 1, 1)
    extrinsics[..., :3, :3] = quaternion_to_rotation(torch.randn(batch_size, num_views, 4, generator=generator))
    extrinsics[..., :3, 3] = torch.randn(batch_size, num_views, 3, generator=generator)
    intrinsics = torch.tensor([[40.0, 0, 21], [0, 45.0, 14], [0, 0, 1]]).repeat(batch_size, num_views, 1, 1)
    return {"extrinsics": extrinsics, "intrinsics": intrinsics}


def gradients(model, *args, **kwargs):
    model.zero_grad()
    model(*args, **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("view_aggregation", ["asymmetric", "separate"])
def test_latents_ignore_what_target_views_show(view_aggregation):
    model = tiny_model(view_aggregation=view_aggregation)
    views = random_views()
    changed = views.clone()
    changed[:, 2:] = 1 - changed[:, 2:]
    expected, actual = model(views, 2), model(changed, 2)
    torch.testing.assert_close(actual.latents, expected.latents, atol=1e-6, rtol=0)
    assert not torch.allclose(actual.target_features["geometry"], expected.target_features["geometry"], atol=1e-2)


def test_latents_of_pretraining_are_those_of_the_context_views_alone(model):
    views = random_views()
    torch.testing.assert_close(model(views, 3).latents, model.model(views[:, :3]).latents, atol=1e-5, rtol=0)


def test_latents_ignore_the_order_of_views_after_the_first(model):
    views = random_views()
    latents = model.model(views[:, [0, 3, 1, 2]]).latents
    torch.testing.assert_close(latents, model.model(views).latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("camera_embedding", ["prope", "plucker"])
def test_predictions_are_unchanged_by_a_motion_of_the_world_and_its_unit(camera_embedding):
    model = tiny_model(camera_embedding=camera_embedding)
    views, cameras = random_views(), random_cameras()
    moved = dict(cameras)
    moved["extrinsics"] = cameras["extrinsics"] @ random_cameras(1, 1, seed=5)["extrinsics"]
    moved["extrinsics"][..., :3, 3] *= 3.0
    expected, actual = model(views, 2, **cameras), model(views, 2, **moved)
    torch.testing.assert_close(actual.predicted_features, expected.predicted_features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("camera_embedding", ["prope", "plucker"])
def test_predictions_depend_on_the_target_camera(camera_embedding):
    model = tiny_model(camera_embedding=camera_embedding)
    latents, cameras = model.model(random_views()).latents, random_cameras()
    here = model.decode(latents, cameras["extrinsics"], cameras["intrinsics"], (28, 42))
    there = model.decode(latents, cameras["extrinsics"].flip(1), cameras["intrinsics"], (28, 42))
    assert not torch.allclose(here["geometry"], there["geometry"], atol=1e-3)


def test_predictions_of_a_batch_are_those_of_its_scenes(model):
    views, cameras = random_views(3), random_cameras(3)
    batch = model(views, 2, **cameras)
    for scene in range(3):
        rows = slice(scene, scene + 1)
        single = model(views[rows], 2, **{name: tensor[rows] for name, tensor in cameras.items()})
        torch.testing.assert_close(batch.latents[rows], single.latents, atol=1e-5, rtol=0)
        for name, prediction in single.predicted_features.items():
            torch.testing.assert_close(batch.predicted_features[name][rows], prediction, atol=1e-5, rtol=0)


def test_hidden_states_of_the_encoder_end_in_the_latents(model):
    encoder = model.model
    output = encoder(random_views(), output_hidden_states=True)
    num_special = encoder.config.num_register_tokens + encoder.config.num_latents
    assert len(output.hidden_states) == encoder.config.num_encoder_layers + 1
    assert {tokens.shape for tokens in output.hidden_states} == {(2, num_special + 4 * 6, encoder.config.hidden_size)}
    last = encoder.encoder.norm(output.hidden_states[-1])[:, encoder.config.num_register_tokens : num_special]
    torch.testing.assert_close(last, output.latents)


def test_hidden_states_of_pretraining_are_the_encoders_then_the_decoders(model):
    model.model(random_views(), output_hidden_states=True)  # must not make the whole record the encoder twice
    output = model(random_views(), 2, output_hidden_states=True)
    config = model.config
    num_special = config.num_register_tokens + config.num_latents
    encoded, decoded = (2, num_special + 2 * 6, config.hidden_size), (2 * 2, num_special + 6, config.hidden_size)
    expected = (config.num_encoder_layers + 1) * [encoded] + config.num_decoder_layers * [decoded]
    assert [tuple(tokens.shape) for tokens in output.hidden_states] == expected


def test_attentions_are_weights_over_all_tokens_of_a_block():
    model = Spa3RForPreTraining._from_config(tiny_config(), attn_implementation="eager").eval()
    views, config = random_views(), model.config
    encoder = model.model(views, output_attentions=True).attentions
    both = model(views, 2, output_attentions=True).attentions
    assert len(encoder) == config.num_encoder_layers
    assert len(both) == config.num_encoder_layers + config.num_decoder_layers
    for weights in encoder + both:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_eager_attention_equals_sdpa(model):
    eager = Spa3RForPreTraining._from_config(model.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    assert eager.model.vggt.config._attn_implementation == "eager"
    views = random_views()
    torch.testing.assert_close(eager(views, 2).losses, model(views, 2).losses, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_close_to_float32(model):
    views = random_views()
    half = tiny_model().to(torch.bfloat16)
    similarity = torch.cosine_similarity(
        half.model(views.bfloat16()).latents.float(), model.model(views).latents, dim=-1
    )
    assert similarity.min() > 0.99
    assert torch.isfinite(half(views.bfloat16(), 2).loss)


def test_autocast_is_close_to_float32(model):
    views = random_views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(views, 2).loss
    torch.testing.assert_close(loss, model(views, 2).loss, rtol=0.03, atol=0)


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny_model().train()
    views = random_views()
    expected = gradients(model, views, 2)
    model.activation_checkpointing_enable()
    actual = gradients(model, views, 2)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_exactly_the_parameters_that_train_get_a_gradient(variant):
    model = tiny_model(**variant).train()
    frozen = tuple(model.frozen_modules())
    trained = gradients(model, random_views(), 2)
    for name, parameter in model.named_parameters():
        assert (name in trained) == (not name.startswith(frozen)), name
        assert parameter.requires_grad == (name in trained), name
    assert all(gradient.abs().sum() > 0 for name, gradient in trained.items() if name != "decoder.register_tokens")


def test_teachers_stay_in_evaluation_mode(model):
    model.train()
    assert model.decoder.training
    assert not any(module.training for frozen in model.frozen_modules().values() for module in frozen.modules())
    model.eval()


def test_loss_is_the_sum_of_l1_and_cosine_over_target_views(model):
    views = random_views()
    output = model(views, 1)
    expected = 0
    for name, prediction in output.predicted_features.items():
        target = output.target_features[name]
        assert prediction.shape == target.shape == (2, 3, 6, prediction.shape[-1])
        norms = (prediction**2).sum(-1).sqrt() * (target**2).sum(-1).sqrt()
        expected += (prediction - target).abs().mean() + (1 - (prediction * target).sum(-1) / norms).mean()
    torch.testing.assert_close(output.loss - output.losses["depth_probe"], expected, atol=1e-5, rtol=1e-5)


def test_depth_probe_does_not_train_the_decoder(model):
    model.zero_grad()
    model(random_views(), 2).losses["depth_probe"].backward()
    assert model.depth_probe.fc1.weight.grad is not None
    assert all(p.grad is None for p in model.decoder.parameters())


def test_given_depth_is_read_at_patch_corners_in_the_unit_of_the_cameras(model):
    cameras = random_cameras()
    cameras["extrinsics"][:, :, :3, :3] = torch.eye(3)
    cameras["extrinsics"][:, 0, :3, 3] = 0
    cameras["extrinsics"][:, 1:, :3, 3] = torch.tensor([0.0, 4.0, 0.0])
    depth = torch.rand(2, 4, 28, 42)
    depth[0, 2] = 0
    output = model(random_views(), 2, depth=depth, **cameras)
    corners = torch.stack([depth[:, 2:, 14 * (i // 3), 14 * (i % 3)] for i in range(6)], dim=-1)
    torch.testing.assert_close(output.target_depth, corners / 4)
    known = torch.nn.functional.smooth_l1_loss(output.probe_depth, corners / 4, reduction="none")[corners > 0]
    torch.testing.assert_close(output.losses["depth_probe"], known.mean())


@pytest.mark.parametrize(
    "vision_config",
    [
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        ),
    ],
    ids=["clip", "siglip"],
)
def test_any_vision_transformer_teaches_by_its_patch_tokens(vision_config):
    side = vision_config.image_size
    teacher = {
        "vision_config": vision_config.to_dict(),
        "image_size": side,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    config = tiny_config(teachers={"semantic": teacher}).teacher_config("semantic")
    module = Spa3RTeacher(config).eval()
    image = torch.rand(1, 1, 3, side, side)
    tokens = AutoModel.from_config(vision_config)
    tokens.load_state_dict(module.model.state_dict())
    expected = tokens.eval()((image[0] - 0.5) / 0.25).last_hidden_state[:, -4:]
    torch.testing.assert_close(module(image, (2, 2))[0], expected, atol=1e-5, rtol=0)


def test_saved_and_loaded_model_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = Spa3RForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    views = random_views()
    torch.testing.assert_close(loaded.eval()(views, 2).loss, model(views, 2).loss)


def test_auto_classes_load_a_pretraining_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), Spa3RConfig)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), Spa3RForPreTraining)
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(encoder, Spa3RModel)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    views = random_views()
    torch.testing.assert_close(encoder.eval()(views).latents, model.model(views).latents)


def test_low_memory_loading_restores_what_no_checkpoint_holds(model, tmp_path):
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        assert Spa3RForPreTraining(model.config).depth_probe.fc1.weight.is_meta
    loaded = Spa3RForPreTraining.from_pretrained(tmp_path, device_map={"": "cpu"}, dtype=torch.float32)
    for (name, actual), (_, expected) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(actual, expected), name


def test_constructor_opens_no_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a constructor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    teacher = load_preset("spa3r-tiny")["teachers"]["semantic"] | {"checkpoint": "facebook/some-teacher"}
    Spa3RForPreTraining(tiny_config(vggt_checkpoint="facebook/VGGT-1B", teachers={"semantic": teacher}))


def test_checkpoint_without_teachers_fetches_them_where_it_names_them(tmp_path):
    torch.manual_seed(3)
    config = tiny_config()
    vggt = VGGTForGeometry(config.vggt_config)
    vggt.save_pretrained(tmp_path / "vggt")
    model = tiny_model(vggt_checkpoint=str(tmp_path / "vggt"))
    model.load_teachers()
    frozen = tuple(f"{name}." for name in model.frozen_modules())
    model.config.teachers_included = False
    trained = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(frozen)}
    model.save_pretrained(tmp_path / "checkpoint", state_dict=trained)

    loaded = Spa3RForPreTraining.from_pretrained(tmp_path / "checkpoint").eval()
    for name, tensor in vggt.vggt.state_dict().items():
        assert torch.equal(loaded.model.vggt.state_dict()[name], tensor), name
    views = random_views()
    # Untrained teachers come from the seed again; memory alignment may change the last bit of a product.
    torch.testing.assert_close(loaded(views, 2).losses, model(views, 2).losses)
    encoder = Spa3RModel.from_pretrained(tmp_path / "checkpoint").eval()
    torch.testing.assert_close(encoder(views).latents, model.model(views).latents)


def test_untrained_teachers_depend_on_their_seed_alone(capsys):
    logging.set_verbosity_warning()
    states = []
    for seed, teacher_seed in ((0, 0), (1, 0), (0, 1)):
        model = tiny_model(seed, teacher_seed=teacher_seed)
        model.load_teachers()
        states.append(torch.cat([p.flatten() for m in model.frozen_modules().values() for p in m.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_teachers_of_another_architecture_are_refused(model):
    other = VGGTForGeometry(
        tiny_config(vggt_config=load_preset("spa3r-tiny")["vggt_config"] | {"hidden_size": 48}).vggt_config
    )
    with pytest.raises(ValueError, match="`vggt`"):
        model.set_teachers(other)
    with pytest.raises(ValueError, match="`depth`"):
        model.set_teachers(depth=other)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    VGGTForGeometry(tiny_config().vggt_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`vggt`.*`spa3r`"):
        Spa3RModel.from_pretrained(tmp_path)


def save_vggt(folder, **changes):
    """A VGGT of the tiny preset's architecture, with changes."""
    settings = load_preset("spa3r-tiny")["vggt_config"] | changes
    vggt = VGGTForGeometry(tiny_config(vggt_config=settings).vggt_config)
    vggt.save_pretrained(folder)
    return vggt


def test_upstream_vggt_weights_run_with_the_official_norm(tmp_path):
    vggt = save_vggt(tmp_path, global_qk_norm="layer_norm")
    settings = load_preset("spa3r-tiny")["vggt_config"] | {"global_qk_norm": "rms_norm"}
    for model_class in (Spa3RForPreTraining, Spa3RModel):
        model = model_class(tiny_config(vggt_config=settings, vggt_checkpoint=str(tmp_path)))
        model.load_teachers()
        loaded = next(iter(model.frozen_modules().values()))
        norm = loaded.global_blocks[0].attention.q_norm
        assert isinstance(norm, torch.nn.RMSNorm)
        assert torch.equal(norm.weight, vggt.vggt.global_blocks[0].attention.q_norm.weight)


def test_a_vggt_checkpoint_of_other_settings_is_refused(tmp_path):
    save_vggt(tmp_path, camera_iterations=3)
    model = Spa3RModel(tiny_config(vggt_checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match="`camera_iterations` 3.* 2"):
        model.load_teachers()


def test_a_vggt_checkpoint_with_official_names_is_refused(tmp_path):
    vggt = save_vggt(tmp_path)
    official = {name.replace("vggt.", "aggregator."): tensor for name, tensor in vggt.state_dict().items()}
    save_file(official, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = Spa3RModel(tiny_config(vggt_checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match="`VGGTForGeometry`.*`spa3r convert`"):
        model.load_teachers()


def test_vggt_refuses_a_spa3r_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`spa3r`.*`vggt`"):
        VGGTForGeometry.from_pretrained(tmp_path)


def test_position_embeddings_move_between_devices():
    cameras = random_cameras(1, 1)
    prope = PRoPE(cameras["extrinsics"], cameras["intrinsics"], (2, 3), (28, 42), head_dim=16)
    rope = Rope2D(torch.zeros(4, 2, dtype=torch.long), head_dim=16)
    for embedding in (prope, rope):
        moved = embedding.to("meta")
        assert moved.cos.is_meta and moved.sin.is_meta
        assert not embedding.cos.is_meta
    assert prope.to("meta").query_matrix.is_meta


def test_settings_that_a_library_saved_with_a_model_do_no_harm(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["left_by_a_trainer"] = saved["vggt_config"]["left_by_a_trainer"] = True
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert isinstance(AutoModel.from_pretrained(tmp_path), Spa3RModel)


def test_config_survives_a_round_trip(tmp_path):
    config = tiny_config(camera_embedding="plucker", targets=["semantic"], vggt_checkpoint="somewhere")
    config.save_pretrained(tmp_path)
    assert Spa3RConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {
        "transformers_version": config.to_dict()["transformers_version"]
    }


WRONG_CONFIGURATIONS = {
    "an unknown camera embedding": ({"camera_embedding": "none"}, "camera_embedding"),
    "heads that PRoPE cannot divide": ({"hidden_size": 36}, "`hidden_size`"),
    "a target without a teacher": ({"targets": ["normals"]}, "`targets`.*normals"),
    "no target": ({"targets": []}, "`targets`"),
    "a target twice": ({"targets": ["geometry", "geometry"]}, "`targets`"),
    "a teacher named after VGGT's features": ({"teachers": {"geometry": {}}}, "`geometry`"),
    "an unknown setting of a teacher": ({"teachers": {"semantic": {"size": 3}}}, r"\['size'\]"),
    "a teacher's image of parts of patches": ({"teachers": {"semantic": {"image_size": 225}}}, "`image_size`.*225"),
    "a misspelt setting": ({"num_latent": 3}, r"`Spa3RConfig`.*\['num_latent'\]"),
    "a misspelt setting of VGGT": ({"vggt_config": {"hiden_size": 3}}, r"`VGGTConfig`.*\['hiden_size'\]"),
}


@pytest.mark.parametrize(("changes", "named"), WRONG_CONFIGURATIONS.values(), ids=WRONG_CONFIGURATIONS)
def test_a_wrong_configuration_is_refused(changes, named):
    errors = (ValueError, StrictDataclassClassValidationError, StrictDataclassFieldValidationError)
    with pytest.raises(errors, match=named):
        tiny_config(**changes)


def infinite_cameras():
    cameras = random_cameras()
    cameras["extrinsics"][1, 2, 0, 3] = float("inf")
    return cameras


VIEWS, EYES = torch.full((2, 4, 3, 28, 42), 0.5), torch.eye(4).expand(2, 4, 4, 4)
WRONG_INPUT = {
    "one view": (VIEWS[:, :1], 1, {}, ValueError, r"`pixel_values`.*\(2, 1, 3, 28, 42\)"),
    "no batch": (VIEWS[0], 1, {}, ValueError, "`pixel_values`"),
    "no target view": (VIEWS, 4, {}, ValueError, "`num_context_views`.* 4 .*4 views"),
    "no context view": (VIEWS, 0, {}, ValueError, "`num_context_views`.* 0 .*4 views"),
    "parts of patches": (VIEWS[..., :40], 2, {}, ValueError, "`pixel_values`.*28 x 40"),
    "bytes as floats": (VIEWS * 255, 2, {}, ValueError, "`pixel_values`.*127.5"),
    "bytes": (VIEWS.byte(), 2, {}, ValueError, "`pixel_values`.*torch.uint8"),
    "poses alone": (VIEWS, 2, {"extrinsics": EYES}, ValueError, "`intrinsics`"),
    "intrinsics alone": (VIEWS, 2, {"intrinsics": EYES[..., :3, :3]}, ValueError, "`extrinsics`"),
    "depth without cameras": (VIEWS, 2, {"depth": VIEWS[:, :, 0]}, ValueError, "`depth`.*`extrinsics`"),
    "cameras of too few views": (
        VIEWS,
        2,
        {"extrinsics": EYES[:, :3], "intrinsics": EYES[..., :3, :3]},
        ValueError,
        r"`extrinsics`.*\(2, 3, 4, 4\)",
    ),
    "cameras that are not finite": (VIEWS, 2, infinite_cameras(), ValueError, "`extrinsics`"),
    "a misspelt keyword": (VIEWS, 2, {"extrinsic": EYES}, TypeError, "extrinsic"),
}


@pytest.mark.parametrize(
    ("views", "num_context_views", "options", "error", "named"), WRONG_INPUT.values(), ids=WRONG_INPUT
)
def test_wrong_input_is_refused(model, views, num_context_views, options, error, named):
    with pytest.raises(error, match=named):
        model(views, num_context_views, **options)


def test_the_encoder_refuses_unknown_keywords(model):
    with pytest.raises(TypeError, match="num_context_views"):
        model.model(VIEWS, num_context_views=2)
