"""Scenes of records, and scenes of benchmarks that are left out."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub
from instruction_records import write_lines

from spa3r.data_scripts.common.exclusions import BENCHMARKS, count_found, find_excluded, find_scene, read_excluded

SCENES = ["scene0011_00", "09c1414f1b", "41069025"]
ROWS = [
    {"id": index, "scene_name": scene, "question": "How many?"} for index, scene in enumerate([*SCENES, SCENES[0]])
]
FETCH = "from spa3r.data_scripts.common.exclusions import *; print(*sorted(fetch_benchmark_scenes()))"


@pytest.mark.parametrize(
    ("path", "is_video", "scene"),
    [
        ("scannet/videos/scene0012_03.mp4", True, "scene0012_03"),
        ("scannet/scene0012_03/color/17.jpg", False, "scene0012_03"),
        ("scannetppv2/09c1414f1b.mp4", True, "09c1414f1b"),
        ("arkitscenes/41069025/41069025_1.2.png", False, "41069025"),
        ("hypersim/ai_001_001/00000012.jpg", False, "hypersim/ai_001_001"),
        ("adt/sequence.7.mp4", True, "adt/sequence.7"),
        ("llava_hound/frames/v_1.5", True, "llava_hound/frames/v_1.5"),
        ("a.jpg", False, "a.jpg"),
    ],
)
def test_a_scene_is_named_by_a_known_id_or_else_by_its_place(path, is_video, scene):
    assert find_scene(path, is_video) == scene


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("scannet/scene0011_01.mp4", "scene0011_01"),
        ("spar/scannet/images/scene0011_00/image_color/1.jpg", "scene0011_00"),
        ("scannet/scene0012_00.mp4", None),
        ("scannetpp/09c1414f1b/1.jpg", "09c1414f1b"),
        ("scannetpp/09c1414f1b_frame_1.jpg", "09c1414f1b"),
        ("arkitscenes/41069025.mp4", "41069025"),
        ("arkitscenes/41069026.mp4", None),
        ("other/b1/1.jpg", "b1"),
        ("other/x_b1/1.jpg", None),
        ("hypersim/ai_001", "hypersim/ai_001"),
    ],
)
def test_excluded_scenes_are_found_in_paths(path, found):
    listed = frozenset(["scene0011_00", "09c1414f1b", "41069025", "b1", "hypersim/ai_001"])
    assert find_excluded([path], listed) == found


def test_scenes_are_read_from_lists_and_from_a_benchmarks_files(tmp_path):
    files = [tmp_path / name for name in ("list", "windows_list", "lines.jsonl", "list.json", "table.parquet")]
    files[0].write_text("scene0011_00\n\n 09c1414f1b \n41069025")
    files[1].write_text("\ufeffscene0011_00\r\n09c1414f1b\r\n41069025\r\n", newline="")
    write_lines(files[2], ROWS)
    files[3].write_text(json.dumps(ROWS, indent=2))
    pq.write_table(pa.Table.from_pylist(ROWS), files[4])
    assert [read_excluded([file]) for file in files] == [set(SCENES)] * len(files)


LIST = "scene0011_00,09c1414f1b,41069025"
FORMS = {
    "commas": LIST,
    "commas on lines": "scene0011_00, 09c1414f1b\n41069025,\n",
    "quotes": '"scene0011_00"\n\'09c1414f1b\'\n"41069025"\n',
    "quotes and commas": '"scene0011_00", "09c1414f1b","41069025"',
    "comments": "# VSI-Bench\nscene0011_00\n09c1414f1b\n# the rest\n41069025\n",
    "comments after ids": "scene0011_00 # kitchen, small\n09c1414f1b\t# hall\n41069025 #\n",
    "spaces": "scene0011_00 09c1414f1b\n 41069025",
    "paths between spaces": "scannet/scene0011_00.mp4 ./scene0011_00/\n09c1414f1b\n41069025",
    "paths": "data/scannet/scene0011_00/\n./scannetpp/09c1414f1b.mp4\narkitscenes\\41069025\\41069025_1.png\n",
    "JSON list": json.dumps(SCENES, indent=1),
    "CSV": "id,scene_name,question\n" + "".join(f'1,{scene},"How many # 1,\n\nif any?"\n' for scene in SCENES),
    "CSV after Excel": "\ufeffscene_name;id\r\n" + "".join(f"{scene};1\r\n" for scene in SCENES),
    "tabs": "scene_id\tid\n" + "".join(f"{scene}\t1\n" for scene in SCENES),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_lists_are_read_in_the_forms_that_people_write(tmp_path, form, encoding):
    if encoding != "utf-16" or "JSON" not in form:
        (tmp_path / "list").write_bytes(FORMS[form].removeprefix("\ufeff").encode(encoding))
        assert read_excluded([tmp_path / "list"]) == set(SCENES)


@pytest.mark.parametrize(
    ("entry", "scene"),
    [
        ("living room", "living room"),
        ("walks/room_20240131.mp4", "walks/room_20240131"),
        ("room_20240131", "room_20240131"),
        ("hypersim/ai_001/00000012.jpg", "hypersim/ai_001"),
        ("b1", "b1"),
    ],
)
def test_other_entries_of_a_list_stay_whole(tmp_path, entry, scene):
    (tmp_path / "list").write_text(entry)
    assert read_excluded([tmp_path / "list"]) == {scene}


def test_all_scans_of_a_line_are_listed(tmp_path):
    (tmp_path / "list").write_text("scannet/scene0011_00.mp4 scannet/scene0012_00.mp4")
    assert read_excluded([tmp_path / "list"]) == {"scene0011_00", "scene0012_00"}


def test_a_folder_is_no_list(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_excluded([tmp_path])


def test_scannet_scenes_in_the_paths_of_a_parquet_file_are_listed(tmp_path):
    rows = [{"image_path": ["scannetv2_val/scene0012_00/original_images/7.jpg"]}, {"image_path": ["val2017/1.jpg"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "views.parquet")
    assert read_excluded([tmp_path / "views.parquet"]) == {"scene0012_00"}


def test_listed_scenes_count_as_found_by_any_scan_of_their_room():
    listed = frozenset(["scene0011_00", "scene0011_01", "scene0012_00", "b1", "b2"])
    assert count_found(["scene0011_02", "b1"], listed) == 3


def test_scenes_of_several_files_are_put_together(tmp_path):
    assert read_excluded(write_lines(tmp_path / scene, [scene]) for scene in SCENES) == set(SCENES)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, ""),
        (b"\n", ""),
        (b"\xff\xd8\xff", "UTF-8"),
        (b"PAR1 and nothing else", "Parquet"),
        (b'{"scene": "scene0011_00"}', "`scene_name`"),
        (b'{"scene_name": "scene0011_00"}\n{', "Line 2"),
        (b"id,scene,question\n1,scene0011_00,How many chairs?\n", "'How many chairs?'"),
        (b'["scene0011_00", 7]', "JSON"),
        ('{"scene_name": "09c1414f1b"}'.encode("utf-16"), "UTF-16"),
        ("09c1414f1b".encode("utf-16-le"), "UTF-16"),
        (b"scene0011_00 kitchen", "'scene0011_00 kitchen'"),
    ],
)
def test_a_file_that_names_no_scenes_is_refused(tmp_path, content, named):
    if content is not None:
        (tmp_path / "scenes").write_bytes(content)
    with pytest.raises(FileNotFoundError if content is None else ValueError) as caught:
        read_excluded([tmp_path / "scenes"])
    for part in (named, f"`{tmp_path / 'scenes'}`", "`--exclude"):
        assert part in str(caught.value)


def fetch(hub, tmp_path):
    environment = os.environ | hub.environment(tmp_path / "cache")
    return subprocess.run([sys.executable, "-c", FETCH], env=environment, capture_output=True, text=True)


def test_scenes_of_the_benchmarks_are_fetched_from_the_hub_once(tmp_path):
    views = [
        {"image_path": ["ViewSpatial-Bench/scannetv2_val/scene0012_00/original_images/7.jpg"], "question": "Where?"},
        {"image_path": "ViewSpatial-Bench/val2017/000000000139.jpg", "question": "Where?"},
    ]
    texts = ["".join(json.dumps(row) + "\n" for row in ROWS), json.dumps(views)]
    with Hub() as hub:
        for (name, file), text in zip(BENCHMARKS.items(), texts, strict=True):
            hub.commits["datasets", name] = [("All", {file: text.encode()})]
        expected = sorted([*SCENES, "scene0012_00"])
        assert fetch(hub, tmp_path).stdout.split() == expected
        hub.commits.clear()
        assert fetch(hub, tmp_path).stdout.split() == expected


@pytest.mark.parametrize("missing", BENCHMARKS)
def test_a_benchmark_that_cannot_be_fetched_is_named_with_the_option_to_use(tmp_path, missing):
    with Hub() as hub:
        for name, file in BENCHMARKS.items():
            if name != missing:
                hub.commits["datasets", name] = [("All", {file: json.dumps(ROWS).encode()})]
        errors = fetch(hub, tmp_path).stderr
    assert "ValueError" in errors and f"`{missing}`" in errors and "--exclude" in errors
