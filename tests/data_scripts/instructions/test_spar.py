"""SPAR, on a miniature tree in its raw format: `spar_info` is a string of JSON, its markers are drawn."""

import json
import os

import numpy as np
import pytest
from instruction_records import fingerprint, read_rejected, read_rows, text_of, turns, write_image
from PIL import Image

from spa3r.data_scripts.instructions.spar import main

FOLDER = "spar/scannet/images/scene0005_00/image_color"


def record(name, spar_info, text="<image>\nHow deep is it?", frames=(1,), scene="scene0005_00"):
    images = [f"spar/scannet/images/{scene}/image_color/{frame}.jpg" for frame in frames]
    spar_info = json.dumps(spar_info) if isinstance(spar_info, dict) else spar_info
    return {"id": name, "conversations": turns(text, "2.5"), "images": images, "spar_info": spar_info}


@pytest.fixture
def convert(tmp_path):
    for frame in range(12):
        write_image(tmp_path / "media" / FOLDER / f"{frame}.jpg", "white", (400, 200))

    def convert(*records):
        (tmp_path / "spar.json").write_text(json.dumps(records))
        (tmp_path / "vsibench.txt").write_text("scene0011_00\n")
        arguments = ["--input", tmp_path / "spar.json", "--media-root", tmp_path / "media", "--workers", 1]
        arguments += ["--output", tmp_path / "set", "--exclude", tmp_path / "vsibench.txt"]
        main([str(argument) for argument in arguments])
        return {row["id"]: row for row in read_rows(tmp_path / "set")}

    return convert


def test_a_point_is_drawn_where_the_question_says(convert):
    row = convert(record("a", {"type": "depth_prediction_oc", "red_point": [[250, 500]]}))["a"]
    pixels = np.asarray(Image.open(row["images"][0])).astype(int)
    assert np.abs(pixels[100, 100] - [255, 0, 0]).max() < 8 and np.abs(pixels[100, 200] - 255).max() < 8
    assert row["question_type"] == "depth_prediction_oc" and row["scene_id"] == "scene0005_00"


def test_in_several_images_each_marker_is_on_its_own(convert, tmp_path):
    spar_info = {"type": "distance_prediction_oo_mv", "red_point": [[500, 500]], "blue_point": [[500, 500]]}
    text = "<image>\n<image>\n<image>\nHow far?"
    row = convert(record("a", spar_info | {"point_img_idx": [[2, 0]]}, text, (1, 2, 3)))["a"]
    middles = [np.asarray(Image.open(path)).astype(int)[100, 200] for path in row["images"]]
    assert np.abs(np.array(middles) - [[0, 0, 255], [255, 255, 255], [255, 0, 0]]).max() < 8
    assert row["images"][1] == str(tmp_path / "media" / FOLDER / "2.jpg")
    assert text_of(row["messages"][0]) == "###How far?"


def test_originals_keep_their_bytes(convert, tmp_path):
    before = fingerprint(tmp_path / "media")
    convert(record("a", {"type": "depth_prediction_oc", "red_point": [[250, 500]]}))
    assert fingerprint(tmp_path / "media") == before


def test_questions_with_the_same_markers_share_a_copy(convert):
    spar_info = {"type": "depth_prediction_oc", "red_point": [[250, 500]]}
    rows = convert(record("a", spar_info), record("b", spar_info), record("c", spar_info | {"red_point": [[1, 1]]}))
    assert rows["a"]["images"] == rows["b"]["images"] != rows["c"]["images"]


def test_questions_without_markers_keep_the_images_themselves(convert, tmp_path):
    text = "<image>\n<image>\nHow did the camera move?"
    row = convert(record("a", {"type": "view_change_infer"}, text, (1, 2)))["a"]
    assert row["images"] == [str(tmp_path / "media" / FOLDER / f"{frame}.jpg") for frame in (1, 2)]
    assert not (tmp_path / "set/marked").exists()


def test_of_a_sequence_eight_images_are_taken_after_marking(convert):
    spar_info = {"type": "distance_prediction_oo_video", "red_point": [[500, 500]], "blue_point": [[500, 500]]}
    spar_info["point_img_idx"] = [[11, 0]]
    row = convert(record("a", spar_info, "<video>\nHow far?", range(12)))["a"]
    frames = [path.split(f"{FOLDER}/")[1].split(".jpg")[0] for path in row["images"]]
    assert frames == [str(index) for index in (0, 1, 3, 4, 6, 7, 9, 11)]
    assert ["marked" in path for path in row["images"]] == [True] + [False] * 6 + [True]


def test_what_cannot_be_marked_is_rejected(convert, tmp_path):
    convert(
        record("good", {"type": "obj_count"}),
        record("no_info", None),
        record("no_json", "{"),
        record("no_type", {"red_point": [[1, 2]]}),
        record("odd_type", {"type": ["x"]}),
        record("odd_marker", {"type": "depth_prediction_oc", "red_point": [1, 2]}),
        record("new_type", {"type": "spatial_volume_infer", "red_point": [[1, 2]]}),
    )
    assert {rejection["id"]: rejection["reason"] for rejection in read_rejected(tmp_path / "set")} == {
        **dict.fromkeys(["no_info", "no_json", "no_type", "odd_type", "odd_marker"], "malformed markers"),
        "new_type": "unknown markers",
    }


def test_scenes_of_the_benchmark_are_excluded(convert, tmp_path):
    convert(record("a", {"type": "obj_count"}), record("b", {"type": "obj_count"}, scene="scene0011_01"))
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["excluded_by_scene"] == {"scene0011_01": 1}


def test_marked_copies_are_where_their_images_were(convert, tmp_path):
    row = convert(record("a", {"type": "depth_prediction_oc", "red_point": [[250, 500]]}))["a"]
    assert os.path.dirname(row["images"][0]) == str(tmp_path / "set/marked" / FOLDER / "1.jpg")


def test_the_source_is_the_data_set_of_the_images(convert, tmp_path):
    convert(record("a", {"type": "obj_count"}))
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["sources"] == {"scannet": 1}
