"""Figures of held-out scenes: shared colours, what is drawn, and where it goes."""

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from spa3r import Spa3RForPreTraining
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.data_scripts.scenes.views import SceneViews
from spa3r.trainers.pretraining.figures import (
    PCAColors,
    PSFMFigureCallback,
    draw_scene_figure,
    predict_scene,
    save_figure,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Spa3RForPreTraining(Spa3RConfig.from_dict(load_preset("spa3r-tiny"))).eval()


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    render_rooms(folder, num_scenes=2, num_views=6, size=(56, 42), seed=0, workers=1)
    return load_scenes("rooms", folder)


@pytest.fixture(scope="module")
def views(rooms):
    return SceneViews(rooms, image_width=56, cameras=True, depth=True)


def test_colors_are_the_first_three_principal_components():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.1, 5.0, 0.2, 3.0, 1.0, 0.3])
    features = torch.randn(400, 6, generator=generator) * scales + 7
    colors = PCAColors.fit(features)(features)
    _, _, directions = np.linalg.svd((features - features.mean(0)).double().numpy(), full_matrices=False)
    for channel in range(3):
        projected = (features - features.mean(0)).double().numpy() @ directions[channel]
        inside = (colors[:, channel] > 0) & (colors[:, channel] < 1)
        correlation = np.corrcoef(projected[inside], colors[inside, channel])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-5)


def test_colors_spread_from_the_first_to_the_last_percentile():
    features = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    colors = PCAColors.fit(features)(features)
    for bound in (0.0, 1.0):
        assert ((colors == bound).float().mean(0) - 0.01).abs().max() < 0.002


def test_equal_features_get_equal_colors_in_target_and_prediction():
    generator = torch.Generator().manual_seed(0)
    target, predicted = torch.randn(2, 3, 4, 5, 16, generator=generator).unbind(0)
    predicted[1, 2] = target[0, 3]
    colors = PCAColors.fit(target)
    assert torch.equal(colors(predicted)[1, 2], colors(target)[0, 3])
    assert not torch.equal(colors(predicted)[0], colors(target)[0])


def test_colors_do_not_depend_on_the_order_of_patches():
    features = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        PCAColors.fit(features)(features)[order], PCAColors.fit(features[order])(features[order])
    )


def test_constant_features_get_finite_colors():
    assert PCAColors.fit(torch.ones(10, 8))(torch.ones(10, 8)).isfinite().all()


def test_shown_predictions_and_depth_are_those_of_the_forward_pass(model, views):
    item = views[0, 0, 5]
    scene = predict_scene(model, item)
    inputs = {name: item[name][None] for name in ("extrinsics", "intrinsics", "depth")}
    with torch.no_grad():
        output = model(item["pixel_values"][None].float() / 255, item["num_context_views"], **inputs)
    for name, (target, predicted) in scene.features.items():
        torch.testing.assert_close(target.flatten(1, 2), output.target_features[name][0])
        torch.testing.assert_close(predicted.flatten(1, 2), output.predicted_features[name][0])
    # Depth is shown in metres, as it was given, at the top-left pixel of each patch.
    torch.testing.assert_close(scene.depth[0], item["depth"][item["num_context_views"] :, ::14, ::14])
    unit = scene.depth[0].flatten(1) / output.target_depth[0]
    torch.testing.assert_close(scene.depth[1].flatten(1), output.probe_depth[0] * unit.nanmean())


def test_each_view_feature_and_depth_has_a_panel(model, views):
    item = views[0, 0, 5]
    figure = draw_scene_figure(model, item)
    num_context = item["num_context_views"]
    num_targets = 5 - num_context
    panels = [axes for axes in figure.axes if axes.images]
    # Context views; target views; two targets and depth, true and predicted.
    assert len(panels) == num_context + num_targets * (1 + 2 * 2 + 2)
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figure.axes if axes.get_ylabel()]
    assert labels == [
        *["context views", "target views, ° to nearest", "geometry target", "geometry predicted"],
        *["semantic target", "semantic predicted", "depth measured", "depth probe", "metres"],
    ]


def test_true_and_probed_depth_share_their_scale_and_unknown_depth_is_masked(model, views):
    item = views[0, 0, 5]
    item["depth"][item["num_context_views"] :, :20] = 0
    figure = draw_scene_figure(model, item)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    panels = [image for image in images if image.get_array().ndim == 2]
    assert len({panel.get_clim() for panel in panels}) == 1
    true_depth = panels[0].get_array()
    assert true_depth.mask[:2].all() and not true_depth.mask[2:].any()


def test_estimated_depth_is_drawn_where_none_is_given(model, rooms):
    item = SceneViews(rooms, image_width=56)[0, 0, 4]
    labels = [axes.get_ylabel().replace("\n", " ") for axes in draw_scene_figure(model, item).axes]
    assert "depth VGGT" in labels and "scale of the cameras" in labels


def test_models_in_bfloat16_can_be_drawn(model, views):
    half = Spa3RForPreTraining(model.config).to(torch.bfloat16)
    assert draw_scene_figure(half, views[0, 0, 4]).axes


def test_saved_figures_are_whole_pngs_without_leftovers(model, views, tmp_path):
    save_figure(draw_scene_figure(model, views[0, 0, 4]), tmp_path / "new" / "scene.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scene.png"]
    with Image.open(tmp_path / "new" / "scene.png") as image:
        image.load()
        assert min(image.size) > 300


def evaluated(model, views, folder, report_to, is_main=True):
    """What the folder holds after the callback of an evaluation at step 30."""
    args = TrainingArguments(output_dir=str(folder), report_to=report_to, use_cpu=True)
    state = TrainerState(global_step=30, is_world_process_zero=is_main)
    PSFMFigureCallback(views, num_views=4, num_scenes=5).on_evaluate(args, state, TrainerControl(), model=model)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_the_callback_writes_a_png_of_each_scene(model, views, tmp_path):
    written = evaluated(model, views, tmp_path, report_to=[])
    assert written == [f"figures/step_000030/{scene}.png" for scene in views.scenes["scene_id"]]
    assert not list(tmp_path.rglob("events*"))


def test_the_callback_sends_images_to_tensorboard(model, views, tmp_path):
    evaluated(model, views, tmp_path, report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "figures"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == list(views.scenes["scene_id"])
    assert [event.step for event in events.Images(views.scenes[0]["scene_id"])] == [30]


def test_the_callback_is_silent_on_other_processes(model, views, tmp_path):
    assert evaluated(model, views, tmp_path, report_to=["tensorboard"], is_main=False) == []


def test_the_callback_unwraps_parallel_models(model, views, tmp_path):
    wrapped = torch.nn.DataParallel(model)
    assert len(evaluated(wrapped, views, tmp_path, report_to=[])) == 2
