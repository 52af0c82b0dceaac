"""Records become rows, and bad records are rejected with their line and reason."""

import itertools
import os

import pytest
from instruction_records import question, read_rejected, read_rows, reasons, recorded, text_of, turns, write_image

from spa3r.data_scripts.common.records import BadRecord
from spa3r.data_scripts.instructions.media import MediaFolders
from spa3r.data_scripts.instructions.rows import Job, RawSample, compose_messages, convert_record, read_turns

QUESTION = turns("<image>\nHow many chairs?", "3")
VIDEO = {"video": "scannet/scene0000_00.mp4"}


def test_a_row_says_everything_about_its_record(run, tmp_path, media):
    run([question(id=7, image="hypersim/a.jpg")])
    (row,) = read_rows(tmp_path / "set")
    content = [{"type": "image", "text": None}, {"type": "text", "text": "How many chairs?"}]
    answer = [{"type": "text", "text": "3"}]
    assert row == {
        "images": [str(media / "hypersim/a.jpg")],
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        "scene_id": "hypersim",
        "question_type": "absolute_count",
        "source": "vsi590k",
        "id": "7",
    }


@pytest.mark.parametrize("absent", [None, "", []])
def test_an_empty_field_counts_as_absent(run, absent):
    assert run([question(image="hypersim/a.jpg", video=absent), question(**VIDEO, image=absent)])["kept"] == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"conversations": ', "broken JSON"),
        ("[1, 2]", "malformed record"),
        (question(image=["hypersim/a.jpg", "hypersim/b.jpg"]), "wrong number of placeholders"),
        (question("<image><image>"), "wrong number of placeholders"),
        *[
            (question(text, **VIDEO), "wrong number of placeholders")
            for text in ("<image><image>", "<video><video>", "How many?")
        ],
        (question(image="hypersim/c.jpg"), "missing media"),
        (question(image="/etc/hostname.jpg"), "outside the media root"),
        (question(image="../records.jsonl"), "outside the media root"),
        (question(**VIDEO, image="hypersim/a.jpg"), "malformed record"),
        (question(other=1), "malformed record"),
        (question(image={"path": "a.jpg"}), "malformed record"),
        (question(image=[3]), "malformed record"),
        (question(image="hypersim/a.jpg", id=["x"]), "malformed record"),
        (question("<image>\ud800"), "malformed record"),
        (question("<image>", answer=3), "malformed record"),
        (question("<image>", answer=" "), "no answer turn"),
        (question("<image> <|image_pad|>"), "control token in text"),
        ({"conversations": QUESTION[:1], "image": "hypersim/a.jpg"}, "no answer turn"),
        ({"conversations": QUESTION[1:], "image": "hypersim/a.jpg"}, "no answer turn"),
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


def test_a_rejection_names_the_record_and_the_value(run, tmp_path):
    run([question(), question(image="hypersim/c.jpg", id="q17")])
    (rejection,) = read_rejected(tmp_path / "set")
    assert (rejection["line"], rejection["id"]) == (2, "q17") and "hypersim/c.jpg" in rejection["detail"]


def test_all_turns_of_a_conversation_are_kept(run, tmp_path):
    run([{"conversations": turns("<image>\nHow many?", "3", "Which?", "red"), "image": "hypersim/a.jpg"}])
    messages = read_rows(tmp_path / "set")[0]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [text_of(message) for message in messages] == ["#How many?", "3", "Which?", "red"]


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


def test_records_with_excluded_scenes_need_no_media_and_are_counted_by_scene(run):
    images = ["hypersim/a.jpg", "scannet/scene0011_00/1.jpg"]
    records = [question(), question("<image><image>", image=images), question(video="scannet/scene0011_02.mp4")]
    manifest = run(records, excluded=["scene0011_01"])
    assert manifest["excluded_by_scene"] == {"scene0011_00": 1, "scene0011_02": 1}


def is_consistent(case):
    """Whether a case has a placeholder for each image, in the turns of `human` that training keeps."""
    turns = case["conversations"]
    kept = turns[turns[0]["from"] != "human" :]
    num_placeholders = sum(turn["value"].count("<image>") for turn in kept if turn["from"] == "human")
    return num_placeholders == len(case["image_tokens"])


@pytest.mark.parametrize("case", filter(is_consistent, recorded("chat_and_labels")))
def test_messages_hold_what_the_official_template_renders(case):
    turns, _ = read_turns(case["conversations"])
    rendered = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    if case["conversations"][0]["from"] == "system":  # The official code keeps it as a second system turn.
        rendered += f"<|im_start|>system\n{case['conversations'][0]['value']}<|im_end|>\n"
    tokens = iter(case["image_tokens"])
    for message in compose_messages(turns, len(case["image_tokens"])):
        parts = [
            part["text"] or f"<|vision_start|>{'<|image_pad|>' * next(tokens)}<|vision_end|>"
            for part in message["content"]
        ]
        rendered += f"<|im_start|>{message['role']}\n{''.join(parts)}<|im_end|>\n"
    assert rendered == case["rendered"]


@pytest.mark.parametrize("case", itertools.filterfalse(is_consistent, recorded("chat_and_labels")))
def test_conversations_with_other_images_than_placeholders_are_rejected(tmp_path, case):
    """The official code trains on them, but drops text or images."""
    images = ["a.jpg"] * len(case["image_tokens"])
    job = Job(RawSample.from_record, "set", MediaFolders(*[str(tmp_path)] * 3), frozenset())
    with pytest.raises(BadRecord) as caught:
        convert_record({"conversations": case["conversations"], "images": images}, 1, job)
    assert caught.value.reason == ("wrong number of placeholders" if images else "malformed record")
