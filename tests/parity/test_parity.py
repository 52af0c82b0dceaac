"""Parity with the official code: every output of every recording of VGGT, Spa3R and their data.

See recordings.py for what a recording is, and test_parity_vlm.py for those of Spa3-VLM.

Not compared, because they differ on purpose:
- `interval_after`, `interval_after_call_BUG_mutated` and their trace: the official frame sampling narrows its caller's
  interval in place.
- Which scenes a batch has and how many batches there are: the official code draws the number of views for each batch
  and cuts the last batch short. Here eight batches in a row share it, so that up to 8 processes have equal work, and
  all batches are full. The number of scenes for each number of views is compared.
"""

import functools
import math
import random
import re
from dataclasses import dataclass, replace

import pytest
import torch
from recordings import (
    FEATURE_TOLERANCE,
    Recording,
    assert_every_output_matches,
    capture,
    golden,
    needs_cases,
    needs_golden,
    recorded_cases,
    recordings,
    starting_with,
    training_cases,
)
from torch import Tensor
from transformers import DINOv3ViTConfig
from transformers.utils import ModelOutput

from spa3r.configuration.configuration_spa3r import Spa3RConfig, Spa3RTeacherConfig
from spa3r.configuration.configuration_vggt import VGGTConfig
from spa3r.data_scripts.common.view_pixels import pretrain_image_size
from spa3r.data_scripts.scenes.sampling import ViewBatchSampler, partition_views, sample_frames
from spa3r.data_scripts.scenes.view_transforms import crop_to_common, load_frame
from spa3r.modeling_spa3r.checkpoints.names import (
    convert_dinov3_state_dict,
    convert_spa3r_state_dict,
    convert_vggt_state_dict,
)
from spa3r.modeling_spa3r.geometry import PRoPE, camera_rays, pose_encoding_to_cameras
from spa3r.modeling_spa3r.layers import Attention, Rope2D, grid_positions
from spa3r.modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from spa3r.modeling_spa3r.spa3r.teachers import Spa3RTeacher
from spa3r.modeling_spa3r.vggt.modeling_vggt import VGGTCameraHead, VGGTDenseHead, VGGTModel, normalize_images

# The name of a recording begins with its kind. The tests of a kind call `recordings` with it, here or in
# test_parity_vlm.py.
KINDS = (
    *("aggregator", "rope2d", "camera_head", "dpt_heads", "dino_target", "camera_rays", "prope", "transformers"),
    *("spa3r_predict", "spa3r_loss", "data_sampling", "vlm_fusion", "vlm_preprocess", "vlm_end_to_end"),
)

pytestmark = needs_golden


def vggt_config(sizes: dict, global_qk_norm: str = "rms_norm", vit_mlp_ratio: int = 4) -> VGGTConfig:
    """Configuration for the `config` of a recording, or for its `vggt`."""
    return VGGTConfig(
        image_size=sizes["img_size"],
        patch_size=sizes["patch_size"],
        hidden_size=sizes["embed_dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
        num_register_tokens=sizes["num_register_tokens"],
        patch_embedding="conv" if sizes["patch_embed"] == "conv" else "vit",
        patch_embedding_layers=sizes["vit_depth"],
        patch_embedding_heads=sizes["vit_heads"],
        patch_embedding_mlp_ratio=vit_mlp_ratio,
        global_qk_norm=global_qk_norm,
        camera_layers=sizes["cam_trunk_depth"],
        camera_heads=sizes["cam_heads"],
        camera_iterations=sizes["cam_iters"],
        dense_hidden_size=sizes["dpt_features"],
        dense_channels=sizes["dpt_out_channels"],
        dense_layers=sizes["dpt_layers"],
    )


def dinov3_config(sizes: dict, weights: dict[str, Tensor]) -> DINOv3ViTConfig:
    """Configuration for the `config` of a recording, or for its `dino`."""
    return DINOv3ViTConfig(
        hidden_size=sizes["embed_dim"],
        intermediate_size=weights["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        patch_size=sizes["patch_size"],
        num_register_tokens=sizes["n_storage_tokens"],
    )


def context_first(view_mask: Tensor) -> tuple[Tensor, int]:
    """The order of a scene's views that puts context before target, and the number of context views.

    Args:
        view_mask (`torch.BoolTensor` of shape `(num_views,)`): `True` marks a target view.
    """
    return view_mask.int().argsort(stable=True), int((~view_mask).sum())


def load_aggregator(recording: Recording, weights: dict[str, Tensor], global_qk_norm: str) -> VGGTModel:
    vit_mlp = weights.get("aggregator.patch_embed.blocks.0.mlp.fc1.weight", torch.empty(4, 1))
    vit_mlp_ratio = vit_mlp.shape[0] // vit_mlp.shape[1]
    model = VGGTModel(vggt_config(recording.info["config"], global_qk_norm, vit_mlp_ratio)).eval()
    converted, _ = convert_vggt_state_dict(weights)
    model.load_state_dict(starting_with("vggt.", converted))
    return model


@torch.no_grad()
def all_layers(model: VGGTModel, images: Tensor, num_context_views: int | None = None) -> list[Tensor]:
    """All tokens of each layer, `(batch_size, num_views, num_tokens, 2 * hidden_size)`."""
    shape = (*images.shape[:2], -1, model.config.hidden_size)
    _, *blocks = model(images, num_context_views, output_hidden_states=True).hidden_states
    blocks = [tokens.view(shape) for tokens in blocks]
    return [torch.cat(pair, dim=-1) for pair in zip(blocks[::2], blocks[1::2], strict=True)]


def all_layers_masked(model: VGGTModel, images: Tensor, view_mask: Tensor) -> list[Tensor]:
    """Like `all_layers`, for scenes that each have their own target views, in any order."""
    scenes = []
    for scene, mask in zip(images, view_mask, strict=True):
        order, num_context_views = context_first(mask)
        layers = all_layers(model, scene[order][None], num_context_views)
        scenes.append([tokens[:, order.argsort()] for tokens in layers])
    return [torch.cat(tokens) for tokens in zip(*scenes, strict=True)]


def views_attended_to(model: VGGTModel, num_tokens: int, view_mask: Tensor) -> Tensor:
    """Which views (columns) a global block lets influence which (rows), found by differentiating it."""
    order, num_context_views = context_first(view_mask)
    num_views = len(order)
    tokens = torch.randn(1, num_views, num_tokens, model.config.hidden_size, requires_grad=True)
    output = model.global_blocks[0](tokens.flatten(1, 2), None, num_context_views * num_tokens)
    rows = [
        torch.autograd.grad(view.square().sum(), tokens, retain_graph=True)[0].abs().sum((0, 2, 3)) > 0
        for view in output.unflatten(1, (num_views, num_tokens))[0]
    ]
    position = order.argsort()
    return torch.stack(rows)[position][:, position]


def test_every_recording_is_of_one_kind():
    kinds = {name: [kind for kind in KINDS if name.startswith(kind)] for name in recordings("")}
    assert {name: found for name, found in kinds.items() if len(found) != 1} == {}


@pytest.mark.parametrize("name", recordings("aggregator"))
def test_aggregator_matches_official_code(name):
    recording = golden(name)
    upstream_only = starting_with("stock_vggt_extra.", recording.weights)
    weights = {key: tensor for key, tensor in recording.weights.items() if key.startswith("aggregator.")}
    images, view_mask = recording.images, recording.inputs["view_mask"]
    model = load_aggregator(recording, weights, "rms_norm")
    layers = {"nomask": all_layers(model, images), "masked": all_layers_masked(model, images, view_mask)}
    computed = {}
    if upstream_only:
        upstream = load_aggregator(recording, weights | upstream_only, "layer_norm")
        computed["stock_vggt.last"] = all_layers(upstream, images)[-1]
    with torch.no_grad():
        computed["patch_embed_tokens"] = model.patch_embedding(normalize_images(images.flatten(0, 1)))
    for output in recording.outputs:
        if match := re.fullmatch(r"(nomask|masked)\.layer(\d+)", output):
            computed[output] = layers[match[1]][int(match[2])]
        elif match := re.fullmatch(r"attention_mask\.sample(\d+)", output):
            num_tokens = recording.info["patch_start_idx"] + 1
            computed[output] = views_attended_to(model, num_tokens, view_mask[int(match[1])])
    assert_every_output_matches(recording, computed)


@pytest.mark.parametrize("name", recordings("rope2d"))
def test_rotary_embedding_matches_official_code(name):
    recording = golden(name)
    tokens, grid_size = recording.inputs["x"], recording.info["grid_hw"]
    computed = {}
    for output, expected in recording.outputs.items():
        if match := re.fullmatch(r"rope_freq(\d+)", output):
            rope = Rope2D(recording.inputs["positions_in"], recording.info["head_dim"], float(match[1]))
            computed[output] = rope.rotate(tokens, tokens, tokens)[0]
        elif output == "positions":  # the official code counts from 0 and adds 1 later
            computed[output] = (grid_positions(grid_size, 0, "cpu") - 1).expand_as(expected)
    assert_every_output_matches(recording, computed)


def unique_pose_encoding(encoding: Tensor) -> Tensor:
    """The one encoding of the same camera with a unit quaternion, a scalar part >= 0 and fields of view in [0, pi)."""
    translation, quaternion, field_of_view = encoding.split([3, 4, 2], dim=-1)
    quaternion = torch.nn.functional.normalize(quaternion, dim=-1) * torch.where(quaternion[..., 3:] < 0, -1, 1)
    return torch.cat([translation, quaternion, 2 * (field_of_view / 2).tan().atan()], dim=-1)


@pytest.mark.parametrize("name", recordings("camera_head"))
@torch.no_grad()
def test_camera_head_matches_official_code(name):
    recording = golden(name)
    image_size = tuple(recording.info["image_hw"])
    head = VGGTCameraHead(vggt_config(recording.info["config"])).eval()
    head.load_state_dict(starting_with("camera_head.", convert_vggt_state_dict(recording.weights)[0]))
    pose_encodings = head(recording.inputs["aggregated_tokens_last"][:, :, 0])
    computed = {f"pose_enc.iter{step}": encoding for step, encoding in enumerate(pose_encodings)}

    extrinsics, intrinsics = pose_encoding_to_cameras(pose_encodings[-1], image_size)
    computed |= {"extrinsics": extrinsics[..., :3, :], "intrinsics": intrinsics}
    computed["roundtrip_pose_enc"] = unique_pose_encoding(pose_encodings[-1])
    if "pose_enc_random" in recording.inputs:
        extrinsics, intrinsics = pose_encoding_to_cameras(recording.inputs["pose_enc_random"], image_size)
        computed |= {"extrinsics_random": extrinsics[..., :3, :], "intrinsics_random": intrinsics}
    assert_every_output_matches(recording, computed)


@pytest.mark.parametrize("name", recordings("dpt_heads"))
@torch.no_grad()
def test_dense_heads_match_official_code(name):
    recording = golden(name)
    config = vggt_config(recording.info["config"])
    first_patch = recording.info["patch_start_idx"]
    tokens = [recording.inputs[f"tokens_layer{layer}"][:, :, first_patch:] for layer in config.dense_layers]
    converted, _ = convert_vggt_state_dict(recording.weights)
    computed = {}
    for kind, num_outputs, activation in (("depth_head", 2, "exp"), ("point_head", 4, "inv_log")):
        head = VGGTDenseHead(config, num_outputs, activation).eval()
        head.load_state_dict(starting_with(f"{kind}.", converted))
        computed[f"{kind}.pred"], computed[f"{kind}.conf"] = head(tokens, tuple(recording.info["image_hw"]))
    assert_every_output_matches(recording, computed)


@pytest.mark.parametrize("name", recordings("dino_target"))
@torch.no_grad()
def test_semantic_targets_match_official_code(name):
    recording = golden(name)
    weights = starting_with("dino.", recording.weights)
    config = dinov3_config(recording.info["config"], weights)
    teacher = Spa3RTeacher(Spa3RTeacherConfig(vision_config=config)).eval()
    teacher.model.load_state_dict(convert_dinov3_state_dict(weights)[0])
    images = recording.images
    # VGGT's patches are square, and the recording has their number.
    num_patches = recording.outputs["features_grid"].shape[2]
    patch_size = math.isqrt(math.prod(recording.info["image_hw"]) // num_patches)
    grid_size = tuple(side // patch_size for side in recording.info["image_hw"])

    prepared = teacher.preprocess(images.flatten(0, 1))
    rows, columns = recording.outputs["resized_normalized_crop"].shape[-2:]
    tokens = teacher.model(prepared).last_hidden_state
    patches = tokens[:, 1 + config.num_register_tokens :]
    stride = math.ceil(patches.shape[1] / recording.outputs["patch_tokens_224"].shape[1])
    computed = {
        "resized_normalized_crop": prepared[..., :rows, :columns],
        "patch_tokens_224": patches[:, ::stride],
        "cls_token": tokens[:, 0],
        "features_grid": teacher(images, grid_size),
    }
    assert_every_output_matches(recording, computed)


# --- Spa3R ---


def attention_weights(recording: Recording) -> dict[str, Tensor]:
    """Weights of one official attention module, under our names."""
    prefix = "model.encoder.layers.0.attention."
    return starting_with(prefix, convert_spa3r({f"encoder.blocks.0.{k}": v for k, v in recording.weights.items()}))


def convert_spa3r(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of `Spa3RForPreTraining`."""
    return convert_spa3r_state_dict({f"model.{name}": weight for name, weight in weights.items()})[0]


def spa3r_config(sizes: dict, **variant) -> Spa3RConfig:
    """Configuration for the `config` of a recording, with the official code's losses and query-key norm."""
    dino = sizes["dino"]
    return Spa3RConfig(
        vggt_config=vggt_config(sizes["vggt"]),
        teachers={
            "semantic": {
                "vision_config": {
                    "model_type": "dinov3_vit",
                    "hidden_size": dino["embed_dim"],
                    "intermediate_size": 4 * dino["embed_dim"],
                    "num_hidden_layers": dino["depth"],
                    "num_attention_heads": dino["num_heads"],
                    "num_register_tokens": dino["n_storage_tokens"],
                    "patch_size": dino["patch_size"],
                }
            }
        },
        hidden_size=sizes["embed_dim"],
        num_attention_heads=sizes["num_heads"],
        num_latents=sizes["num_queries"],
        num_encoder_layers=sizes["num_encoder_layers"],
        num_decoder_layers=sizes["num_decoder_layers"],
        num_register_tokens=sizes["num_register_tokens"],
        regression_loss="smooth_l1",
        predict_context_views=True,
        **variant,
    )


@pytest.mark.parametrize("name", recordings("camera_rays"))
def test_camera_rays(name):
    recording = golden(name)
    grid_size = tuple(recording.info["grid_hw"])
    intrinsics, in_patches = recording.inputs["intrinsics_px"], recording.outputs["intrinsics_patch"]
    patch_size = round((intrinsics[..., 0, 0] / in_patches[..., 0, 0]).mean().item())
    rays = camera_rays(intrinsics, grid_size, patch_size)
    in_units = intrinsics / intrinsics.new_tensor([patch_size, patch_size, 1])[:, None]
    assert_every_output_matches(
        recording, {"rays": rays.transpose(-1, -2).unflatten(-1, grid_size), "intrinsics_patch": in_units}
    )


def prope_of(case: dict, extrinsics: Tensor, intrinsics: Tensor | None, head_dim: int) -> PRoPE:
    rows, columns, base = case["patches_y"], case["patches_x"], case["effective_freq_base"]
    image_size = (case["image_height"], case["image_width"])
    prope = PRoPE(extrinsics, intrinsics, (rows, columns), image_size, head_dim, base)
    if case["effective_freq_scale"] != 1:
        # The official code can scale the frequencies; no model does, so ours cannot.
        y, x = (grid_positions((rows, columns), 0, "cpu") - 1).unbind(-1)
        frequencies = case["effective_freq_scale"] * base ** (-torch.arange(head_dim // 8) / (head_dim // 8))
        angles = torch.stack([x, y], dim=-1)[..., None] * frequencies
        prope.cos, prope.sin = (table.repeat(extrinsics.shape[1], 1, 1) for table in (angles.cos(), angles.sin()))
    return prope


@pytest.mark.parametrize("name", recordings("prope"))
def test_prope(name):
    recording = golden(name)
    computed = {}
    for label, case in recording.info["cases"].items():
        inputs = starting_with(f"{label}.", recording.inputs)
        spatial = inputs.get("spatial_mask", torch.ones(inputs["q"].shape[2], dtype=torch.bool))
        # The order of tokens has no effect on attention; ours needs tokens without a camera first.
        order = spatial.int().argsort(stable=True)
        prope = prope_of(case, inputs["viewmats"], inputs.get("Ks"), case["head_dim"])
        query, key, value = prope.rotate(*(inputs[tensor][:, :, order] for tensor in "qkv"))
        output = prope.restore(torch.nn.functional.scaled_dot_product_attention(query, key, value))
        for tensor, result in (("q_transformed", query), ("k_transformed", key), ("out", output)):
            if f"{label}.{tensor}" in recording.outputs:
                computed[f"{label}.{tensor}"] = result[:, :, order.argsort()]

    if "module" in recording.info:
        module, inputs = recording.info["module"], starting_with("module.", recording.inputs)
        attention = Attention(
            Spa3RConfig(attn_implementation="sdpa"), module["dim"], module["num_heads"], qk_norm="rms_norm"
        )
        attention.load_state_dict(attention_weights(recording))
        some_case = next(iter(recording.info["cases"].values()))
        patch_size = some_case["image_width"] // some_case["patches_x"]
        case = {"patches_y": module["patches_y"], "patches_x": module["patches_x"]}
        case |= {"image_height": patch_size * module["patches_y"], "image_width": patch_size * module["patches_x"]}
        case |= {"effective_freq_base": 100.0, "effective_freq_scale": 1.0}
        prope = prope_of(case, inputs["viewmats"], inputs["Ks"], module["dim"] // module["num_heads"])
        computed["module.out"], _ = attention(inputs["x"], prope)
    assert_every_output_matches(recording, computed)


@pytest.mark.parametrize("name", recordings("transformers"))
def test_encoder_and_decoder_stacks(name):
    recording = golden(name)
    sizes, inputs, grid_size = recording.info["config"], recording.inputs, tuple(recording.info["grid_hw"])
    model = Spa3RForPreTraining(spa3r_config(sizes)).eval()
    weights = convert_spa3r(recording.weights)
    model.model.encoder.load_state_dict(starting_with("model.encoder.", weights))
    model.decoder.load_state_dict(starting_with("decoder.", weights))
    num_registers, head_dim = sizes["num_register_tokens"], sizes["embed_dim"] // sizes["num_heads"]

    positions = inputs["encoder_pos"] + 1
    positions = torch.cat([positions.new_zeros(positions.shape[0], num_registers, 2), positions], dim=1)
    encoded = model.model.encoder(inputs["encoder_x"], Rope2D(positions, head_dim))

    patch_size = sizes["vggt"]["patch_size"]
    image_size = (patch_size * grid_size[0], patch_size * grid_size[1])
    prope = PRoPE(inputs["viewmats"], inputs["Ks"], grid_size, image_size, head_dim)
    decoded = model.decoder(inputs["decoder_x"], prope)
    assert_every_output_matches(recording, {"encoder_out": encoded, "decoder_out": decoded})


@pytest.mark.parametrize("name", recordings("spa3r_predict"))
def test_latents_of_all_views(name):
    recording = golden(name)
    sizes, images = recording.info["config"], recording.images
    model = Spa3RForPreTraining(spa3r_config(sizes)).eval()
    model.load_state_dict(convert_spa3r(recording.weights))
    encoder_calls = []
    capture(model.model.encoder, encoder_calls)
    latents = model.model(images).latents

    batch_size, num_views = images.shape[:2]
    patches = grid_positions(model.model.vggt.grid_size(images), 0, "cpu").repeat(num_views, 1)
    positions = torch.cat([patches.new_zeros(sizes["num_queries"], 2), patches]) - 1
    (inputs, _), *_ = encoder_calls
    computed = {"latents": latents, "encoder_input": inputs[0], "encoder_pos": positions.expand(batch_size, -1, -1)}
    assert_every_output_matches(recording, computed)


@dataclass
class PreTrainingCalls:
    """A pre-training step on a recording, with inputs and outputs of its parts."""

    model: Spa3RForPreTraining
    output: ModelOutput
    order: Tensor
    decoded: Tensor
    pose_encoding: Tensor


@functools.cache
def pretraining_step(name: str) -> PreTrainingCalls:
    recording = golden(name)
    asymmetric = recording.info["config"]["asymmetric_masking"]
    config = spa3r_config(recording.info["config"], view_aggregation="asymmetric" if asymmetric else "separate")
    model = Spa3RForPreTraining(config)
    model.load_state_dict(convert_spa3r(recording.weights))
    model.freeze_teachers()
    model.eval()
    decoder_calls, camera_calls = [], []
    capture(model.decoder, decoder_calls)
    capture(model.camera_head, camera_calls)

    orders, counts = zip(*map(context_first, recording.inputs["view_mask"]), strict=True)
    num_context_views, order = counts[0], torch.stack(orders)
    images = torch.stack([scene[views] for scene, views in zip(recording.images, order, strict=True)])
    output = model(images, num_context_views)
    output.loss.backward()
    return PreTrainingCalls(model, output, order, decoder_calls[-1][1], camera_calls[-1][1][-1])


@pytest.mark.parametrize("name", recordings("spa3r_loss"))
def test_pretraining_features_and_losses(name):
    recording, step = golden(name), pretraining_step(name)
    output, views = step.output, step.order.shape

    def in_recorded_order(tensor: Tensor) -> Tensor:
        return torch.stack([scene[order.argsort()] for scene, order in zip(tensor, step.order, strict=True)])

    grid_size = tuple(size // step.model.config.vggt_config.patch_size for size in recording.info["image_hw"])
    rays = camera_rays(output.intrinsics, grid_size, step.model.config.vggt_config.patch_size)
    computed = {
        "latents": output.latents,
        "pose_enc": in_recorded_order(step.pose_encoding),
        "viewmats": in_recorded_order(output.extrinsics).flatten(0, 1)[:, None],
        "Ks": in_recorded_order(output.intrinsics).flatten(0, 1)[:, None],
        "camera_rays": in_recorded_order(rays).flatten(0, 1),
        "decoder_out": in_recorded_order(step.decoded.unflatten(0, views)).flatten(0, 1),
        "pred_geo": in_recorded_order(output.predicted_features["geometry"]),
        "pred_sem": in_recorded_order(output.predicted_features["semantic"]),
        "target_geo": in_recorded_order(output.target_features["geometry"]),
        "target_sem": in_recorded_order(output.target_features["semantic"]),
        "depth_probe": in_recorded_order(output.probe_depth)[..., None],
        "depth_gt_grid": in_recorded_order(output.target_depth)[..., None],
    }
    losses = {OFFICIAL_LOSSES[name]: loss for name, loss in output.losses.items()} | {"loss.total": output.loss}
    for loss, value in losses.items():
        torch.testing.assert_close(value, recording.outputs[loss], rtol=1e-5, atol=0)
    outputs = {name: tensor for name, tensor in recording.outputs.items() if not name.startswith("grad.")}
    assert_every_output_matches(replace(recording, outputs=outputs), computed | losses)


OFFICIAL_LOSSES = {
    "geometry_l1": "loss.geo_l1",
    "geometry_cosine": "loss.geo_cos",
    "semantic_l1": "loss.sem_l1",
    "semantic_cosine": "loss.sem_cos",
    "depth_probe": "loss.depth_prob",
}


@pytest.mark.parametrize("name", recordings("spa3r_loss"))
def test_pretraining_gradients(name):
    recording, step = golden(name), pretraining_step(name)
    parameters = dict(step.model.named_parameters())
    expected = convert_spa3r(starting_with("grad.", recording.outputs))
    assert expected
    for parameter, gradient in expected.items():
        torch.testing.assert_close(parameters[parameter].grad, gradient, atol=FEATURE_TOLERANCE, rtol=1e-4)

    norms = convert_spa3r({key: torch.tensor(norm) for key, norm in recording.info["grad_norms"].items()})
    with_gradient = {key for key, parameter in parameters.items() if parameter.grad is not None}
    assert with_gradient == norms.keys()
    for parameter, norm in norms.items():
        torch.testing.assert_close(parameters[parameter].grad.norm(), norm, rtol=1e-3, atol=1e-6)


# --- Data ---


def assert_frames_match(case: dict, interval: list[int]):
    drawn = sample_frames(case["num_images"], case["num_frames"], interval, random.Random(case["seed"]))
    assert drawn == case["indices"], case


@pytest.mark.parametrize("name", recordings("data_sampling"))
def test_frames_are_drawn_as_officially(name):
    for case in recorded_cases(name, "frame_sampling"):
        assert_frames_match(case, case["sampling_interval"])


@needs_cases
def test_frames_of_the_training_cases_are_drawn_as_officially():
    for case in training_cases("pretrain_frame_sampling"):
        assert_frames_match(case, case["interval"])


@needs_cases
def test_images_are_sized_as_officially():
    for case in training_cases("pretrain_image_sizes"):
        resized, cropped = pretrain_image_size(tuple(case["input_wh"]))
        assert [list(resized), list(cropped)] == [case["resized_hw"], case["cropped_hw"]], case


@needs_cases
def test_loaded_frames_have_the_official_size():
    for case in training_cases("pretrain_image_sizes"):
        width, height = case["input_wh"]
        pixels, _ = load_frame(torch.zeros(height, width, 3, dtype=torch.uint8).numpy())
        assert list(pixels.shape) == [3, *case["cropped_hw"]], case


@pytest.mark.parametrize("name", recordings("data_sampling"))
def test_views_are_partitioned_as_officially(name):
    for case in recorded_cases(name, "random_masking"):
        assert [len(case["mask"]), len(case["mask"][0])] == case["shape"], case
        generator = torch.Generator().manual_seed(case["torch_seed"])
        for mask in torch.tensor(case["mask"], dtype=torch.bool):
            order, num_context_views = partition_views(len(mask), 1 - case["mask_ratio"], generator)
            assert num_context_views == case["n_context"], case
            assert order.equal(context_first(mask)[0]), case


def counting(shapes: list[list[int]]) -> list[Tensor]:
    """Tensors of the values 0, 1, 2, ..., like the recorded ones."""
    return [torch.arange(float(math.prod(shape))).reshape(shape) for shape in shapes]


@pytest.mark.parametrize("name", recordings("data_sampling"))
def test_images_of_a_batch_are_cropped_as_officially(name):
    case = recorded_cases(name, "align_collate")
    stack, _ = crop_to_common(counting(case["shapes"]))
    assert stack.equal(torch.tensor(case["out"]).reshape(case["out_shape"]))


@needs_cases
def test_images_of_the_training_cases_are_cropped_as_officially():
    for case in training_cases("align_collate"):
        stack, _ = crop_to_common(counting(case["shapes"]))
        assert list(stack.shape) == case["out"], case
        assert [image.flatten()[0].item() for image in stack] == case["first_values"], case


def assert_batch_sizes_match(batches: list[list[list[int]]], view_range: list[int], images_per_batch: int):
    """Compare the sizes of recorded batches of `[scene, num_views]` with those of our sampler."""
    low, high = view_range
    # Enough scenes for an epoch with every number of views.
    num_scenes = 8 * (high - low + 1) * images_per_batch
    planned = {
        batch[0][2]: len(batch) for batch in ViewBatchSampler(num_scenes, low, high, images_per_batch=images_per_batch)
    }
    assert planned.keys() == set(range(low, high + 1))
    for position, batch in enumerate(batches):
        (num_views,) = {views for _, views in batch}
        if position < len(batches) - 1:
            assert len(batch) == planned[num_views], batch
        else:
            assert len(batch) <= planned[num_views], batch


@pytest.mark.parametrize("name", recordings("data_sampling"))
def test_batches_hold_as_many_scenes_as_officially(name):
    for case in recorded_cases(name, "dynamic_batch_sampler"):
        assert_batch_sizes_match(case["batches"], case["num_imgs_per_sample"], case["num_imgs_per_gpu"])


@needs_cases
def test_batches_of_the_training_cases_hold_as_many_scenes_as_officially():
    for case in training_cases("dynamic_batches"):
        assert_batch_sizes_match(case["batches"], [4, 12], 24)
