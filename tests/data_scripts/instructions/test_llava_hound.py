"""LLaVA-Hound, on a miniature tree in its raw format: folders of frames."""

import json
import os

import pytest
from instruction_records import read_rejected, read_rows, text_of, turns, write_frames

from spa3r.data_scripts.instructions.llava_hound import main


@pytest.fixture
def output(tmp_path):
    write_frames(tmp_path / "media/llava_hound/frames/v_1", 16)
    write_frames(tmp_path / "media/llava_hound/frames/v_2", 3)
    (tmp_path / "media/llava_hound/frames/v_3").mkdir()
    records = [
        {"id": f"v_{index}_0", "data_source": "llava_hound", "video": f"llava_hound/frames/v_{index}"}
        | {"conversations": turns("<video>\nWhat happens?", "A dog runs.", "And then?", "It sleeps.")}
        for index in (1, 2, 3, 4)
    ]
    (tmp_path / "llava_hound_64k.json").write_text(json.dumps(records))
    arguments = ["--input", tmp_path / "llava_hound_64k.json", "--media-root", tmp_path / "media", "--no-exclude"]
    main([str(argument) for argument in [*arguments, "--output", tmp_path / "set", "--workers", 1]])
    return tmp_path / "set"


def test_frames_are_taken_where_they_are_in_natural_order(output):
    first, second = read_rows(output)
    assert [os.path.basename(path) for path in first["images"]] == [
        f"frame_{index}.jpg" for index in (0, 2, 4, 6, 8, 10, 12, 15)
    ]
    assert [os.path.basename(path) for path in second["images"]] == [f"frame_{index}.jpg" for index in (0, 1, 2)]
    assert not (output / "frames").exists()


def test_the_conversation_is_kept_with_all_turns(output):
    texts = [text_of(message) for message in read_rows(output)[1]["messages"]]
    assert texts == ["###What happens?", "A dog runs.", "And then?", "It sleeps."]


def test_rows_name_the_set_the_type_and_the_clip(output):
    row = read_rows(output)[0]
    assert [row[name] for name in ("source", "question_type", "scene_id", "id")] == [
        "llava_hound",
        "open_ended",
        "llava_hound/frames/v_1",
        "v_1_0",
    ]


def test_clips_without_frames_are_rejected(output):
    rejected = {rejection["id"]: rejection["reason"] for rejection in read_rejected(output)}
    assert rejected == {"v_3_0": "unreadable video", "v_4_0": "missing media"}
