"""The engine of all converters: what becomes of records, good and bad, and of a conversion that is killed."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from datasets import load_dataset
from instruction_records import (
    fingerprint,
    read_rejected,
    read_rows,
    reasons,
    text_of,
    turns,
    write_image,
    write_lines,
    write_tiny_video,
)
from recordings import CASES, needs_cases, training_cases

from spa3r.data_scripts.common.records import BadRecord
from spa3r.data_scripts.instructions import convert as instruction_sets
from spa3r.data_scripts.instructions.convert import compose_messages, convert, read_turns
from spa3r.data_scripts.instructions.vsi590k import main, read_record

QUESTION = turns("<image>\nHow many chairs?", "3")
# A conversion in a process of its own, with small blocks, to be killed.
PROGRAM = """
import sys
from spa3r.data_scripts.instructions import convert as instruction_sets
from spa3r.data_scripts.instructions.vsi590k import read_record
if __name__ == "__main__":
    instruction_sets.BLOCK_RECORDS = 8
    instruction_sets.convert(read_record, "vsi590k", sys.argv[1], sys.argv[2], sys.argv[3], [], int(sys.argv[4]))
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(instruction_sets, "BLOCK_RECORDS", 3)


@pytest.fixture
def media(tmp_path):
    write_image(tmp_path / "media/hypersim/a.jpg")
    write_image(tmp_path / "media/hypersim/b.jpg")
    write_tiny_video(tmp_path / "media/scannet/scene0000_00.mp4")
    return tmp_path / "media"


@pytest.fixture
def run(tmp_path, media):
    """Converts records to the folder `set` and returns the manifest."""

    def run(records, excluded=(), **options):
        file = write_lines(tmp_path / "records.jsonl", records)
        return convert(read_record, "vsi590k", file, media, tmp_path / "set", excluded, **options)

    return run


def question(text="<image>\nHow many chairs?", answer="3", **fields):
    fields = fields or {"image": "hypersim/a.jpg"}
    return {"conversations": turns(text, answer), "question_type": "absolute_count", **fields}


def test_a_row_says_everything_about_its_record(run, tmp_path, media):
    run([question(id=7, image="hypersim/a.jpg")])
    (row,) = read_rows(tmp_path / "set")
    assert row == {
        "images": [str(media / "hypersim/a.jpg")],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "text": None}, {"type": "text", "text": "How many chairs?"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "3"}]},
        ],
        "scene_id": "hypersim",
        "question_type": "absolute_count",
        "source": "vsi590k",
        "id": "7",
    }


def test_the_datasets_library_reads_images_where_they_are(run, tmp_path):
    run([question()])
    files = str(tmp_path / "set/data/*.parquet")
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert data[0]["images"][0].size == (64, 48)


def test_the_datasets_library_finds_the_rows_whatever_folders_frames_are_in(run, tmp_path, media):
    for name in ("train/test.mp4", "validation/b.mp4"):
        write_tiny_video(media / name)
    run([question(video="train/test.mp4"), question(video="validation/b.mp4")])
    data = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert list(data) == ["train"] and data["train"]["question_type"] == ["absolute_count"] * 2


def test_rows_keep_the_order_of_the_input_over_blocks(run, tmp_path):
    run([question(f"<image>question {index}") for index in range(8)])
    assert [text_of(row["messages"][0]) for row in read_rows(tmp_path / "set")] == [f"#question {i}" for i in range(8)]


def test_every_record_is_kept_or_excluded_or_rejected(run, tmp_path):
    records = [
        question(),
        "{",
        question(image="no.jpg"),
        question("no placeholder"),
        question(video="scene0001_01.mp4"),
    ]
    manifest = run(records, excluded=["scene0001_00"])
    assert [manifest[name] for name in ("records", "kept", "excluded", "rejected")] == [5, 1, 1, 3]
    assert reasons(tmp_path / "set") == {2: "broken JSON", 3: "missing media", 4: "wrong number of placeholders"}
    assert manifest["rejected_by_reason"] == dict.fromkeys(reasons(tmp_path / "set").values(), 1)


def test_the_manifest_counts_types_and_what_was_changed(run):
    video = {"video": "scannet/scene0000_00.mp4"}
    leading = {"conversations": [{"from": "system", "value": "Be brief."}, *QUESTION], "image": "hypersim/a.jpg"}
    manifest = run([question(), question(**video), leading])
    assert manifest["question_types"] == {"absolute_count": 2, "unknown": 1}
    assert manifest["images"] == 1 + 4 + 1
    assert manifest["leading_turns_dropped"] == 1 and manifest["video_placeholders_rewritten"] == 1


def test_the_manifest_counts_types_of_each_source(run):
    video = {"video": "scannet/scene0000_00.mp4"}
    named = question(image="hypersim/a.jpg", data_source="ai")
    manifest = run([question(), question(**video), question(**video) | {"question_type": "room_size"}, named])
    assert manifest["question_types_by_source"] == {
        "ai": {"absolute_count": 1},
        "hypersim": {"absolute_count": 1},
        "scannet": {"absolute_count": 1, "room_size": 1},
    }
    assert manifest["sources"] == {"ai": 1, "hypersim": 1, "scannet": 2}
    assert manifest["question_types"] == {"absolute_count": 3, "room_size": 1}


def test_media_beside_each_other_are_of_one_source(run, media):
    for name in "abc":
        write_image(media / f"{name}.jpg")
    assert run([question(image=f"{name}.jpg") for name in "abc"])["sources"] == {"vsi590k": 3}


def test_a_manifest_names_no_more_types_than_a_limit(run, monkeypatch):
    monkeypatch.setattr(instruction_sets, "MAX_COUNTED", 2)
    manifest = run([question() | {"question_type": str(index)} for index in range(9)])
    assert manifest["question_types"] == {"0": 1, "1": 1, "others": 7}


def test_blocks_of_huge_records_hold_few_of_them(run, tmp_path, monkeypatch):
    monkeypatch.setattr(instruction_sets, "BLOCK_BYTES", 1000)
    run([question("<image>" + "x" * 999)] * 3)
    assert len(list((tmp_path / "set/data").iterdir())) == 3


@pytest.mark.parametrize("absent", [None, "", []])
def test_a_field_that_holds_nothing_is_as_if_it_were_not_there(run, absent):
    records = [
        question(image="hypersim/a.jpg", video=absent),
        question(video="scannet/scene0000_00.mp4", image=absent),
    ]
    assert run(records)["kept"] == 2


def test_a_block_whose_records_lost_their_media_leaves_no_rows(run, tmp_path, media, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(instruction_sets, "_merge", lambda *arguments: sys.exit(1))
        with pytest.raises(SystemExit):
            run([question()] * 3 + [question(image="hypersim/b.jpg")] * 3)
    (tmp_path / "set/.unfinished/blocks/000001.json").unlink()
    (media / "hypersim/b.jpg").unlink()
    assert run([question()] * 3 + [question(image="hypersim/b.jpg")] * 3)["kept"] == len(read_rows(tmp_path / "set"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"conversations": ', "broken JSON"),
        ("[1, 2]", "malformed record"),
        (question(image=["hypersim/a.jpg", "hypersim/b.jpg"]), "wrong number of placeholders"),
        (question("<image><image>", image="hypersim/a.jpg"), "wrong number of placeholders"),
        (question("<image><image>", video="scannet/scene0000_00.mp4"), "wrong number of placeholders"),
        (question("<video><video>", video="scannet/scene0000_00.mp4"), "wrong number of placeholders"),
        (question("How many?", video="scannet/scene0000_00.mp4"), "wrong number of placeholders"),
        (question(image="hypersim/c.jpg"), "missing media"),
        (question(image="/etc/hostname.jpg"), "outside the media root"),
        (question(image="../records.jsonl"), "outside the media root"),
        (question(video="scannet/scene0000_00.mp4", image="hypersim/a.jpg"), "malformed record"),
        (question(other=1), "malformed record"),
        (question(image={"path": "a.jpg"}), "malformed record"),
        (question(image=[3]), "malformed record"),
        (question(image="hypersim/a.jpg", id=["x"]), "malformed record"),
        (question("<image>\ud800"), "malformed record"),
        (question("<image>", answer=3), "malformed record"),
        (question("<image>", answer=" "), "no answer turn"),
        (question("<image> <|image_pad|>"), "control token in text"),
        ({"conversations": QUESTION[:1], "image": "hypersim/a.jpg"}, "no answer turn"),
        ({"conversations": QUESTION + QUESTION[:1], "image": "hypersim/a.jpg"}, "no answer turn"),
        ({"conversations": [], "image": "hypersim/a.jpg"}, "no answer turn"),
        ({"conversations": "x", "image": "hypersim/a.jpg"}, "malformed record"),
        ({"conversations": QUESTION[:1] + QUESTION, "image": "hypersim/a.jpg"}, "turns do not alternate"),
    ],
)
def test_a_bad_record_is_rejected_with_its_line_and_reason(run, tmp_path, record, reason):
    run([question(), record, question()])
    assert reasons(tmp_path / "set") == {2: reason}
    assert len(read_rows(tmp_path / "set")) == 2


def test_a_rejection_names_the_record_and_what_was_seen(run, tmp_path):
    run([question(), question(image="hypersim/c.jpg", id="q17")])
    (rejection,) = read_rejected(tmp_path / "set")
    assert (rejection["line"], rejection["id"]) == (2, "q17") and "hypersim/c.jpg" in rejection["detail"]


def test_all_turns_of_a_conversation_are_kept(run, tmp_path):
    run([{"conversations": turns("<image>\nHow many?", "3", "Which?", "red"), "image": "hypersim/a.jpg"}])
    messages = read_rows(tmp_path / "set")[0]["messages"]
    assert [(message["role"], text_of(message)) for message in messages] == [
        ("user", "#How many?"),
        ("assistant", "3"),
        ("user", "Which?"),
        ("assistant", "red"),
    ]


def test_only_the_first_turn_loses_line_breaks_after_images():
    messages = compose_messages([("user", "<image>\n\nA"), ("assistant", "<image>\nx"), ("user", "<image>\nB")], 2)
    assert [text_of(message) for message in messages] == ["#\nA", "<image>\nx", "#\nB"]


def test_one_video_placeholder_over_many_images_takes_eight_of_them(run, tmp_path, media):
    images = [f"clip/{index}.jpg" for index in range(20)]
    for image in images:
        write_image(media / image)
    run([question("<video>\nWhat?", image=images)])
    (row,) = read_rows(tmp_path / "set")
    assert [os.path.basename(path) for path in row["images"]] == [f"{i}.jpg" for i in (0, 2, 5, 8, 10, 13, 16, 19)]
    assert text_of(row["messages"][0]) == "########What?"


@needs_cases
@pytest.mark.parametrize("case", training_cases("chat_and_labels") if CASES.is_file() else [])
def test_messages_hold_what_the_official_template_renders(case):
    """Except for text that follows more placeholders than there are images, and a leading system turn: see below."""
    conversation, dropped = read_turns(case["conversations"])
    messages = compose_messages(conversation, len(case["image_tokens"]))
    rendered = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    if dropped:  # officially kept as a second system turn
        rendered += f"<|im_start|>system\n{case['conversations'][0]['value']}<|im_end|>\n"
    tokens = iter(case["image_tokens"])
    for message in messages:
        parts = [
            part["text"] or f"<|vision_start|>{'<|image_pad|>' * next(tokens)}<|vision_end|>"
            for part in message["content"]
        ]
        rendered += f"<|im_start|>{message['role']}\n{''.join(parts)}<|im_end|>\n"
    assert rendered == case["rendered"]


def test_excluded_scenes_need_no_media_and_are_counted_by_scene(run):
    records = [question(), question(video="scannet/scene0011_00.mp4"), question(video="scannet/scene0011_02.mp4")]
    manifest = run(records, excluded=["scene0011_01"])
    assert manifest["excluded_by_scene"] == {"scene0011_00": 1, "scene0011_02": 1}


def test_any_excluded_image_excludes_the_record(run):
    images = ["hypersim/a.jpg", "scannet/scene0011_00/1.jpg"]
    assert run([question(), question("<image><image>", image=images)], excluded=["scene0011_00"])["excluded"] == 1


def test_several_processes_write_what_one_writes(run, tmp_path):
    records = [question(f"<image>{index}") for index in range(10)] + [question(video="scannet/scene0000_00.mp4"), "{"]
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
        write_tiny_video(tmp_path / f"media/scannet/scene{index:04d}_00.mp4")
    records = [question(f"<image>{i}", video=f"scannet/scene{i % 7:04d}_00.mp4") for i in range(160)]
    file, output = write_lines(tmp_path / "records.jsonl", records), tmp_path / "set"
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", file, "media", output, str(workers)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    expected = fingerprint(output)
    output.rename(tmp_path / "uninterrupted")
    rng, kills = random.Random(workers), 0
    while not (output / "data").exists():
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
        # Imports take seconds, in which nothing can go wrong: wait until there is something to spoil.
        limit = count_files(output) + rng.randrange(1, 30)
        while process.poll() is None and count_files(output) < limit:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert kills and fingerprint(output) == expected


def test_a_conversion_stopped_at_any_move_into_place_ends_with_the_same_bytes(run, tmp_path, monkeypatch):
    records = [question(f"<image>{i}", video="scannet/scene0000_00.mp4") for i in range(7)] + ["{"]
    run(records)
    expected, move = fingerprint(tmp_path / "set"), os.replace
    (tmp_path / "set").rename(tmp_path / "uninterrupted")
    for allowed in range(20):
        moves = iter(range(allowed))

        def stop_after(*paths, moves=moves):
            if next(moves, None) is None:
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
        (tmp_path / "set").rename(tmp_path / f"stopped_{allowed}")
    # The note of options, the frames, three blocks with two files each, rejected, manifest, card, and the data.
    assert allowed == 12


def test_a_conversion_anew_makes_its_frames_anew(run, tmp_path):
    records = [question(video="scannet/scene0000_00.mp4")]
    run(records)
    expected = fingerprint(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    run(records)
    assert fingerprint(tmp_path / "set") == expected


def test_finished_blocks_are_not_converted_again(run, tmp_path, monkeypatch):
    records = [question(f"<image>{index}") for index in range(9)]
    with monkeypatch.context() as patch:
        patch.setattr(instruction_sets, "_merge", lambda *arguments: sys.exit(1))
        with pytest.raises(SystemExit):
            run(records)
    (tmp_path / "set/.unfinished/blocks/000001.json").unlink()
    converted = []
    original = instruction_sets._convert_block
    monkeypatch.setattr(
        instruction_sets,
        "_convert_block",
        lambda job, index, block: converted.append(index) or original(job, index, block),
    )
    run(records)
    assert converted == [1] and len(read_rows(tmp_path / "set")) == 9


def test_nothing_looks_like_an_instruction_set_before_it_is_complete(run, tmp_path, monkeypatch):
    monkeypatch.setattr(instruction_sets, "_merge", lambda *arguments: sys.exit(1))
    with pytest.raises(SystemExit):
        run([question()])
    assert not (tmp_path / "set/data").exists()


def test_only_the_instruction_set_is_left_at_the_end(run, tmp_path):
    run([question(video="scannet/scene0000_00.mp4")])
    assert sorted(os.listdir(tmp_path / "set")) == ["README.md", "data", "frames", "manifest.json", "rejected.jsonl"]


def test_a_second_run_changes_nothing(run, tmp_path):
    first = run([question(), "{"])
    before = fingerprint(tmp_path / "set")
    assert run([question(), "{"]) == first and fingerprint(tmp_path / "set") == before


def test_an_output_of_another_input_is_refused(run):
    run([question()])
    with pytest.raises(ValueError, match="input_sha256.*choose another output folder"):
        run([question(), question()])


def test_an_unfinished_output_of_other_options_is_refused(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(instruction_sets, "_merge", lambda *arguments: sys.exit(1))
        with pytest.raises(SystemExit):
            run([question()])
    with pytest.raises(ValueError, match="excluded_sha256"):
        run([question()], excluded=["scene0011_00"])


def test_a_second_conversion_to_the_same_folder_at_the_same_time_is_refused(run, tmp_path, monkeypatch):
    original = instruction_sets._merge

    def run_a_second_one(*arguments):
        monkeypatch.setattr(instruction_sets, "_merge", original)
        with pytest.raises(ValueError, match="Another process is converting to .*set: wait until it has ended"):
            run([question()])
        return original(*arguments)

    monkeypatch.setattr(instruction_sets, "_merge", run_a_second_one)
    assert run([question()])["kept"] == 1


@pytest.mark.parametrize("name", ["data/a.parquet", "manifest.json", "notes.txt"])
def test_a_folder_that_holds_something_else_is_refused_and_stays_as_it_is(run, tmp_path, name):
    (tmp_path / "set" / name).parent.mkdir(parents=True)
    (tmp_path / "set" / name).write_text("{}")
    before = fingerprint(tmp_path / "set")
    with pytest.raises(ValueError, match=f"`{name.split('/')[0]}`, which no conversion has left there: choose"):
        run([question()])
    assert fingerprint(tmp_path / "set") == before


def test_the_media_folder_is_no_output(command, media):
    before = fingerprint(media)
    command[command.index("--output") + 1] = str(media)
    with pytest.raises(SystemExit, match="choose an empty or new output folder"):
        main([*command, "--no-exclude"])
    assert fingerprint(media) == before


def test_max_records_reads_the_first_so_many(run):
    assert run([question()] * 10, max_records=4)["records"] == 4


def test_an_input_without_a_usable_record_is_an_error_that_says_why(run):
    with pytest.raises(ValueError, match=r"None of the 2 records.*missing media \(2\)"):
        run([question(image="x.jpg"), question(image="y.jpg")])


@pytest.mark.parametrize("options", [{"workers": 0}, {"max_records": 0}])
def test_numbers_out_of_range_are_refused(run, options):
    with pytest.raises(ValueError, match="at least 1"):
        run([question()], **options)


def test_turns_of_one_speaker_alone_are_no_conversation():
    with pytest.raises(BadRecord, match="gpt"):
        read_turns([{"from": "gpt", "value": "3"}])


@pytest.fixture
def command(tmp_path, media):
    file = write_lines(tmp_path / "records.jsonl", [question()])
    return ["--input", str(file), "--media-root", str(media), "--output", str(tmp_path / "set"), "--workers", "1"]


def test_the_command_line_leaves_the_benchmarks_scenes_out_by_default(command, tmp_path, monkeypatch):
    monkeypatch.setattr(instruction_sets, "fetch_benchmark_scenes", lambda: frozenset(["scene0000_01"]))
    write_lines(tmp_path / "records.jsonl", [question(), question(video="scannet/scene0000_00.mp4")])
    main(command)
    assert json.loads((tmp_path / "set/manifest.json").read_text())["excluded_by_scene"] == {"scene0000_00": 1}


def test_nothing_is_converted_where_the_benchmarks_scenes_cannot_be_had(command, tmp_path, monkeypatch):
    def refuse():
        raise ValueError("no connection")

    monkeypatch.setattr(instruction_sets, "fetch_benchmark_scenes", refuse)
    with pytest.raises(SystemExit, match="no connection"):
        main(command)
    assert not (tmp_path / "set").exists()


def test_the_command_line_takes_lists_of_scenes(command, tmp_path, capsys):
    for name, text in (("a.txt", "scene0011_00\n\n 41069025 \n"), ("b.txt", "scene0012_00")):
        (tmp_path / name).write_text(text)
    main([*command, "--exclude", str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert json.loads((tmp_path / "set/manifest.json").read_text())["listed_scenes"] == 3
    assert "1 of 1 records" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["--input", "--media-root"])
def test_what_is_not_there_is_named_in_one_sentence(command, name):
    command[command.index(name) + 1] = "/nowhere"
    with pytest.raises(SystemExit, match="no (file|folder) `/nowhere`"):
        main([*command, "--no-exclude"])


def test_an_interruption_is_told_in_one_sentence(command, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(instruction_sets, "_convert_block", interrupt)
    with pytest.raises(SystemExit) as caught:
        main([*command, "--no-exclude"])
    assert caught.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted; run the same command again to go on.\n")


def fill_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_in_one_sentence_and_loses_nothing(command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(instruction_sets.pq, "write_table", fill_disk)
        with pytest.raises(SystemExit, match="No space left on device; what was converted is kept: .* run again"):
            main([*command, "--no-exclude"])
    main([*command, "--no-exclude"])
    assert len(read_rows(tmp_path / "set")) == 1
