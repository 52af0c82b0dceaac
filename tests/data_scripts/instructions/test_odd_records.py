"""Records with a field of another kind than expected: each is kept or rejected, and none ends a conversion."""

import copy
import json

import pytest
from instruction_records import turns, write_image, write_lines, write_tiny_video

from spa3r.data_scripts.instructions import llava_hound, spar, vlm3r, vsi590k

ODD_VALUES = [None, True, 7, -1.5, "", "x", "\ud800", "a\0b", [], ["x"], [7], [[]], [None], {}, {"x": []}, "9" * 5000]
ODD_VALUES += [10**400, float("inf"), [[1e300, 1e300]], [[10**400, 1]], [[-(10**6)] * 4], [[0.5, 0.5]], [[1, 2]] * 3]
MARKERS = {"type": "distance_prediction_oo_mv", "red_point": [[500, 500]], "blue_bbox": [[100, 100, 500, 500]]}
MARKERS |= {"point_img_idx": [[1]], "bbox_img_idx": [[0]]}
VIDEO = {"id": "a", "conversations": turns("<video>\nx", "1"), "video": "scannet/scene0000_00.mp4"}
VIDEO |= {"question_type": "count", "data_source": "scannet", "scene_name": "scene0000_00"}
IMAGES = {"id": "a", "conversations": turns("<image><image>x", "1"), "images": ["spar/a.jpg", "spar/b.jpg"]}
CASES = {
    "vsi590k": (vsi590k, VIDEO),
    "vlm3r": (vlm3r, VIDEO),
    "llava_hound": (llava_hound, VIDEO),
    "spar": (spar, IMAGES | {"spar_info": json.dumps(MARKERS)}),
}


def odd_records(record):
    """The record with every field, turn, and part of its markers replaced by odd values, one at a time."""
    for value in ODD_VALUES:
        for name in record:
            yield record | {name: value}
        for index in (0, 1):
            for name in ("from", "value"):
                changed = copy.deepcopy(record)
                changed["conversations"][index][name] = value
                yield changed
        if "spar_info" in record:
            for name in MARKERS:
                yield record | {"spar_info": json.dumps(MARKERS | {name: value})}


@pytest.mark.parametrize("name", CASES)
def test_no_odd_record_ends_a_conversion(tmp_path, name):
    converter, record = CASES[name]
    write_tiny_video(tmp_path / "media/scannet/scene0000_00.mp4")
    for image in ("a", "b"):
        write_image(tmp_path / f"media/spar/{image}.jpg")
    records = [record, *odd_records(record)]
    write_lines(tmp_path / "records.jsonl", records)
    (tmp_path / "scenes").write_text("scene0011_00")
    arguments = ["--input", "records.jsonl", "--media-root", "media", "--output", "set", "--exclude", "scenes"]
    paths = [part if part.startswith("--") else str(tmp_path / part) for part in arguments]
    converter.main([*paths, "--workers", "1"])
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["records"] == len(records) == manifest["kept"] + manifest["rejected"]
