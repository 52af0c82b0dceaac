"""The engine of all converters: blocks, counts, and conversions that are killed."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from unittest import mock

import pytest
from datasets import load_dataset
from instruction_records import (
    convert_in_blocks,
    fingerprint,
    question,
    read_rows,
    reasons,
    turns,
    write_image,
    write_lines,
)
from tiny_videos import write_video

from spa3r.data_scripts.instructions import convert as engine

VIDEO = {"video": "scannet/scene0000_00.mp4"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_RECORDS", 3)


@pytest.fixture
def run_until_merge(run, monkeypatch):
    """Converts all blocks, but stops before they become an instruction set."""

    def run_until_merge(records, **options):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_merge_blocks", lambda *arguments: sys.exit(1))
            with pytest.raises(SystemExit):
                run(records, **options)

    return run_until_merge


# What is written


def test_the_datasets_library_reads_rows_and_images_whatever_folders_frames_are_in(run, tmp_path, media):
    names = ["train/test.mp4", "validation/b.mp4"]
    for name in names:
        write_video(media / name)
    run([question(video=name) for name in names])
    data = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert list(data) == ["train"] and data["train"]["question_type"] == ["absolute_count"] * 2
    assert data["train"][0]["images"][0].size == (64, 48)


def test_blocks_of_huge_records_hold_few_of_them(run, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_BYTES", 1000)
    run([question("<image>" + "x" * 999)] * 3)
    assert len(list((tmp_path / "set/data").iterdir())) == 3


def test_only_the_instruction_set_is_left_at_the_end(run, tmp_path):
    run([question(**VIDEO)])
    assert sorted(os.listdir(tmp_path / "set")) == ["README.md", "data", "frames", "manifest.json", "rejected.jsonl"]


@pytest.mark.parametrize(("max_records", "num_read"), [(None, 8), (4, 4)])
def test_rows_keep_the_order_of_the_input_over_blocks_up_to_a_limit(run, tmp_path, max_records, num_read):
    records = [question(image="hypersim/a.jpg", id=index) for index in range(8)]
    assert run(records, max_records=max_records)["records"] == num_read
    assert [row["id"] for row in read_rows(tmp_path / "set")] == list(map(str, range(num_read)))


# What is counted


def test_every_record_is_kept_or_excluded_or_rejected(run, tmp_path):
    bad = ["{", question(image="no.jpg"), question("no placeholder")]
    manifest = run([question(), *bad, question(video="scene0001_01.mp4")], excluded=["scene0001_00"])
    assert [manifest[name] for name in ("records", "kept", "excluded", "rejected")] == [5, 1, 1, 3]
    assert reasons(tmp_path / "set") == {2: "broken JSON", 3: "missing media", 4: "wrong number of placeholders"}
    assert manifest["rejected_by_reason"] == dict.fromkeys(reasons(tmp_path / "set").values(), 1)


def test_the_manifest_counts_changes_types_and_sources(run):
    leading = [{"from": "system", "value": "Be brief."}, *turns("<image>\nHow many chairs?", "3")]
    manifest = run([
        *(question(), question(**VIDEO), question(**VIDEO) | {"question_type": "room_size"}),
        question(image="hypersim/a.jpg", data_source="ai") | {"question_type": None},
        {"conversations": leading, "image": "hypersim/a.jpg"},
    ])  # fmt: skip
    assert manifest["question_types_by_source"] == {
        "ai": {"unknown": 1},
        "hypersim": {"absolute_count": 1, "unknown": 1},
        "scannet": {"absolute_count": 1, "room_size": 1},
    }
    assert manifest["sources"] == {"ai": 1, "hypersim": 2, "scannet": 2}
    assert manifest["question_types"] == {"absolute_count": 2, "room_size": 1, "unknown": 2}
    assert manifest["images"] == 1 + 4 + 4 + 1 + 1
    assert manifest["leading_turns_dropped"] == 1 and manifest["video_placeholders_rewritten"] == 2


def test_media_outside_of_any_folder_have_the_set_as_their_source(run, media):
    write_image(media / "a.jpg")
    assert run([question(image="a.jpg")])["sources"] == {"vsi590k": 1}


def test_a_manifest_names_no_more_types_than_a_limit(run, monkeypatch):
    monkeypatch.setattr(engine, "MAX_COUNTED", 2)
    manifest = run([question() | {"question_type": str(index)} for index in range(9)])
    assert manifest["question_types"] == {"0": 1, "1": 1, "others": 7}


# Kills and resumption


def test_several_processes_write_what_one_writes(run, tmp_path):
    records = [question(f"<image>{index}") for index in range(10)] + [question(**VIDEO), "{"]
    run(records, workers=1)
    alone = fingerprint(tmp_path / "set")
    (tmp_path / "set").rename(tmp_path / "alone")
    run(records, workers=2)
    assert fingerprint(tmp_path / "set") == alone


def count_files(folder):
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_conversion_killed_at_any_moment_ends_with_the_same_bytes(tmp_path, workers):
    for index in range(6):
        write_video(tmp_path / f"media/scannet/scene{index:04d}_00.mp4")
    records = [question(f"<image>{i}", video=f"scannet/scene{i % 7:04d}_00.mp4") for i in range(160)]
    output = tmp_path / "set"
    convert_in_blocks(8, tmp_path, records, workers=workers)
    expected = fingerprint(output)
    output.rename(tmp_path / "uninterrupted")
    # Its processes have imported the package when they start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", engine.__name__])
    rng, num_kills = random.Random(workers), 0
    while not (output / "data").exists():
        process = context.Process(target=convert_in_blocks, args=(8, tmp_path, records), kwargs={"workers": workers})
        process.start()
        limit = count_files(output) + rng.randrange(1, 30)
        while process.is_alive() and count_files(output) < limit:
            time.sleep(0.001)
        process.kill()
        process.join()
        num_kills += process.exitcode == -signal.SIGKILL
    convert_in_blocks(8, tmp_path, records, workers=workers)
    assert num_kills and fingerprint(output) == expected


def test_a_conversion_stopped_at_any_move_into_place_ends_with_the_same_bytes(run, tmp_path, monkeypatch):
    records = [question(f"<image>{i}", **VIDEO) for i in range(7)] + ["{"]
    run(records)
    expected, move = fingerprint(tmp_path / "set"), os.replace
    (tmp_path / "set").rename(tmp_path / "uninterrupted")
    for num_allowed in range(20):
        allowed = iter(range(num_allowed))

        def stop_after(*paths, allowed=allowed):
            if next(allowed, None) is None:
                raise KeyboardInterrupt
            move(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop_after)
            try:
                run(records)
                break
            except KeyboardInterrupt:
                pass
        run(records)
        assert fingerprint(tmp_path / "set") == expected
        (tmp_path / "set").rename(tmp_path / f"stopped_{num_allowed}")
    # The options, the frames, three blocks with two files each, rejected, manifest, card, and the data.
    assert num_allowed == 12


def test_a_second_run_changes_nothing_and_makes_a_deleted_set_again(run, tmp_path):
    manifest = run([question(**VIDEO), "{"])
    expected = fingerprint(tmp_path / "set")
    assert run([question(**VIDEO), "{"]) == manifest and fingerprint(tmp_path / "set") == expected
    shutil.rmtree(tmp_path / "set")
    assert run([question(**VIDEO), "{"]) == manifest and fingerprint(tmp_path / "set") == expected


def test_finished_blocks_are_not_converted_again(run, run_until_merge, tmp_path, monkeypatch):
    records = [question(f"<image>{index}") for index in range(9)]
    run_until_merge(records)
    assert not (tmp_path / "set/data").exists()
    (tmp_path / "set/.unfinished/blocks/000001.json").unlink()
    convert_block = mock.Mock(wraps=engine._convert_block)
    monkeypatch.setattr(engine, "_convert_block", convert_block)
    run(records)
    assert [call.args[1] for call in convert_block.call_args_list] == [1]
    assert len(read_rows(tmp_path / "set")) == 9


def test_a_block_whose_records_lost_their_media_leaves_no_rows(run, run_until_merge, tmp_path, media):
    records = [question()] * 3 + [question(image="hypersim/b.jpg")] * 3
    run_until_merge(records)
    (tmp_path / "set/.unfinished/blocks/000001.json").unlink()
    (media / "hypersim/b.jpg").unlink()
    assert run(records)["kept"] == len(read_rows(tmp_path / "set")) == 3


# What is refused


@pytest.mark.parametrize(
    ("records", "options", "named"),
    [
        ([question()], {"workers": 0}, "`workers`.*0"),
        ([question()], {"max_records": -1}, "`max_records`.*-1"),
        ([question(image="x.jpg"), question(image="y.jpg")], {}, r"missing media \(2\)"),
    ],
)
def test_a_conversion_without_result_names_the_reason(run, records, options, named):
    with pytest.raises(ValueError, match=named):
        run(records, **options)


@pytest.mark.parametrize("missing", ["records.jsonl", "media"])
def test_a_missing_input_is_named(tmp_path, media, missing):
    write_lines(tmp_path / "records.jsonl", [question()])
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"`{tmp_path / missing}`"):
        engine.convert(engine.RawSample.from_record, "set", tmp_path / "records.jsonl", media, tmp_path / "set", [])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"records": [question()] * 2}, "`input_sha256`"),
        ({"excluded": ["scene0011_00"]}, "`excluded_sha256`"),
        ({"max_records": 1}, "`max_records`"),
        ({"name": "vlm3r"}, "`source`"),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_an_output_made_from_something_else_is_refused(
    run, run_until_merge, tmp_path, media, changed, named, is_finished
):
    (run if is_finished else run_until_merge)([question()])
    before = fingerprint(tmp_path / "set")
    with pytest.raises(ValueError, match=named):
        run(**{"records": [question()]} | changed)
    assert fingerprint(tmp_path / "set") == before


def test_a_second_conversion_to_the_same_folder_at_the_same_time_is_refused(run, tmp_path, monkeypatch):
    original = engine._merge_blocks

    def run_a_second_one(*arguments):
        monkeypatch.setattr(engine, "_merge_blocks", original)
        with pytest.raises(ValueError, match=f"`{tmp_path / 'set'}`"):
            run([question()])
        return original(*arguments)

    monkeypatch.setattr(engine, "_merge_blocks", run_a_second_one)
    assert run([question()])["kept"] == 1


@pytest.mark.parametrize("name", ["data/a.parquet", "manifest.json", "notes.txt"])
def test_a_folder_that_holds_something_else_is_refused_and_not_changed(run, tmp_path, name):
    (tmp_path / "set" / name).parent.mkdir(parents=True)
    (tmp_path / "set" / name).write_text("{}")
    before = fingerprint(tmp_path / "set")
    with pytest.raises(ValueError, match=f"`{name.split('/')[0]}`"):
        run([question()])
    assert fingerprint(tmp_path / "set") == before
