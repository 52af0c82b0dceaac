"""What the page of `spa3r demo` computes, without a browser."""

import copy
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bases import assembled, processor_of
from tiny_spa3_vlm import VARIANTS, tiny_model, tiny_processor
from tiny_videos import write_video

from spa3r import SceneSession
from spa3r.modeling_spa3r.spa3_vlm import fusion
from spa3r.trainers.integrations.demo.attention import attend, on_photos
from spa3r.trainers.integrations.demo.command import main
from spa3r.trainers.integrations.demo.looking import agreement, camera_move, predict, see
from spa3r.trainers.integrations.demo.rooms import as_prompt, read_photos
from spa3r.trainers.integrations.demo.scenes import Limits, Studio, read_upload, require_same_encoder

QUESTION = as_prompt("What is the size of this room (in square meters)?")
HERE = camera_move(0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def room(rooms):
    return rooms[0]


@pytest.fixture(scope="module")
def scene(studio, room):
    return studio.encode(read_photos(room), room)


def test_the_streamed_answer_is_the_one_of_a_scene_session(studio, scene, room):
    *_, last = studio.answer(scene, QUESTION)
    session = SceneSession(studio.model, studio.processor, room.photos)
    assert last.text == session.ask(QUESTION, max_new_tokens=studio.limits.new_tokens)
    assert studio.processor.decode(last.tokens) == last.text


def test_the_attention_of_an_answer_is_that_of_one_pass_over_photos_question_and_answer(studio, scene, room):
    *_, answer = studio.answer(scene, QUESTION)
    found = attend(scene.session, QUESTION, answer.tokens, scene.adapter)

    content = [{"type": "image", "path": str(photo)} for photo in room.photos] + [{"type": "text", "text": QUESTION}]
    inputs = studio.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    whole = torch.cat([inputs["input_ids"], torch.tensor([answer.tokens])], dim=1)
    types = torch.zeros(1, len(answer.tokens), dtype=inputs["mm_token_type_ids"].dtype)
    inputs |= {
        "input_ids": whole,
        "attention_mask": torch.ones_like(whole),
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], types], dim=1),
    }
    usual = studio.model.config._attn_implementation
    studio.model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = studio.model(**inputs, output_attentions=True).attentions
    studio.model.set_attn_implementation(usual)
    is_image = whole[0] == studio.processor.image_token_id
    start = whole.shape[1] - len(answer.tokens) - 1
    expected = torch.stack(layers)[:, 0, :, start:-1][..., is_image].mean((0, 1, 2))
    assert torch.allclose(found.image_tokens, expected / expected.sum(), rtol=1e-3, atol=1e-5)
    assert torch.allclose(found.latents, found.image_tokens @ scene.adapter) and abs(found.latents.sum() - 1) < 1e-4


def test_the_adapters_attention_is_the_one_that_the_model_computes(studio, scene, room, monkeypatch):
    seen = []
    run = fusion.run_attention

    def spy(*arguments):
        output, weights = run(*arguments)
        seen.append(weights)
        return output, weights

    monkeypatch.setattr(fusion, "run_attention", spy)
    usual = studio.model.config._attn_implementation
    studio.model.set_attn_implementation("eager")
    SceneSession(studio.model, studio.processor, room.photos)
    studio.model.set_attn_implementation(usual)
    assert torch.allclose(scene.adapter, seen[0][0].mean(0), atol=1e-5)


def test_looking_at_attention_leaves_no_trace_in_the_model(studio, scene):
    before = studio.model.model.vlm.language_model.config._attn_implementation
    *_, answer = studio.answer(scene, QUESTION)
    attend(scene.session, QUESTION, answer.tokens, scene.adapter)
    assert studio.model.model.vlm.language_model.config._attn_implementation == before
    assert not any(module._forward_hooks for module in studio.model.model.fusion.modules())


def test_values_of_image_tokens_come_back_as_a_grid_for_each_photo():
    grids = on_photos(torch.arange(8.0), torch.tensor([[1, 2, 4], [1, 4, 6]]), merge_size=2)
    assert [grid.tolist() for grid in grids] == [[[0, 1]], [[2, 3, 4], [5, 6, 7]]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_model_shows_where_it_looked(variant):
    model = tiny_model(**VARIANTS[variant])
    processor = tiny_processor(num_appended_tokens=model.config.num_appended_tokens)
    studio = Studio(model, processor, None, Limits(new_tokens=4))
    scene = studio.encode([Image.new("RGB", (56, 56), color) for color in ("red", "blue")])
    *_, answer = studio.answer(scene, "What?")
    attention = studio.attention(scene, "What?", answer.tokens or [65])
    assert sum(float(heat.values.sum()) for heat in studio.heat(scene, attention.image_tokens)) > 0
    if variant == "none":
        assert attention.latents is None
    else:
        assert len(attention.latents) == scene.session.spatial_latents.shape[1]


def test_values_lie_on_the_photo_where_photos_have_several_heights(studio):
    # Landscape, 112 x 84; portrait, cropped to its middle square; a panorama, which is 112 x 56.
    scene = studio.encode([Image.new("RGB", size) for size in ((112, 84), (84, 112), (112, 56))])
    maps = studio.heat(scene, torch.rand(3 * 4 + 4 * 4 + 2 * 4))
    assert [photo.shape[:2] for photo in scene.photos] == [(112, 112)] * 3
    assert [(heat.top, *heat.values.shape) for heat in maps] == [(14, 3, 4), (0, 4, 4), (28, 2, 4)]
    assert [heat.size for heat in maps] == [(84, 112), (112, 112), (56, 112)]


def test_values_cover_the_whole_photo_where_the_vision_tower_resizes_it():
    model = assembled("qwen3_vl")
    studio = Studio(model, processor_of(model), None, Limits(new_tokens=4))
    scene = studio.encode([Image.new("RGB", (56, 42), "red")])
    grid = scene.session.image_grid_thw[0, 1:] // 2
    (heat,) = studio.heat(scene, torch.rand(int(grid.prod())))
    assert scene.photos[0].shape[:2] == heat.size == (42, 56) and heat.values.shape == tuple(grid)


# A move, and where it takes the point that lies one unit ahead, one right or one down of the moved camera.
MOVES = {
    "right and forward": ((2, 0, 3, 0, 0), (0, 0, 0), (2, 0, 3)),
    "up": ((0, 1, 0, 0, 0), (0, 0, 0), (0, -1, 0)),
    "a quarter to the right": ((0, 0, 0, 90, 0), (0, 0, 1), (1, 0, 0)),
    "straight up": ((0, 0, 0, 0, 90), (0, 0, 1), (0, -1, 0)),
    "right, then up from there": ((0, 0, 0, 90, 90), (1, 0, 0), (0, 0, -1)),
}


@pytest.mark.parametrize(("move", "point", "expected"), MOVES.values(), ids=MOVES)
def test_the_sliders_move_the_camera_as_they_say(move, point, expected):
    assert np.allclose((camera_move(*move) @ [*point, 1])[:3], expected)


def test_the_true_picture_without_a_move_is_the_first_photo(room):
    picture, depth = room.look(HERE)
    photo = np.asarray(Image.open(room.photos[0])).astype(int)
    assert np.abs(picture - photo).mean() < 4 and depth.min() > 0  # JPEG


def test_the_latent_of_a_room_predicts_a_turned_camera_better_than_the_latent_of_another_room(studio, scene, rooms):
    other = studio.encode(read_photos(rooms[1]), rooms[1])
    move = camera_move(0, 0, 0, 40, 0)
    true = see(studio.spa3r, scene.field, *scene.room.look(move))
    own, foreign = (agreement(predict(studio.spa3r, field, move), true) for field in (scene.field, other.field))
    assert own["geometry"] > foreign["geometry"] and own["depth"] < foreign["depth"]


def test_a_room_is_judged_by_a_model_whose_views_are_larger_than_the_pictures(studio, room):
    processor = copy.deepcopy(studio.processor)
    processor.image_processor.image_width = 168
    larger = replace(studio, processor=processor)
    scene = larger.encode(read_photos(room)[:3], replace(room, poses=room.poses[:3]))
    predicted, picture, true = larger.look(scene, HERE)
    assert predicted.depth.shape == true.depth.shape == (9, 12) and picture.shape == (84, 112, 3)
    assert agreement(predicted, true).keys() == {"geometry", "semantic", "depth"}
    assert np.isclose(scene.field.intrinsics[0, 0], 1.5 * room.renderer.focal_length)


def test_there_is_no_truth_outside_the_room(studio, scene):
    _, picture, true = studio.look(scene, camera_move(0, 0, -50, 0, 0))
    assert picture is None and true is None


def test_each_known_answer_is_about_its_room(room):
    (size,) = (known for known in room.questions if "square meters" in known.text)
    assert size.answer == f"{room.renderer.room.area:.1f} m²" and size.prompt.startswith(
        "These are frames of a video."
    )


def write_photos(folder, count, size=(112, 84)):
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.new("RGB", size).save(path)
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("limits", "count", "size", "named"),
    [
        (Limits(photos=2), 3, (112, 84), "3 photos"),
        (Limits(megapixels=0.5), 1, (1000, 600), "`0.png` has 0.6 megapixels, but at most 0.5"),
        (Limits(), 0, (112, 84), "no photo"),
    ],
)
def test_an_upload_of_too_much_or_nothing_is_refused_by_a_sentence(limits, count, size, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        read_upload(write_photos(tmp_path, count, size), limits, num_frames=4)


def test_a_file_that_is_no_photo_is_refused_by_its_name(tmp_path):
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"`notes\.jpg`"):
        read_upload([str(tmp_path / "notes.jpg")], Limits(), num_frames=4)


def test_a_video_gives_its_frames_and_a_long_one_is_refused(tmp_path):
    pytest.importorskip("av")
    video = write_video(tmp_path / "walk.mp4")
    assert len(read_upload([str(video)], Limits(), num_frames=4)) == 4
    with pytest.raises(ValueError, match="lasts 2 s, but at most 0.01 s"):
        read_upload([str(video)], Limits(seconds=0.01), num_frames=4)
    with pytest.raises(ValueError, match="2 files with a video"):
        read_upload([str(video), *write_photos(tmp_path, 1)], Limits(), num_frames=4)


def test_a_spa3r_that_is_not_the_one_inside_is_refused(studio):
    weight = studio.spa3r.model.latent_queries
    kept = weight.detach().clone()
    try:
        weight.data += 1
        with pytest.raises(ValueError, match="`other` .*latent_queries"):
            require_same_encoder(studio.model, studio.spa3r, ("vlm", "other"))
    finally:
        weight.data.copy_(kept)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--queue-size", "0"], "--queue-size"),
        (["--spa3r", "elsewhere"], "--spa3r"),
        (["--port", "0"], "got 0"),
        (["--port", "99999"], "99999"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, named, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert named in capsys.readouterr().err


def test_an_address_that_cannot_be_used_is_refused_before_models_are_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for options, named in ((["--port", port], port), (["--host", "name.invalid"], "name.invalid")):
            with pytest.raises(ValueError, match=named):
                main(["--model", "nowhere/model", *options])
