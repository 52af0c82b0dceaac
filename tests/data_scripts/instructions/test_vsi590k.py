"""VSI-590K, on a miniature tree in its raw format."""

import json
import os

import pytest
from instruction_records import read_rows, reasons, text_of, turns, write_image, write_lines, write_tiny_video

from spa3r.data_scripts.instructions.vsi590k import main

PROMPT = "These are frames of a video.\nHow many chair(s) are in this room?\nPlease answer with a number."


@pytest.fixture
def output(tmp_path):
    """Set made of two videos, an image, and a scene of the benchmark."""
    write_tiny_video(tmp_path / "media/scannet/scene0000_00.mp4", 20)
    write_tiny_video(tmp_path / "media/scannetppv2/09c1414f1b.mp4", 10)
    write_image(tmp_path / "media/hypersim/ai_001_001/frame.0000.jpg")
    records = [
        {"video": "scannet/scene0000_00.mp4", "question_type": "absolute_count"},
        {"video": "scannetppv2/09c1414f1b.mp4", "question_type": "absolute_size_room"},
        {"image": "hypersim/ai_001_001/frame.0000.jpg", "question_type": "relative_distance_object"},
        {"video": "scannet/scene0011_01.mp4", "question_type": "absolute_count"},
    ]
    records = [{"conversations": turns(f"<image>\n{PROMPT}", "4")} | record for record in records]
    file = write_lines(tmp_path / "vsi_590k.jsonl", records)
    (tmp_path / "vsibench.txt").write_text("scene0011_00\n")
    arguments = ["--input", file, "--media-root", tmp_path / "media", "--output", tmp_path / "set", "--workers", 1]
    main([str(argument) for argument in [*arguments, "--exclude", tmp_path / "vsibench.txt"]])
    return tmp_path / "set"


def test_the_placeholder_of_a_video_stands_for_its_frames(output):
    rows = read_rows(output)
    assert [len(row["images"]) for row in rows] == [4, 4, 1]
    assert [text_of(row["messages"][0]) for row in rows] == ["#" * 4 + PROMPT, "#" * 4 + PROMPT, "#" + PROMPT]


def test_types_scenes_and_lines_are_those_of_the_records(output):
    assert [(row["question_type"], row["scene_id"], row["id"]) for row in read_rows(output)] == [
        ("absolute_count", "scene0000_00", "vsi590k-1"),
        ("absolute_size_room", "09c1414f1b", "vsi590k-2"),
        ("relative_distance_object", "hypersim/ai_001_001", "vsi590k-3"),
    ]


def test_other_scans_of_the_benchmarks_rooms_are_excluded(output):
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["excluded_by_scene"] == {"scene0011_01": 1} and reasons(output) == {}
    assert manifest["video_placeholders_rewritten"] == 2


def test_images_are_files_that_are_there(output):
    assert all(os.path.isfile(path) for row in read_rows(output) for path in row["images"])
