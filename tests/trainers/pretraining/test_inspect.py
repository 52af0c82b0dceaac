"""The command that looks into a checkpoint: scenes, photos or a video in; table, report and figures out."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from terminal import refusal, verb

from spa3r import Spa3RForPreTraining
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.trainers.pretraining.inspect import PhotoScene, read_video
from spa3r.trainers.pretraining.inspect_command import parse_arguments

main = verb("inspect")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    Spa3RForPreTraining(Spa3RConfig.from_dict(load_preset("spa3r-tiny"))).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    render_rooms(folder, num_scenes=3, num_views=6, size=(56, 42), seed=0, workers=1)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = [folder / f"{name}.jpg" for name in "dacb"]
    for path, height in zip(paths, (42, 60, 42, 42), strict=True):
        Image.fromarray(rng.integers(0, 256, (height, 56, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*.*"))


def test_scenes_give_a_table_a_report_and_figures(checkpoint, rooms, tmp_path, capsys):
    options = ["--num-views", "4", "--image-width", "56", "--cameras", "--num-figures", "2"]
    main(["--model", checkpoint, "--scenes", f"rooms:{rooms}", *options, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert names(tmp_path) == [
        *["figures/room_000000.png", "figures/room_000001.png", "report.json", "report.md"],
    ]
    assert (tmp_path / "report.md").read_text() in printed + "\n"
    assert "8 x 32" in printed and str(tmp_path / "figures") in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_scenes"] == 3 and report["given_cameras"] is True


def test_held_out_scenes_of_a_training_run_can_be_chosen(checkpoint, rooms, tmp_path):
    options = ["--num-views", "4", "--image-width", "56", "--held-out-scenes", "2", "--num-figures", "0"]
    main(["--model", checkpoint, "--scenes", f"rooms:{rooms}", *options, "--output", str(tmp_path)])
    assert json.loads((tmp_path / "report.json").read_text())["num_scenes"] == 2


def test_photos_are_one_scene_with_a_figure(checkpoint, photos, tmp_path, capsys):
    options = ["--image-width", "56", "--output", str(tmp_path)]
    main(["--model", checkpoint, "--images", *photos, *options])
    assert names(tmp_path) == ["figures/photos.png", "report.json", "report.md"]
    assert (tmp_path / "report.md").read_text() in capsys.readouterr().out + "\n"


@pytest.mark.parametrize("output", ["photo.jpg", "photo.jpg/report"])
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_read(output, photos, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"")
    options = ["--model", "./nowhere", "--images", *photos, "--output", tmp_path / output]
    assert f"`{tmp_path / output}" in refusal(capsys, "inspect", *options)


def test_photos_keep_their_order_and_are_cropped_to_the_lowest(photos):
    scene = PhotoScene("photos", dict(enumerate(photos)), num_context_views=2, image_width=56)
    pixel_values = scene[0, 0, 4]["pixel_values"]
    assert pixel_values.shape == (4, 3, 42, 56)
    for index in (0, 2, 3):
        expected = np.asarray(Image.open(photos[index]))
        np.testing.assert_array_equal(pixel_values[index].permute(1, 2, 0).numpy(), expected)


def test_a_video_is_one_scene_with_targets_between_the_context_views(checkpoint, tmp_path):
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "walk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 56, 42, "yuv420p"
        for _ in range(12):
            image = rng.integers(0, 256, (42, 56, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    options = ["--video", str(tmp_path / "walk.mp4"), "--image-width", "56", "--num-views", "4"]
    args = parse_arguments(["--model", checkpoint, *options])
    assert read_video(args)[0, 0, 4]["frame_indices"] == [0, 7, 3, 11]
    main(["--model", checkpoint, *options, "--output", str(tmp_path / "report")])
    assert "figures/walk.png" in names(tmp_path / "report")


@pytest.mark.parametrize("source", ["scenes", "photos"])
def test_latents_that_do_not_tell_scenes_apart_fail_the_requirement(source, checkpoint, rooms, photos, tmp_path):
    given = ["--scenes", f"rooms:{rooms}", "--num-views", 4] if source == "scenes" else ["--images", *photos]
    options = ["--image-width", 56, "--num-figures", 0, "--require-scene-specific", "--output", tmp_path]
    with pytest.raises(SystemExit, match="^spa3r inspect: "):
        main(["--model", checkpoint, *given, *options])
    assert (tmp_path / "report.md").is_file()


@pytest.mark.parametrize(
    ("change", "named"),
    [("part", "latent_queries"), ("unrelated", "`x`: not in the model"), ("shape", "latent_queries")],
)
def test_weights_that_do_not_fit_are_refused_before_any_figure(change, named, checkpoint, photos, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    (name,) = (name for name in weights if name.endswith("latent_queries"))
    rest = {key: tensor for key, tensor in weights.items() if key != name}
    changed = {"part": rest, "unrelated": {"x": torch.zeros(1)}, "shape": rest | {name: weights[name][:2].clone()}}
    save_file(changed[change], tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match=named):
        main(
            [
                "--model",
                tmp_path / "model",
                "--image-width",
                "56",
                "--output",
                tmp_path / "report",
                "--images",
                *photos,
            ]
        )
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--images", "{photo}"], "`--images`", id="one photo"),
        pytest.param(["--images", "{photo}", "missing.jpg"], "missing.jpg", id="missing photo"),
        pytest.param(["--model", "missing", "--images", "{photo}", "{photo2}"], "`missing`", id="missing model"),
        pytest.param(["--scenes", "rooms:missing"], "missing", id="missing scenes"),
        pytest.param(["--scenes", "castles:."], "castles", id="unknown kind"),
        pytest.param(["--video", "missing.mp4"], "missing.mp4", id="missing video"),
        pytest.param(["--images", "{photo}", "{photo2}", "--device", "abacus"], "`abacus`", id="unknown device"),
        pytest.param(["--images", "{photo}", "{photo2}", "--device", "cuda:99"], "`cuda:99`", id="missing device"),
        pytest.param([], "--scenes --images --video", id="nothing to inspect"),
        pytest.param(["--images", "{photo}", "{photo2}", "--cameras"], "--cameras", id="cameras of photos"),
        pytest.param(["--images", "{photo}", "{photo2}", "--context-ratio", "1"], "--context-ratio", id="no target"),
        pytest.param(["--images", "{photo}", "{photo2}", "--num-views", "1"], "--num-views", id="one view"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(arguments, named, checkpoint, photos, capsys):
    values = {"photo": photos[0], "photo2": photos[1]}
    arguments = ["--model", checkpoint, "--image-width", "56", *(argument.format(**values) for argument in arguments)]
    assert named in refusal(capsys, "inspect", *arguments)
