"""Benchmarks are read from small folders in their published layouts."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image
from refusals import refused
from scoring_cases import recorded
from tiny_videos import numbers_of, write_video

from spa3r.data_scripts.benchmarks.images import BATCH_ROWS, EmbeddedImages
from spa3r.data_scripts.benchmarks.reader import read_benchmark
from spa3r.data_scripts.benchmarks.rooms import read_baselines
from spa3r.data_scripts.rooms.question_options import QuestionOptions
from spa3r.data_scripts.rooms.write_questions import write_questions

VIEWSPATIAL_FOLDER = "ViewSpatial-Bench/scannetv2_val/scene0011_00/original_images"


def load(benchmark, question, num_frames=4):
    return benchmark.load_images(question.media, num_frames)


def colors(images):
    """Return the color of each image's first pixel."""
    return [image.getpixel((0, 0)) for image in images]


def encoded(*color, size=(8, 6), **options):
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG", **options)
    return content.getvalue()


RED, GREEN, BLUE = encoded(255, 0, 0), encoded(0, 255, 0), encoded(0, 0, 255)


def write_json_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def vsi_record(number, dataset="scannet", scene="scene0011_00", **changes):
    record = {"id": number, "dataset": dataset, "scene_name": scene, "question_type": "object_counting"}
    return record | {"question": "How many chairs?", "ground_truth": "4", "options": None, "pruned": False} | changes


VSI = [
    vsi_record(0),
    vsi_record(7, "arkitscenes", "41069025", options=["A. left", "B. right"], ground_truth="B"),
    vsi_record(3, question="How many sofas?"),
    vsi_record(4, "scannetpp", "09c1414f1b"),
]


def write_vsi(folder):
    write_json_lines(folder / "test.jsonl", VSI)
    for path in ("scannet/scene0011_00.mp4", "arkitscenes/41069025.mp4"):
        (folder / path).parent.mkdir()
        write_video(folder / path, 10)
    return folder


def cv_record(number, content=RED, task="Count", **changes):
    record = {"idx": number, "type": "2D", "task": task, "image": {"bytes": content, "path": None}}
    record |= {"question": "How many?", "choices": ["3", "2"], "answer": "(A)", "prompt": "How many? (A) 3 (B) 2"}
    return record | {"filename": f"img/2D/count/ade20k_{number}.png", "source": "ADE20K", "bbox": None} | changes


def write_parquet(path, records, columns, row_group_size=2):
    """Write images as `datasets` does."""
    features = {name: Value("string") for name in records[0]} | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(records, schema=Features(features).arrow_schema)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


CV_COLUMNS = {
    "idx": Value("int64"),
    "image": ImageColumn(),
    "choices": List(Value("string")),
    "bbox": List(List(Value("float64"))),
}


OMNI3D = {"type": "3D", "source": "Omni3D"}
CV_FILES = {
    "test_2d.parquet": [cv_record(0), cv_record(1, GREEN), cv_record(2, RED, question="How few?")],
    "test_3d.parquet": [
        cv_record(3, BLUE, "Depth", bbox=[[1.5, 2]], **OMNI3D),
        cv_record(4, GREEN, "Distance", **OMNI3D),
    ],
}


def write_cv(folder):
    for name, records in CV_FILES.items():
        write_parquet(folder / name, records, CV_COLUMNS)
    return folder


def spar_record(number, *contents, names=(), **changes):
    names = names or [None] * len(contents)
    images = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
    record = {"id": number, "img_type": "multi_view", "format_type": "select", "task": "position_matching"}
    return record | {"source": "scannet", "image": images, "question": "Which?", "answer": "A"} | changes


SPAR_COLUMNS = {"id": Value("int64"), "image": List(ImageColumn())}
SPAR_SHARDS = [
    [
        spar_record(10, RED, GREEN),
        spar_record(11, GREEN, RED),
        spar_record(12, BLUE, names=["scannet_scene0025_00_7.jpg"]),
    ],
    [spar_record(13, RED, GREEN, question="Where?"), spar_record(14, RED)],
]


def write_spar(folder, shards=SPAR_SHARDS):
    for index, records in enumerate(shards):
        name = f"test-{index:05d}-of-{len(shards):05d}.parquet"
        write_parquet(folder / "data" / name, records, SPAR_COLUMNS)
    return folder


def viewspatial_record(*paths, **changes):
    record = {"question_type": "Camera perspective - Relative Direction", "image_path": list(paths)}
    record |= {"question": "Where is the lamp?", "choices": "A. left\nB. right", "answer": "A. left"}
    return record | changes


VIEWSPATIAL = [
    viewspatial_record(f"{VIEWSPATIAL_FOLDER}/20.jpg"),
    viewspatial_record("ViewSpatial-Bench/val2017/000000380711.jpg"),
    viewspatial_record(f"{VIEWSPATIAL_FOLDER}/0.jpg", f"{VIEWSPATIAL_FOLDER}/20.jpg"),
    viewspatial_record(f"{VIEWSPATIAL_FOLDER}/0.jpg", f"{VIEWSPATIAL_FOLDER}/20.jpg", question="Where is the sofa?"),
    viewspatial_record(f"{VIEWSPATIAL_FOLDER}/20.jpg", f"{VIEWSPATIAL_FOLDER}/0.jpg"),
]


def write_viewspatial(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ViewSpatial-Bench.json").write_text(json.dumps(VIEWSPATIAL, indent=2))
    for path, color in ((f"{VIEWSPATIAL_FOLDER}/0.jpg", "red"), (f"{VIEWSPATIAL_FOLDER}/20.jpg", "blue")):
        place = folder / Path(path).relative_to("ViewSpatial-Bench")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color).save(place, "PNG")
    (folder / "val2017").mkdir()
    Image.new("RGB", (8, 8), "lime").save(folder / "val2017/000000380711.jpg", "PNG")
    return folder


def lines(*records):
    return lambda folder: write_json_lines(folder / "test.jsonl", records)


def shard(*records):
    return lambda folder: write_spar(folder, [records])


SHARD = "data/test-00000-of-00001.parquet"
WRITERS = {
    "vsi-bench": write_vsi,
    "cv-bench": write_cv,
    "spar-bench": write_spar,
    "viewspatial-bench": write_viewspatial,
}


# Records, scenes (`None`: the images), and numbers of the images, equal ones by the same number.
PUBLISHED = {
    "vsi-bench": (VSI, ["scene0011_00", "41069025", "scene0011_00", "09c1414f1b"], [0, 1, 0, 2]),
    "cv-bench": (sum(CV_FILES.values(), []), [None] * 5, [0, 1, 0, 2, 1]),
    "spar-bench": (sum(SPAR_SHARDS, []), [None, None, "scene0025_00", None, None], [0, 1, 2, 0, 3]),
    "viewspatial-bench": (VIEWSPATIAL, ["scene0011_00", None, *["scene0011_00"] * 3], [0, 1, 2, 2, 3]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_questions_have_their_columns_scenes_and_images(tmp_path, name):
    records, scenes, images = PUBLISHED[name]
    questions = read_benchmark(name, WRITERS[name](tmp_path)).questions
    assert [each.record for each in questions] == [
        {column: value for column, value in record.items() if column != "image"} for record in records
    ]
    ids = [record.get("id", record.get("idx", number)) for number, record in enumerate(records)]
    assert [each.id for each in questions] == list(map(str, ids))
    assert [each.scene_id for each in questions] == [
        scene or each.media for scene, each in zip(scenes, questions, strict=True)
    ]
    media = list(dict.fromkeys(each.media for each in questions))
    assert [media.index(each.media) for each in questions] == images


# VSI-Bench


def test_frames_of_a_video_are_spread_evenly(tmp_path):
    benchmark = read_benchmark("vsi-bench", write_vsi(tmp_path / "VSI-Bench"))
    assert numbers_of(load(benchmark, benchmark.questions[1], 4)) == [0, 3, 6, 9]


@pytest.mark.parametrize("moves", [False, True], ids=["removed", "in another folder"])
def test_missing_videos_are_listed_once_and_in_order(tmp_path, moves):
    folder, videos = write_vsi(tmp_path / "VSI-Bench"), tmp_path / "videos"
    videos.mkdir()
    (folder / "scannet").rename(videos / "scannet")
    benchmark = read_benchmark("vsi-bench", folder, videos if moves else None)
    found = "arkitscenes/41069025.mp4" if moves else "scannet/scene0011_00.mp4"
    assert benchmark.missing_media() == [found, "scannetpp/09c1414f1b.mp4"]


def test_a_file_of_a_subset_is_read_instead_of_the_folder(tmp_path):
    folder = write_vsi(tmp_path / "VSI-Bench")
    records = [vsi_record(3), vsi_record(7, "arkitscenes", "41069025", options=["A. left", "B. right"])]
    Dataset.from_list(records).to_parquet(folder / "test_debiased.parquet")
    benchmark = read_benchmark("vsi-bench", folder / "test_debiased.parquet")
    assert [question.record for question in benchmark.questions] == records
    assert benchmark.published_size is None and not benchmark.missing_media()
    assert read_benchmark("vsi-bench", folder / "test.jsonl").published_size == 5130


# CV-Bench and SPAR-Bench


def test_rows_beyond_what_is_held_in_memory_are_found(tmp_path):
    number = 2 * BATCH_ROWS + 3
    records = [cv_record(index, encoded(index, 2, 3)) for index in range(number)]
    write_parquet(tmp_path / "test_2d.parquet", records, CV_COLUMNS, row_group_size=BATCH_ROWS + 5)
    benchmark = read_benchmark("cv-bench", tmp_path)
    for index in (0, BATCH_ROWS, number - 1, BATCH_ROWS + 4, BATCH_ROWS + 5, 1):
        assert colors(load(benchmark, benchmark.questions[index])) == [(index, 2, 3)]


def most_memory(folder, number):
    """Return the most bytes that Arrow holds while it scans and reads a file of rows of 256 KiB."""
    rng = np.random.default_rng(0)
    records = [cv_record(index, rng.bytes(1 << 18)) for index in range(number)]
    file = write_parquet(folder / "test_2d.parquet", records, CV_COLUMNS, row_group_size=20)
    del records
    before, most = pa.total_allocated_bytes(), 0
    images = EmbeddedImages([file], "image")
    keys = []
    for _, key, _ in images.scan("CV-Bench"):
        keys.append(key)
        most = max(most, pa.total_allocated_bytes() - before)
    for key in keys:
        images.load(key, 1)
        most = max(most, pa.total_allocated_bytes() - before)
    return most


def test_memory_does_not_grow_with_the_number_of_questions(tmp_path, monkeypatch):
    monkeypatch.setattr("spa3r.data_scripts.benchmarks.images._decode", lambda content, name: None)
    assert most_memory(tmp_path / "many", 200) < 1.2 * most_memory(tmp_path / "few", 40)


def test_images_come_in_rgb_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored with its top at the right
    gray, turned = io.BytesIO(), encoded(9, 9, 9, size=(8, 6), exif=exif)
    Image.new("LA", (8, 6), (80, 0)).save(gray, "PNG")
    benchmark = read_benchmark("spar-bench", write_spar(tmp_path, [[spar_record(0, gray.getvalue(), turned)]]))
    images = load(benchmark, benchmark.questions[0])
    assert [(image.mode, image.size) for image in images] == [("RGB", (8, 6)), ("RGB", (6, 8))]
    assert colors(images) == [(255, 255, 255), (9, 9, 9)]


def break_file(name, path):
    return lambda folder: (WRITERS[name](folder) / path).write_bytes(b"no image")


BROKEN = {
    "video": ("vsi-bench", break_file("vsi-bench", "arkitscenes/41069025.mp4"), 1, ["7", "41069025.mp4"]),
    "photo": (
        "viewspatial-bench",
        break_file("viewspatial-bench", "val2017/000000380711.jpg"),
        1,
        ["1", "380711.jpg"],
    ),
    "embedded image": ("spar-bench", shard(spar_record(5, RED, b"no image")), 0, ["5", "2 of 2"]),
    "cut image": ("spar-bench", shard(spar_record(5, RED, RED[:45])), 0, ["5", "2 of 2", "truncated"]),
    "no image": ("spar-bench", shard(spar_record(5, RED, None)), 0, ["5", "row 1"]),
}


@pytest.mark.parametrize("name, write, index, tokens", BROKEN.values(), ids=BROKEN)
def test_images_that_cannot_be_decoded_are_named_with_their_question(tmp_path, name, write, index, tokens):
    write(tmp_path / "data")
    benchmark = read_benchmark(name, tmp_path / "data")
    with refused(*tokens):
        load(benchmark, benchmark.questions[index])


def test_rows_without_an_image_are_missing_media(tmp_path):
    records = [spar_record(0, RED), spar_record(1), spar_record(2, None)]
    benchmark = read_benchmark("spar-bench", write_spar(tmp_path, [records]))
    assert benchmark.missing_media() == ["no image in row 2", "no image in row 3"]


@pytest.mark.parametrize("number, published", [(4, 1000), (1000, 1000), (1001, 7207)])
def test_the_size_of_spar_bench_tells_the_tiny_set_from_the_whole_one(tmp_path, number, published):
    records = [spar_record(index, RED) for index in range(number)]
    assert read_benchmark("spar-bench", write_spar(tmp_path, [records])).published_size == published


@pytest.mark.parametrize("name, published", [("vsi-bench", 5130), ("cv-bench", 2638), ("viewspatial-bench", 5712)])
def test_sizes_of_published_sets_are_known(tmp_path, name, published):
    assert read_benchmark(name, WRITERS[name](tmp_path / "data")).published_size == published


def test_a_shard_that_is_the_whole_set_counts_as_the_folder(tmp_path):
    shard = write_spar(tmp_path, [[spar_record(0, RED)]]) / SHARD
    assert read_benchmark("spar-bench", shard).published_size == 1000
    assert read_benchmark("cv-bench", write_cv(tmp_path / "cv") / "test_2d.parquet").published_size is None


# ViewSpatial-Bench


@pytest.mark.parametrize("parent", [False, True])
def test_viewspatial_images_are_found_with_and_without_their_leading_folder(tmp_path, parent):
    folder = write_viewspatial(tmp_path / "ViewSpatial-Bench")
    benchmark = read_benchmark("viewspatial-bench", folder, tmp_path if parent else None)
    assert benchmark.missing_media() == []
    red, blue, lime = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    expected = [[blue], [lime], [red, blue], [red, blue], [blue, red]]
    assert [colors(load(benchmark, question)) for question in benchmark.questions] == expected


def test_media_that_lack_one_image_are_missing(tmp_path):
    folder = write_viewspatial(tmp_path)
    (folder / "scannetv2_val/scene0011_00/original_images/0.jpg").unlink()
    benchmark = read_benchmark("viewspatial-bench", folder)
    assert benchmark.missing_media() == [benchmark.questions[2].media, benchmark.questions[4].media]
    assert benchmark.missing_media()[0].startswith(f"{VIEWSPATIAL_FOLDER}/0.jpg and 1 more")


def test_the_mirror_of_viewspatial_bench_is_read_with_its_images(tmp_path):
    contents = [[BLUE], [GREEN], [RED, BLUE], [RED, BLUE], [BLUE, RED]]
    records = [
        record | {"images": [{"bytes": content, "path": None} for content in images]}
        for record, images in zip(VIEWSPATIAL, contents, strict=True)
    ]
    columns = {"image_path": List(Value("string")), "images": List(ImageColumn())}
    write_parquet(tmp_path / "mirror/data/test-00000-of-00001.parquet", records, columns)
    mirror = read_benchmark("viewspatial-bench", tmp_path / "mirror")
    original = read_benchmark("viewspatial-bench", write_viewspatial(tmp_path / "original"))
    for ours, theirs in zip(mirror.questions, original.questions, strict=True):
        assert (ours.id, ours.record) == (theirs.id, theirs.record)
        assert colors(load(mirror, ours)) == colors(load(original, theirs))
    assert mirror.questions[0].scene_id == "scene0011_00"


# Rooms


@pytest.fixture(scope="module")
def room_questions(rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("room_questions")
    write_questions(rooms, folder, QuestionOptions("benchmark"))
    return folder


def test_questions_about_rooms_show_frames_spread_over_the_room(rooms, room_questions):
    benchmark = read_benchmark("rooms", room_questions, rooms)
    assert benchmark.missing_media() == [] and benchmark.published_size is None
    question = benchmark.questions[-1]
    for image, frame in zip(load(benchmark, question, 3), (0, 3, 7), strict=True):
        with Image.open(rooms / question.scene_id / "color" / f"{frame}.jpg") as expected:
            assert np.array_equal(image, expected)


def test_frames_of_a_folder_are_those_of_the_recorded_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("spa3r.data_scripts.benchmarks.images._decode", lambda path, name: int(path.stem))
    color = tmp_path / "room_000000/color"
    color.mkdir(parents=True)
    (color / "0.jpg").touch()
    benchmark = read_benchmark(
        "rooms", write_json_lines(tmp_path / "test.jsonl", [vsi_record(0, scene="room_000000")])
    )
    there = 1
    for case in sorted(recorded("vsibench", "frame_indices"), key=lambda case: case["total_frames"]):
        for frame in range(there, case["total_frames"]):
            (color / f"{frame}.jpg").touch()
        there = max(there, case["total_frames"])
        assert load(benchmark, benchmark.questions[0], case["num_frames"]) == case["spa3_vlm_plugin"]


def test_rooms_without_frames_are_missing(rooms, room_questions, tmp_path):
    shutil.copytree(rooms / "room_000001", tmp_path / "room_000001")
    (tmp_path / "room_000003/color").mkdir(parents=True)
    missing = read_benchmark("rooms", room_questions, tmp_path).missing_media()
    assert missing == [f"room_{number:06d}/color" for number in (0, 2, 3, 4, 5)]


def test_rooms_of_another_seed_are_refused(rooms, room_questions, tmp_path):
    (tmp_path / "rooms.json").write_text(json.dumps({"seed": 1, "views": 8, "size": [56, 42]}))
    with refused("'seed': 0", "'seed': 1"):
        read_benchmark("rooms", room_questions, tmp_path)


def test_baselines_of_rooms_are_those_of_the_manifest(room_questions):
    manifest = json.loads((room_questions / "manifest.json").read_text())
    expected = {"frequency": manifest["frequency_baseline"], "blind (text only)": manifest["blind_bound"]}
    assert read_baselines(room_questions) == expected and expected["frequency"]


@pytest.mark.parametrize("content", [None, "{}", "[", "[]"])
def test_rooms_without_baselines_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with refused(f"`{tmp_path}`", "manifest.json"):
        read_baselines(tmp_path)


# Fingerprints


@pytest.mark.parametrize("name", list(WRITERS))
def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path, name):
    first, second = (WRITERS[name](tmp_path / place) for place in ("here", "there"))
    assert read_benchmark(name, first).fingerprint == read_benchmark(name, second).fingerprint


FIRST, SECOND = spar_record(0, RED), spar_record(1, RED)
CHANGES = {
    "question": ("vsi-bench", lines(vsi_record(0)), lines(vsi_record(0, question="?"))),
    "options": ("vsi-bench", lines(vsi_record(0)), lines(vsi_record(0, options=["A. 1"]))),
    "truth": ("vsi-bench", lines(vsi_record(0)), lines(vsi_record(0, ground_truth="5"))),
    "id": ("vsi-bench", lines(vsi_record(0)), lines(vsi_record(3))),
    "embedded image": ("spar-bench", shard(FIRST), shard(spar_record(0, BLUE))),
    "order": ("spar-bench", shard(FIRST, SECOND), shard(SECOND, FIRST)),
}


@pytest.mark.parametrize("name, before, after", CHANGES.values(), ids=CHANGES)
def test_any_change_of_questions_changes_the_fingerprint(tmp_path, name, before, after):
    before(tmp_path / "before")
    after(tmp_path / "after")
    prints = {read_benchmark(name, tmp_path / folder).fingerprint for folder in ("before", "after")}
    assert len(prints) == 2


# Wrong input


def text(name, content):
    def write(folder):
        folder.mkdir()
        (folder / name).write_text(content)

    return write


def viewspatial(*records):
    return text("ViewSpatial-Bench.json", json.dumps([viewspatial_record("val2017/1.jpg"), *records], indent=2))


def empty_parquet(folder):
    file = write_parquet(folder / "test_2d.parquet", [cv_record(0)], CV_COLUMNS)
    pq.write_table(pq.read_table(file).slice(0, 0), file)


def other_parquet(name):
    record = {"id": "0", "idx": "0", "type": "2D", "task": "Count", "question": "?", "source": "COCO", "image": None}
    return lambda folder: write_parquet(folder / name, [record], {"image": ImageColumn()})


def unembedded(folder):
    records = [cv_record(0) | {"image": "a.png"}]
    write_parquet(folder / "test_2d.parquet", records, CV_COLUMNS | {"image": Value("string")})


REFUSED = {
    "unknown benchmark": ("vsi", Path.mkdir, ["`vsi`", "vsi-bench, cv-bench"]),
    "no folder": ("cv-bench", lambda folder: None, ["/data`"]),
    **{
        f"empty folder of {name}": (name, Path.mkdir, ["/data`", file, "hf download"])
        for name, file in [
            ("vsi-bench", "test.jsonl"),
            ("cv-bench", "test_[23]d.parquet"),
            ("spar-bench", "data/test-*.parquet"),
            ("viewspatial-bench", "ViewSpatial-Bench.json"),
        ]
    },
    "empty file": ("vsi-bench", text("test.jsonl", ""), ["test.jsonl`"]),
    "blank file": ("vsi-bench", text("test.jsonl", "\n\n"), ["test.jsonl`"]),
    "no rows": ("cv-bench", empty_parquet, ["test_2d.parquet`"]),
    "other columns": (
        "vsi-bench",
        lines(vsi_record(0), {"id": 1, "question": "?", "scene_name": "a"}),
        ["Line 2", "lacks dataset, question_type, ground_truth, options"],
    ),
    "broken line": (
        "vsi-bench",
        text("test.jsonl", json.dumps(vsi_record(0)) + '\n{"id": '),
        ["Line 2", "test.jsonl`"],
    ),
    "other columns of CV-Bench": (
        "cv-bench",
        other_parquet("test_2d.parquet"),
        ["test_2d.parquet`", "lacks choices, answer, prompt"],
    ),
    "other columns of SPAR-Bench": ("spar-bench", other_parquet(SHARD), [f"{SHARD}`", "lacks answer"]),
    "no embedded images": ("cv-bench", unembedded, ["`image`", "test_2d.parquet`", "string"]),
    "not Parquet": (
        "cv-bench",
        text("test_2d.parquet", "version https://git-lfs.github.com/spec/v1\n"),
        ["test_2d.parquet`"],
    ),
    "repeated ids": (
        "vsi-bench",
        lines(*(vsi_record(index % 7) for index in range(14))),
        ["7 ids", "0, 1, 2, 3, 4, ..."],
    ),
    "scene outside": ("vsi-bench", lines(vsi_record(0, scene="../../secret")), ["Line 1", "../../secret"]),
    **{
        f"path {path!r}": (
            "viewspatial-bench",
            viewspatial(viewspatial_record("val2017/1.jpg", path)),
            ["Line 11", seen],
        )
        for path, seen in [
            ("../secret.jpg", "../secret.jpg"),
            ("/etc/hostname", "/etc/hostname"),
            ("a/../../b.jpg", "a/../../b.jpg"),
            (".", "'.'"),
            ("a\0b.jpg", r"'a\x00b.jpg'"),
            (7, "7"),
        ]
    },
    "no path": ("viewspatial-bench", viewspatial(viewspatial_record()), ["Line 11", "image"]),
}


@pytest.mark.parametrize("name, write, tokens", REFUSED.values(), ids=REFUSED)
def test_wrong_folders_are_refused_by_what_is_wrong(tmp_path, name, write, tokens):
    write(tmp_path / "data")
    with refused(*tokens):
        read_benchmark(name, tmp_path / "data")


def test_a_missing_media_folder_is_named(tmp_path):
    with refused("nowhere`"):
        read_benchmark("vsi-bench", write_vsi(tmp_path / "here"), tmp_path / "nowhere")
