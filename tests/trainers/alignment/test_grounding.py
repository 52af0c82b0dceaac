"""Grounding: names find their objects, in the text that follows the images."""

import math
import shutil

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file
from tiny_alignment import align, build, save
from tiny_spa3_vlm import tiny_model
from transformers import TrainerCallback

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.configuration import load_preset
from spa3r.data_scripts.rooms.ground_truth import read_description, read_ground_truth
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.modeling_spa3r.checkpoints.loading import load_processor
from spa3r.trainers.alignment.evaluation import _mean_points, _means
from spa3r.trainers.alignment.grounding import TextWriter
from spa3r.trainers.alignment.objects import OBJECT_NAMES, add_absent, read_objects
from spa3r.trainers.runs.grounding import Found, SceneObjects, grounding_losses

NUM_STEPS = 4


@pytest.fixture(scope="module")
def grounded(tmp_path_factory, vlm, rooms):
    output = tmp_path_factory.mktemp("grounded") / "run"
    options = {"grounding": "true", "held_out_scenes": 4, "max_steps": NUM_STEPS}  # two batches to evaluate
    return align(vlm, rooms, output, **options), output


@pytest.fixture
def writer(vlm):
    return TextWriter(load_processor(vlm))


def test_adapter_and_language_model_are_trained_and_nothing_else(grounded, vlm):
    before, after = (load_file(folder / "model.safetensors") for folder in (vlm, grounded[1] / "model"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    trained = ("model.fusion.", "model.vlm.language_model.")
    assert all(name.startswith(trained) for name in changed)
    assert all(any(name.startswith(prefix) for name in changed) for prefix in trained)


def test_the_heads_are_gone_from_the_final_model(grounded):
    _, info = Spa3VLMForConditionalGeneration.from_pretrained(grounded[1] / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


class StopHalfway(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == NUM_STEPS // 2


def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(vlm, rooms, tmp_path):
    options = {"grounding": "true", "max_steps": NUM_STEPS, "distinct_passes": 1}
    trainer, _, _ = build(vlm, rooms, tmp_path / "run", **options)
    trainer.add_callback(StopHalfway())
    trainer.train()
    align(vlm, rooms, tmp_path / "run", **options)
    align(vlm, rooms, tmp_path / "whole", **options)
    whole, resumed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_all_that_is_trained_learns_in_each_step(rooms, tmp_path):
    # Else data parallelism waits for the rest.
    vlm_config = load_preset("spa3-vlm-tiny")["vlm_config"]
    text_config = vlm_config["text_config"] | {"num_hidden_layers": 4, "layer_types": None}
    start = save(tiny_model(vlm_config=vlm_config | {"text_config": text_config}), tmp_path / "vlm")
    trainer, _, _ = build(start, rooms, tmp_path / "run", grounding="true")
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
    weights = dict(trainer.model.named_parameters())
    assert not [name for name, each in weights.items() if each.requires_grad != (each.grad is not None)]


def test_scenes_without_objects_have_no_mean_place():
    assert _mean_points(torch.empty(0, 3), torch.empty(0, dtype=torch.long)).shape == (0, 3)


@pytest.mark.parametrize(("places", "is_told"), [([], False), ([math.nan], False), ([math.nan, 2.0], True)])
def test_the_report_has_a_line_of_objects_where_a_place_is_known(places, is_told):
    joined = {("own", "points"): torch.ones(2), "is_first": torch.tensor([True, False])}
    assert ("objects" in _means(joined | {("own", "objects"): torch.tensor(places)}, "own")) == is_told


def test_the_names_that_are_read_find_where_objects_are(vlm, rooms, tmp_path):
    options = {"max_steps": 40, "save_steps": 40, "learning_rate": 3e-3, "held_out_scenes": 1, "grounding": "true"}
    trainer = align(vlm, rooms, tmp_path / "run", **options)
    losses = [entry["loss_place"] for entry in trainer.state.log_history if "loss_place" in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_model_without_a_scene_is_grounded_by_its_image_tokens(rooms, tmp_path):
    start = save(tiny_model(fusion="none"), tmp_path / "vlm")
    trainer = align(start, rooms, tmp_path / "run", grounding="true", max_steps=2, distinct_passes=1)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run" / "model"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and all(name.startswith("model.vlm.language_model.") for name in changed)
    assert trainer.report.own == trainer.report.other


def test_the_report_tells_how_far_places_are_from_the_true_ones(grounded):
    report = grounded[0].report
    assert all(math.isfinite(source["objects"]) for source in (report.own, report.other, report.mean))


def test_objects_are_those_that_the_frames_show(rooms):
    scene = load_scenes("rooms", rooms)[0]
    frames = list(range(scene["num_frames"]))
    objects = read_objects(scene, frames)
    folder = rooms / scene["scene_id"]
    description = read_description(folder)
    room = read_ground_truth(folder, description, range(len(frames)), 0.015)
    shown = {item.category for item in room.objects if room.is_visible(item)}
    assert {OBJECT_NAMES[name] for name in objects.names.tolist()} == shown
    for item in room.unique_objects:
        row = objects.names.tolist().index(OBJECT_NAMES.index(item.category))
        to_camera = torch.linalg.inv(torch.from_numpy(room.poses[0]))
        expected = to_camera[:3, :3] @ torch.from_numpy(item.center) + to_camera[:3, 3]
        torch.testing.assert_close(objects.places[row].double(), expected, atol=1e-5, rtol=0)


def test_objects_that_are_not_there_have_no_place(rooms):
    scene = load_scenes("rooms", rooms)[0]
    objects = read_objects(scene, [0, 1, 2])
    longer = add_absent(objects, 5)
    absent = set(longer.names.tolist()) - set(objects.names.tolist())
    assert len(absent) == 5
    for name, place, first_view in zip(*longer, strict=True):
        assert (name.item() in absent) <= (place.isnan().all().item() and first_view.isnan().item())


def test_a_text_shows_all_images_and_then_the_names(writer):
    grids = [torch.tensor([[1, 4, 4]] * 2), torch.tensor([[1, 4, 8]])]
    text = writer(grids, [torch.tensor([3, 0]), torch.tensor([7])])
    assert text.mm_token_type_ids.sum(1).tolist() == [2 * 4, 8]
    flat, tokenizer = text.input_ids.flatten(), writer.processor.tokenizer
    for position, name in zip(text.positions.tolist(), (3, 0, 7), strict=True):
        words = tokenizer(f" {OBJECT_NAMES[name]}", add_special_tokens=False)["input_ids"]
        assert flat[position - len(words) + 1 : position + 1].tolist() == words


def test_unknown_places_count_in_no_loss():
    nan = float("nan")
    known = SceneObjects(torch.tensor([1]), torch.ones(1, 3), torch.tensor([0.5]))
    both = SceneObjects(torch.tensor([1, 2]), torch.tensor([[1.0] * 3, [nan] * 3]), torch.tensor([0.5, nan]))
    found = Found(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))
    first = Found(*(values[:1] for values in found))
    for name in ("place", "first_view"):
        assert grounding_losses(found, *both[1:])[name] == grounding_losses(first, *known[1:])[name]


def test_a_batch_without_names_has_no_loss():
    found = Found(torch.empty(0, 3), torch.empty(0), torch.empty(0))
    assert sum(grounding_losses(found, torch.empty(0, 3), torch.empty(0)).values()) == 0


def test_scenes_without_known_objects_are_refused(vlm, rooms, tmp_path):
    for number, room in enumerate(sorted(rooms.glob("room_*"))):
        shutil.copytree(room, tmp_path / "scans" / f"scene{number:04d}_00")
    with refused("`grounding`", "scene0000_00"):
        build(vlm, rooms, tmp_path / "run", grounding="true", scenes=f"scannet:{tmp_path / 'scans'}")


def test_a_base_with_deepstack_features_is_refused(tmp_path, rooms):
    model = tiny_model()
    model.config.vlm_config.vision_config.deepstack_visual_indexes = [0]
    with refused("`grounding`", "DeepStack"):
        build(save(model, tmp_path / "vlm"), rooms, tmp_path / "run", grounding="true")
