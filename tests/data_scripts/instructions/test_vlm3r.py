"""VLM-3R's questions, on a miniature tree in their raw format: one JSON list, `<image>` for a video."""

import json

import pytest
from instruction_records import read_rows, reasons, text_of, turns, write_tiny_video

from spa3r.data_scripts.instructions.vlm3r import main

PROMPT = (
    "These are frames of a video.\nWhich is closest to the sofa?\nOptions:\nA. lamp\nB. door\n"
    "Answer with the option's letter from the given choices directly."
)


@pytest.fixture
def output(tmp_path):
    write_tiny_video(tmp_path / "media/scannet/videos/scene0005_00.mp4")
    common = {"data_source": "scannet", "question_type": "object_rel_distance_v1"}
    scenes = ["scene0005_00", "scene0011_00", "scene0006_00"]
    records = [
        common
        | {"id": f"uuid-{scene}", "scene_name": scene, "video": f"scannet/videos/{scene}.mp4"}
        | {"conversations": turns(f"<image>\n{PROMPT}", "B")}
        for scene in scenes
    ]
    (tmp_path / "merged_qa_scannet_train.json").write_text(json.dumps(records, indent=2))
    (tmp_path / "vsibench.txt").write_text("scene0011_01\n")
    arguments = ["--input", tmp_path / "merged_qa_scannet_train.json", "--media-root", tmp_path / "media"]
    arguments += ["--output", tmp_path / "set", "--exclude", tmp_path / "vsibench.txt", "--workers", 1]
    main([str(argument) for argument in arguments])
    return tmp_path / "set"


def test_the_prompt_of_the_benchmark_follows_the_frames_verbatim(output):
    (row,) = read_rows(output)
    assert [text_of(message) for message in row["messages"]] == ["#" * 4 + PROMPT, "B"]


def test_the_record_names_scene_type_and_id(output):
    (row,) = read_rows(output)
    assert [row[name] for name in ("scene_id", "question_type", "id", "source")] == [
        "scene0005_00",
        "object_rel_distance_v1",
        "uuid-scene0005_00",
        "vlm3r",
    ]


def test_a_video_that_was_not_made_is_missing_media(output):
    assert list(reasons(output).values()) == ["missing media"]


def test_a_scene_is_excluded_by_its_name_alone(tmp_path):
    write_tiny_video(tmp_path / "media/clip.mp4")
    records = [{"scene_name": name, "video": "clip.mp4", "conversations": turns("<image>\nx", "1")} for name in "ab"]
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "scenes.txt").write_text("a\n")
    arguments = ["--input", tmp_path / "records.json", "--media-root", tmp_path / "media", "--workers", 1]
    main([str(part) for part in [*arguments, "--output", tmp_path / "set", "--exclude", tmp_path / "scenes.txt"]])
    assert [row["scene_id"] for row in read_rows(tmp_path / "set")] == ["b"]
