"""The trained models that ship with the package: they load, they know something, and they are small."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors import safe_open
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoProcessor,
)

import spa3r
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.data_scripts.scenes.views import SceneViews
from spa3r.trainers.pretraining.evaluation import evaluate_psfm

SPA3R, VLM, TEXT = "spa3r-nano", "spa3-vlm-nano", "spa3-vlm-nano-text"
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def nano_rooms(tmp_path_factory) -> Path:
    """Four rooms as the nano models know them, of a seed that they were not trained on."""
    root = tmp_path_factory.mktemp("nano_rooms")
    render_rooms(root, 4, 12, (112, 84), seed=31, every=2)
    return root


def photos_of(rooms: Path) -> list[Image.Image]:
    return [Image.open(rooms / "room_000000" / "color" / f"{frame}.jpg") for frame in range(12)]


def test_an_unknown_model_is_refused_with_those_that_ship():
    with refused("`spa3r-huge`", SPA3R, VLM):
        spa3r.nano_path("spa3r-huge")


def test_spa3r_and_spa3_vlm_together_take_at_most_22_mebibytes():
    sizes = [file.stat().st_size for name in (SPA3R, VLM) for file in Path(spa3r.nano_path(name)).iterdir()]
    assert sum(sizes) <= 22 * MEBIBYTE


@pytest.mark.parametrize("name", [SPA3R, VLM, TEXT])
def test_weights_are_stored_in_bfloat16_and_loaded_in_float32(name):
    with safe_open(Path(spa3r.nano_path(name)) / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}
    assert AutoModel.from_pretrained(spa3r.nano_path(name)).dtype is torch.float32


@pytest.mark.parametrize("name", [SPA3R, VLM, TEXT])
def test_a_card_says_what_the_model_is(name):
    card = (Path(spa3r.nano_path(name)) / "README.md").read_text()
    assert "rooms" in card
    assert "license: apache-2.0" in card


def test_no_file_names_a_place_of_another_machine():
    for file in Path(spa3r.nano_path(SPA3R)).parent.glob("*/*.json"):
        assert "/tmp" not in file.read_text(), file


def test_spa3r_predicts_unseen_views_better_than_the_nearest_view(nano_rooms):
    model = AutoModelForPreTraining.from_pretrained(spa3r.nano_path(SPA3R))
    views = SceneViews(load_scenes("rooms", nano_rooms), image_width=112, cameras=True, depth=True)
    metrics = evaluate_psfm(model, views, num_views=12, show_progress=False).metrics()
    assert metrics["geometry_cosine_own"] > metrics["geometry_cosine_nearest"]
    assert metrics["geometry_cosine_own"] > metrics["geometry_cosine_other"] + 0.05
    assert metrics["depth_abs_rel_own"] < metrics["depth_abs_rel_mean"]


def test_both_models_encode_a_room_into_the_same_latents(nano_rooms):
    processor = AutoImageProcessor.from_pretrained(spa3r.nano_path(SPA3R))
    views = processor(photos_of(nano_rooms), return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(spa3r.nano_path(SPA3R))(**views).latents
    model = AutoModelForImageTextToText.from_pretrained(spa3r.nano_path(VLM))
    vlm_processor = AutoProcessor.from_pretrained(spa3r.nano_path(VLM))
    images = vlm_processor.image_processor(photos_of(nano_rooms), return_tensors="pt")
    latents = model.encode_scene(images["pixel_values_geometry"], images["geometry_sizes"])
    assert latents.shape == expected.shape
    # The two processors resample alike only for images that already have their width.
    torch.testing.assert_close(latents, expected, atol=0.05, rtol=0.05)


def test_spa3_vlm_answers_in_the_form_that_it_was_asked_for(nano_rooms):
    model = AutoModelForImageTextToText.from_pretrained(spa3r.nano_path(VLM))
    processor = AutoProcessor.from_pretrained(spa3r.nano_path(VLM))
    scene = spa3r.SceneSession(model, processor, images=photos_of(nano_rooms))
    size = scene.ask(
        "These are frames of a video.\nWhat is the size of this room (in square meters)?\nIf multiple rooms are "
        "shown, estimate the size of the combined space.\nPlease answer the question using a single word or phrase.",
        max_new_tokens=8,
    )
    assert 5 < float(size) < 80
