import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spa3r.configuration.configuration_vggt import VGGTConfig
from spa3r.modeling_spa3r.geometry import PRoPE
from spa3r.modeling_spa3r.layers import Attention, Block, Rope2D
from spa3r.modeling_spa3r.vggt.modeling_vggt import VGGTDenseHead, VGGTForGeometry, VGGTModel, normalize_images


def tiny_config(**changes) -> VGGTConfig:
    sizes = {
        "image_size": 42,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_register_tokens": 2,
        "patch_embedding_layers": 1,
        "patch_embedding_heads": 2,
        "camera_layers": 1,
        "camera_heads": 4,
        "camera_iterations": 2,
        "dense_hidden_size": 16,
        "dense_channels": [8, 8, 16, 16],
        "dense_layers": [0, 1, 2, 3],
        "initializer_range": 0.1,
    }
    return VGGTConfig(**(sizes | changes))


def strengthen(model: nn.Module) -> nn.Module:
    """Let every branch and token count: as initialised, VGGT is close to the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".scale", "token", "tokens", "empty_pose")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif "output_conv3" in name or "pose_mlp.fc2" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(params=["vit-layer_norm", "conv-rms_norm"])
def model(request) -> VGGTModel:
    torch.manual_seed(0)
    patch_embedding, norm = request.param.split("-")
    return strengthen(VGGTModel(tiny_config(patch_embedding=patch_embedding, global_qk_norm=norm))).eval()


@pytest.fixture
def geometry() -> VGGTForGeometry:
    torch.manual_seed(0)
    return strengthen(VGGTForGeometry(tiny_config())).eval()


@pytest.fixture
def views() -> Tensor:
    """Two scenes of four views of 28 x 42 pixels."""
    return torch.rand(2, 4, 3, 28, 42, generator=torch.Generator().manual_seed(2))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# Shapes


def test_features_have_one_token_per_patch_and_both_blocks_channels(model, views):
    output = model(views, output_layers=[2, 0])
    assert output.patch_tokens.shape == (2, 4, 2 * 3, 2 * 32)
    assert output.camera_tokens.shape == (2, 4, 2 * 32)
    assert [tokens.shape for tokens in output.layer_patch_tokens] == [(2, 4, 6, 64)] * 2


def test_geometry_is_given_per_view_and_per_pixel(geometry, views):
    output = geometry(views)
    assert output.extrinsics.shape == (2, 4, 4, 4)
    assert output.intrinsics.shape == (2, 4, 3, 3)
    assert [encoding.shape for encoding in output.pose_encodings] == [(2, 4, 9)] * 2
    assert output.depth.shape == output.depth_confidence.shape == output.points_confidence.shape == (2, 4, 28, 42)
    assert output.points.shape == (2, 4, 28, 42, 3)


def test_intermediate_layers_come_in_the_order_asked_for(model, views):
    first, last = model(views, output_layers=[0]), model(views, output_layers=[3])
    both = model(views, output_layers=[3, 0]).layer_patch_tokens
    assert torch.equal(both[0], last.patch_tokens)
    assert torch.equal(both[1], first.layer_patch_tokens[0])


def test_output_is_a_tuple_without_return_dict(model, views):
    assert torch.equal(model(views, return_dict=False)[0], model(views).patch_tokens)


# Recorded outputs


def test_hidden_states_are_the_tokens_before_and_after_every_block(model, views):
    output = model(views, output_hidden_states=True)
    frame, across = (8, 9, 32), (2, 36, 32)
    assert [tuple(tokens.shape) for tokens in output.hidden_states] == [frame] + 4 * [frame, across]
    last = torch.cat([tokens.view(2, 4, 9, 32) for tokens in output.hidden_states[-2:]], dim=-1)
    assert torch.equal(last[:, :, 3:], output.patch_tokens)
    assert_close(output.hidden_states[0].view(2, 4, 9, 32), model.embed(views))


@pytest.mark.parametrize("num_context_views", [None, 2])
def test_attentions_are_the_weights_of_every_block(model, views, num_context_views):
    model.set_attn_implementation("eager")
    weights = model(views, num_context_views, output_attentions=True).attentions
    assert [tuple(w.shape) for w in weights] == 4 * [(8, 2, 9, 9), (2, 2, 36, 36)]
    assert_close(torch.stack([w.sum(-1).mean() for w in weights]), torch.ones(8))


def test_context_tokens_have_no_weight_on_target_tokens(model, views):
    model.set_attn_implementation("eager")
    weights = torch.stack(model(views, num_context_views=2, output_attentions=True).attentions[1::2])
    assert weights[..., :18, 18:].count_nonzero() == 0
    assert (weights[..., :18, :18] > 0).all() and (weights[..., 18:, :] > 0).all()


def test_nothing_is_recorded_unless_asked_for(model, views):
    output = model(views)
    assert output.hidden_states is None and output.attentions is None


# Attention across views


def dense_masked_attention(attention: Attention, hidden_states: Tensor, rope: Rope2D, may_attend: Tensor) -> Tensor:
    """What `Attention` computes, written with one mask over all pairs of tokens."""
    batch_size, num_tokens, size = hidden_states.shape
    query, key, value = attention.qkv(hidden_states).split(size, dim=-1)
    query, key, value = (
        x.view(batch_size, num_tokens, attention.num_heads, -1).transpose(1, 2) for x in (query, key, value)
    )
    query, key, value = rope.rotate(attention.q_norm(query), attention.k_norm(key), value)
    scores = query @ key.transpose(-1, -2) / attention.head_dim**0.5
    weights = scores.masked_fill(~may_attend, float("-inf")).softmax(-1)
    return attention.proj((weights @ value).transpose(1, 2).reshape(batch_size, num_tokens, size))


@pytest.mark.parametrize("qk_norm", [None, "layer_norm", "rms_norm"])
def test_asymmetric_attention_equals_a_dense_mask(qk_norm):
    torch.manual_seed(0)
    config = tiny_config()
    config._attn_implementation = "sdpa"
    attention = Attention(config, 32, 2, qk_norm)
    hidden_states, num_context_tokens = torch.randn(2, 10, 32), 6
    rope = Rope2D(torch.randint(0, 5, (10, 2)), head_dim=16)
    is_target = torch.arange(10) >= num_context_tokens
    may_attend = is_target[:, None] | ~is_target[None, :]
    expected = dense_masked_attention(attention, hidden_states, rope, may_attend)
    assert_close(attention(hidden_states, rope, num_context_tokens)[0], expected)


def test_context_features_are_unchanged_by_what_target_views_show(model, views):
    others = views.clone()
    others[:, 2:] = torch.rand(2, 2, 3, 28, 42)
    features = model(views, num_context_views=2).patch_tokens
    assert torch.equal(model(others, num_context_views=2).patch_tokens[:, :2], features[:, :2])


def test_context_features_equal_a_pass_over_context_views_alone(model, views):
    features = model(views, num_context_views=2).patch_tokens[:, :2]
    assert_close(features, model(views[:, :2]).patch_tokens)


def test_target_features_depend_on_other_target_views(model, views):
    others = views.clone()
    others[:, 3] = 1 - others[:, 3]
    features = model(views, num_context_views=2).patch_tokens
    assert not torch.allclose(model(others, num_context_views=2).patch_tokens[:, 2], features[:, 2], atol=1e-4)


def test_all_views_being_context_equals_no_partition(model, views):
    assert torch.equal(model(views, num_context_views=4).patch_tokens, model(views).patch_tokens)


def test_features_follow_a_permutation_of_all_views_but_the_first(model, views):
    order = [0, 3, 1, 2]
    assert_close(model(views[:, order]).patch_tokens, model(views).patch_tokens[:, order])


def test_first_view_is_special(model, views):
    order = [1, 0, 2, 3]
    swapped = model(views[:, order]).patch_tokens
    assert not torch.allclose(swapped, model(views).patch_tokens[:, order], atol=1e-4)


@pytest.mark.parametrize("num_context_views", [None, 2])
def test_batch_equals_single_scenes(model, views, num_context_views):
    singles = [model(scene[None], num_context_views).patch_tokens for scene in views]
    assert_close(model(views, num_context_views).patch_tokens, torch.cat(singles))


# Numerics and library services


@pytest.mark.parametrize("num_context_views", [None, 2])
def test_eager_attention_equals_sdpa(model, views, num_context_views):
    features = model(views, num_context_views).patch_tokens
    model.set_attn_implementation("eager")
    assert_close(model(views, num_context_views).patch_tokens, features)


def test_attention_implementation_reaches_the_patch_embedding():
    model = VGGTForGeometry._from_config(tiny_config(), attn_implementation="eager")
    assert model.vggt.patch_embedding.vit.config._attn_implementation == "eager"


def test_bfloat16_is_close_to_float32(geometry, views):
    expected = geometry(views)
    actual = copy.deepcopy(geometry).to(torch.bfloat16)(views.bfloat16())
    for name in ("depth", "points_confidence", "extrinsics"):
        error = (getattr(actual, name).float() - getattr(expected, name)).abs().mean()
        assert error < 0.05 * getattr(expected, name).abs().mean(), name


def test_rms_norm_keeps_float32_epsilon_in_bfloat16():
    config = tiny_config()
    q_norm = Attention(config, 32, 2, "rms_norm").to(torch.bfloat16).q_norm
    small = torch.full((16,), 1e-3, dtype=torch.bfloat16)
    expected = small.float() / (small.float().square().mean() + torch.finfo(torch.float32).eps).sqrt()
    assert_close(q_norm(small).float(), expected, tolerance=1e-2)


def test_autocast_keeps_the_features_close(model, views):
    expected = model(views).patch_tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model(views).patch_tokens
    assert (actual.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("num_context_views", [None, 2])
def test_gradient_checkpointing_gives_equal_gradients(model, views, num_context_views):
    model.train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(views, num_context_views).patch_tokens.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


def test_every_used_parameter_can_be_trained(geometry, views):
    output = geometry.train()(views)
    losses = (output.depth, output.depth_confidence, output.points, output.points_confidence)
    loss = sum(value.mean() for value in losses) + sum(encoding.mean() for encoding in output.pose_encodings)
    loss.backward()
    without_gradient = [name for name, parameter in geometry.named_parameters() if parameter.grad is None]
    assert without_gradient == ["vggt.patch_embedding.vit.embeddings.mask_token"]


def test_saved_model_loads_with_equal_outputs(geometry, views, tmp_path):
    geometry.save_pretrained(tmp_path)
    loaded, info = VGGTForGeometry.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(views).points, geometry(views).points)


def test_backbone_loads_from_a_checkpoint_with_heads(geometry, views, tmp_path):
    geometry.save_pretrained(tmp_path)
    backbone, info = VGGTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(backbone(views).patch_tokens, geometry.vggt(views).patch_tokens)


def test_model_on_meta_device_computes_shapes(views):
    with torch.device("meta"):
        model = VGGTForGeometry(tiny_config())
    assert model(views.to("meta"), num_context_views=2).points.shape == (2, 4, 28, 42, 3)


def test_missing_weights_are_initialised_when_loading(geometry, tmp_path):
    state = {k: v for k, v in geometry.state_dict().items() if "global_blocks.1" not in k and "camera_token" not in k}
    geometry.save_pretrained(tmp_path, state_dict=state)
    loaded = VGGTForGeometry.from_pretrained(tmp_path)
    assert torch.equal(loaded.vggt.global_blocks[1].layer_scale1.scale, torch.full((32,), 0.01))
    assert loaded.vggt.camera_token.abs().max() < 1e-4


class ShapeRecorder(TorchDispatchMode):
    """Notes the last two dimensions of every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.shapes |= {tuple(leaf.shape[-2:]) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)}
        return output


@pytest.mark.parametrize(("implementation", "made"), [("sdpa", False), ("eager", True)])
def test_fused_attention_makes_no_tensor_over_pairs_of_tokens(model, views, implementation, made):
    model.set_attn_implementation(implementation)
    half, whole = 2 * (3 + 6), 4 * (3 + 6)
    with ShapeRecorder() as recorder, torch.no_grad():
        model(views, num_context_views=2)
    assert bool(recorder.shapes & {(half, half), (half, whole), (whole, whole)}) == made


# Parts


def test_images_are_normalised_with_imagenet_statistics():
    image = torch.tensor([0.485, 0.456, 0.406 + 0.225]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert_close(normalize_images(image)[0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]))


def test_rotary_products_depend_on_relative_position_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 4, 16)
    positions = torch.randint(0, 9, (4, 2))
    products = []
    for shift in (0, 7):
        rotated_query, rotated_key, _ = Rope2D(positions + shift, 16).rotate(query, key, key)
        products.append(rotated_query @ rotated_key.transpose(-1, -2))
    assert_close(products[0], products[1], tolerance=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_rotation_multiplies_complex_numbers(dtype, tolerance):
    positions = torch.tensor([[0, 0], [3, 1], [36, 27]])
    query = torch.randn(2, 4, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    rotated, _, _ = Rope2D(positions, head_dim=32).rotate(query, query, query)
    angles = positions[:, :, None] * 100.0 ** -(torch.arange(8).double() / 8)
    real, imaginary = query.double().unflatten(-1, (2, 2, 8)).unbind(-2)
    expected = torch.view_as_real(torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles))
    expected = expected.movedim(-1, -2).flatten(-3)
    assert rotated.dtype == dtype
    assert (rotated - expected).norm() <= tolerance * expected.norm()


def test_block_accepts_projective_positions_under_checkpointing():
    torch.manual_seed(0)
    config = tiny_config()
    config._attn_implementation = "sdpa"
    block = Block(config, 32, 2, 4.0, qk_norm="rms_norm", layer_scale_init=None, layer_norm_eps=1e-6)
    extrinsics = torch.eye(4).expand(1, 1, 4, 4)
    prope = PRoPE(extrinsics, None, grid_size=(2, 3), image_size=(28, 42), head_dim=16)
    hidden_states = torch.randn(1, 9, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(block(hidden_states, prope).square().sum(), hidden_states)
    block.gradient_checkpointing = True
    block._gradient_checkpointing_func = lambda function, *args: torch.utils.checkpoint.checkpoint(
        function, *args, use_reentrant=False
    )
    (actual,) = torch.autograd.grad(
        block.train()(hidden_states, position_embedding=prope).square().sum(), hidden_states
    )
    assert_close(actual, expected)


def test_dense_head_gives_the_same_in_one_chunk_and_in_many(geometry, views, monkeypatch):
    tokens = geometry.vggt(views, output_layers=[0, 1, 2, 3]).layer_patch_tokens
    expected, _ = geometry.depth_head(tokens, (28, 42))
    monkeypatch.setattr(VGGTDenseHead, "FRAMES_PER_CHUNK", 3)
    assert_close(geometry.depth_head(tokens, (28, 42))[0], expected)


def test_dense_head_with_a_stride_gives_the_pixels_of_a_full_prediction(geometry, views):
    tokens = geometry.vggt(views, output_layers=[0, 1, 2, 3]).layer_patch_tokens
    points, confidence = geometry.point_head(tokens, (28, 42))
    strided_points, strided_confidence = geometry.point_head(tokens, (28, 42), stride=14)
    assert_close(strided_points, points[:, :, ::14, ::14])
    assert_close(strided_confidence, confidence[:, :, ::14, ::14])


# Configuration


def test_configuration_round_trip(tmp_path):
    config = tiny_config(global_qk_norm="rms_norm")
    config.save_pretrained(tmp_path)
    assert VGGTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


IMPOSSIBLE_CONFIGURATIONS = {
    "heads that do not divide into rotated pairs": ({"num_attention_heads": 16}, "`num_attention_heads`"),
    "heads that do not divide the channels": ({"patch_embedding_heads": 5}, "`patch_embedding_heads`"),
    "an image of parts of patches": ({"image_size": 43}, "`image_size`"),
    "too few dense layers": ({"dense_layers": [0, 1]}, "`dense_layers`"),
    "channels of a part of a sine": ({"dense_channels": [8, 8, 16, 18]}, "`dense_channels`"),
    "an unknown norm": ({"global_qk_norm": "batch_norm"}, "global_qk_norm"),
}


@pytest.mark.parametrize(("changes", "named"), IMPOSSIBLE_CONFIGURATIONS.values(), ids=IMPOSSIBLE_CONFIGURATIONS)
def test_an_impossible_configuration_is_refused(changes, named):
    errors = (StrictDataclassClassValidationError, StrictDataclassFieldValidationError)
    with pytest.raises(errors, match=named):
        tiny_config(**changes)


def test_camera_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="`num_heads`.* 64 and 5"):
        VGGTForGeometry(tiny_config(camera_heads=5))


# Wrong input


WRONG_INPUT = {
    "one scene without a batch": (lambda views: views[0], {}, ValueError, "`pixel_values`"),
    "no views": (lambda views: views[:, :0], {}, ValueError, "`pixel_values`.* 0 views"),
    "parts of patches": (lambda views: views[..., :40], {}, ValueError, "`pixel_values`.* 28 x 40"),
    "bytes": (lambda views: (views * 255).byte(), {}, ValueError, "`pixel_values`.* torch.uint8"),
    "normalised images": (lambda views: views * 2 - 1, {}, ValueError, "`pixel_values`.* -"),
    "infinite pixels": (lambda views: views / 0, {}, ValueError, "`pixel_values`"),
    "no context view": (lambda views: views, {"num_context_views": 0}, ValueError, "`num_context_views`.* 0"),
    "too many context views": (lambda views: views, {"num_context_views": 5}, ValueError, "`num_context_views`.* 5"),
    "layers that do not exist": (lambda views: views, {"output_layers": [0, 23, 4]}, ValueError, r"\[4, 23\]"),
    "a misspelt keyword": (lambda views: views, {"num_context_view": 2}, TypeError, "num_context_view"),
    "weights of fused attention": (
        lambda views: views,
        {"output_attentions": True},
        ValueError,
        "`output_attentions`",
    ),
}


@pytest.mark.parametrize(("change", "options", "error", "named"), WRONG_INPUT.values(), ids=WRONG_INPUT)
def test_wrong_input_is_refused(model, views, change, options, error, named):
    with pytest.raises(error, match=named):
        model(change(views), **options)
