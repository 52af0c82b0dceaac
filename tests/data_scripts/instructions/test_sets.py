"""The published sets, on miniature trees in their raw formats."""

import copy
import itertools
import json
import os

import numpy as np
import pytest
from instruction_records import (
    convert_set,
    read_rows,
    reasons,
    text_of,
    turns,
    write_frames,
    write_image,
)
from PIL import Image
from tiny_videos import write_video

from spa3r.data_scripts.instructions.command import SETS

PROMPT = (
    "These are frames of a video.\nWhich is closest to the sofa?\nOptions:\nA. lamp\nB. door\n"
    "Answer with the option's letter from the given choices directly."
)
SPAR_FOLDER = "spar/scannet/images/scene0005_00/image_color"
DIALOGUE = turns("<video>\nWhat happens?", "A dog runs.", "And then?", "It sleeps.")
POINT = {"type": "depth_prediction_oc", "red_point": [[250, 500]]}
VIDEO = "scannet/scene0000_00.mp4"


@pytest.fixture
def folder(tmp_path):
    """A folder with the media of all sets."""
    media = tmp_path / "media"
    write_video(media / VIDEO)
    write_frames(media / "llava_hound/frames/v_1", 16)
    (media / "llava_hound/frames/v_2").mkdir()
    for frame in range(12):
        write_image(media / SPAR_FOLDER / f"{frame}.jpg", "white", (400, 200))
    return tmp_path


def vsi(**fields):
    return {"conversations": turns(f"<image>\n{PROMPT}", "B"), "question_type": "absolute_count"} | fields


def vlm3r(scene="scene0000_00", **fields):
    record = {"id": "uuid", "scene_name": scene, "data_source": "scannet", "question_type": "object_rel_distance_v1"}
    return record | {"conversations": turns(f"<image>\n{PROMPT}", "B"), "video": f"scannet/{scene}.mp4"} | fields


def llava(clip):
    return {"id": clip, "data_source": "llava_hound", "video": f"llava_hound/frames/{clip}", "conversations": DIALOGUE}


def spar(spar_info, text="<image>\nHow deep is it?", frames=(1,), folder=SPAR_FOLDER):
    images = [f"{folder}/{frame}.jpg" for frame in frames]
    spar_info = json.dumps(spar_info) if isinstance(spar_info, dict) else spar_info
    return {"id": "q", "conversations": turns(text, "2.5"), "images": images, "spar_info": spar_info}


# Set, record; then of its row: images, first message with # for an image, scene, type of question, id and data source.
ROWS = [
    (
        *("vsi590k", vsi(video=VIDEO)),
        *(["0.jpg", "6.jpg", "12.jpg", "19.jpg"], f"####{PROMPT}"),
        *("scene0000_00", "absolute_count", "vsi590k-1", "scannet"),
    ),
    (
        *("vlm3r", vlm3r()),
        *(["0.jpg", "6.jpg", "12.jpg", "19.jpg"], f"####{PROMPT}"),
        *("scene0000_00", "object_rel_distance_v1", "uuid", "scannet"),
    ),
    (
        *("llava-hound", llava("v_1")),
        *([f"frame_{index}.jpg" for index in (0, 2, 4, 6, 8, 10, 12, 15)], "########What happens?"),
        *("llava_hound/frames/v_1", "open_ended", "v_1", "llava_hound"),
    ),
    (
        *("spar", spar({"type": "view_change_infer"}, "<image>\n<image>\nHow did the camera move?", (1, 2))),
        *(["1.jpg", "2.jpg"], "##How did the camera move?"),
        *("scene0005_00", "view_change_infer", "q", "scannet"),
    ),
]


@pytest.mark.parametrize(("name", "record", "images", "text", "scene", "kind", "row_id", "source"), ROWS)
def test_a_row_says_what_its_record_says(folder, name, record, images, text, scene, kind, row_id, source):
    manifest = convert_set(folder, [record], name)
    (row,) = read_rows(folder / "set")
    assert [os.path.basename(path) for path in row["images"]] == images
    assert text_of(row["messages"][0]) == text
    assert (row["scene_id"], row["question_type"], row["id"]) == (scene, kind, row_id)
    assert row["source"] == name.replace("-", "_") and manifest["sources"] == {source: 1}


def test_frames_of_a_folder_are_not_copied_and_a_dialogue_keeps_all_its_turns(folder):
    convert_set(folder, [llava("v_1")], "llava-hound")
    (row,) = read_rows(folder / "set")
    assert all(path.startswith(str(folder / "media")) for path in row["images"])
    assert not (folder / "set/frames").exists() and len(row["messages"]) == 4


BAD_MARKERS = [None, "{", {"red_point": [[1, 2]]}, {"type": ["x"]}, POINT | {"red_point": [1, 2]}]


@pytest.mark.parametrize(
    ("name", "good", "bad", "reason"),
    [
        ("llava-hound", llava("v_1"), llava("v_2"), "unreadable video"),
        ("llava-hound", llava("v_1"), llava("v_3"), "missing media"),
        ("vlm3r", vlm3r(), vlm3r("scene0006_00"), "missing media"),
        *[("spar", spar(POINT), spar(spar_info), "malformed markers") for spar_info in BAD_MARKERS],
        ("spar", spar(POINT), spar(POINT | {"type": "spatial_volume_infer"}), "unknown markers"),
    ],
)
def test_a_record_without_usable_media_is_rejected(folder, name, good, bad, reason):
    convert_set(folder, [good, bad], name)
    assert reasons(folder / "set") == {2: reason}


# Set, a record that is kept, one that is not, the scene that is listed, and the scene that is counted.
EXCLUDED = [
    ("vsi590k", vsi(video=VIDEO), vsi(video="scannet/scene0011_01.mp4"), "scene0011_00", "scene0011_01"),
    ("spar", spar(POINT), spar(POINT, folder="spar/scannet/images/scene0011_01/rgb"), "scene0011_00", "scene0011_01"),
    ("vlm3r", vlm3r("a", video=VIDEO), vlm3r("b", video=VIDEO), "b", "b"),
]


@pytest.mark.parametrize(("name", "kept", "left_out", "listed", "found"), EXCLUDED)
def test_records_about_listed_scenes_are_excluded(folder, name, kept, left_out, listed, found):
    manifest = convert_set(folder, [kept, left_out], name, [listed])
    assert manifest["excluded_by_scene"] == {found: 1} and manifest["kept"] == 1


def test_each_marker_is_drawn_on_its_own_image(folder):
    spar_info = {"type": "distance_prediction_oo_mv", "red_point": [[250, 500]], "blue_point": [[250, 500]]}
    text = "<image>\n<image>\n<image>\nHow far?"
    convert_set(folder, [spar(spar_info | {"point_img_idx": [[2, 0]]}, text, (1, 2, 3))], "spar")
    images = read_rows(folder / "set")[0]["images"]
    colors = [np.asarray(Image.open(path)).astype(int)[100, 100] for path in images]
    assert np.abs(np.array(colors) - [[0, 0, 255], [255, 255, 255], [255, 0, 0]]).max() < 8


def test_eight_images_of_a_sequence_are_taken_after_marking(folder):
    spar_info = {"type": "distance_prediction_oo_video", "red_point": [[500, 500]], "blue_point": [[500, 500]]}
    convert_set(folder, [spar(spar_info | {"point_img_idx": [[11, 0]]}, "<video>\nHow far?", range(12))], "spar")
    images = read_rows(folder / "set")[0]["images"]
    frames = [path.split(f"{SPAR_FOLDER}/")[1].split(".jpg")[0] for path in images]
    assert frames == [str(index) for index in (0, 1, 3, 4, 6, 7, 9, 11)]
    assert ["marked" in path for path in images] == [True] + [False] * 6 + [True]


ODD_VALUES = [None, True, 7, -1.5, "", "x", "\ud800", "a\0b", [], ["x"], [7], [[]], [None], {}, {"x": []}, "9" * 5000]
ODD_VALUES += [10**400, float("inf"), [[1e300, 1e300]], [[10**400, 1]], [[-(10**6)] * 4], [[0.5, 0.5]], [[1, 2]] * 3]
MARKERS = {"type": "distance_prediction_oo_mv", "red_point": [[500, 500]], "blue_bbox": [[100, 100, 500, 500]]}
MARKERS |= {"point_img_idx": [[1]], "bbox_img_idx": [[0]]}
WHOLE_RECORDS = {
    "vsi590k": vsi(id="a", video=VIDEO),
    "vlm3r": vlm3r(),
    "llava-hound": llava("v_1"),
    "spar": spar(MARKERS, "<image><image>x", (1, 2)),
}


def odd_records(record):
    """The record with every field, turn, and part of its markers replaced by odd values, one at a time."""
    for value in ODD_VALUES:
        for name in record:
            yield record | {name: value}
        for index, name in itertools.product((0, 1), ("from", "value")):
            changed = copy.deepcopy(record)
            changed["conversations"][index][name] = value
            yield changed
        for name in MARKERS if "spar_info" in record else ():
            yield record | {"spar_info": json.dumps(MARKERS | {name: value})}


@pytest.mark.parametrize("name", SETS)
def test_no_odd_record_ends_a_conversion(folder, name):
    record = WHOLE_RECORDS[name]
    manifest = convert_set(folder, [record, *odd_records(record)], name, ["scene0011_00"])
    assert manifest["records"] == 1 + len(list(odd_records(record))) == manifest["kept"] + manifest["rejected"]
