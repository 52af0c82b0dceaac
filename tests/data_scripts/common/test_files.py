import json
import os
import re

import pytest

from spa3r.data_scripts.common.files import (
    claim_folder,
    natural_key,
    new_folder,
    remove_unfinished,
    replace_when_complete,
    require_empty_folder,
    unfinished_path,
    write_bytes,
    write_json,
    write_text,
)


def content_of(folder):
    return {path.name: path.read_text() if path.is_file() else content_of(path) for path in folder.iterdir()}


def test_names_sort_by_their_numbers():
    names = ["10.jpg", "2.jpg", "frame10.jpg", "frame2.jpg", "02.jpg", "b1"]
    assert sorted(names, key=natural_key) == ["02.jpg", "2.jpg", "10.jpg", "b1", "frame2.jpg", "frame10.jpg"]


@pytest.mark.parametrize(
    "write, content, expected",
    [
        (write_text, "é\n", b"\xc3\xa9\n"),
        (write_bytes, b"\x00", b"\x00"),
        (write_json, {"b": 1, "a": [2]}, b'{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'),
    ],
)
def test_a_file_replaces_an_earlier_one_and_what_a_killed_process_left(tmp_path, write, content, expected):
    (tmp_path / "file").write_text("before")
    unfinished_path(tmp_path / "file").write_text("half")
    write(tmp_path / "file", content)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [expected]


def test_options_of_json_can_be_given(tmp_path):
    write_json(tmp_path / "file", {"b": 1, "a": 2}, indent=None, sort_keys=False)
    assert (tmp_path / "file").read_text() == '{"b": 1, "a": 2}\n'


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, kind, error):
    (tmp_path / "out").mkdir()
    with pytest.raises(error), replace_when_complete(tmp_path / "out") as temporary:
        temporary.mkdir() if kind == "folder" else temporary.touch()
        raise error
    assert content_of(tmp_path) == {"out": {}}


def test_a_failed_move_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("before")

    def fail(*paths):
        raise OSError

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        write_text(tmp_path / "file", "after")
    assert content_of(tmp_path) == {"file": "before"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_folder_appears_with_its_content(tmp_path, exists):
    if exists:
        (tmp_path / "out").mkdir()
    leftover = unfinished_path(tmp_path / "out")
    leftover.mkdir()
    (leftover / "old").touch()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        assert folder.parent == tmp_path and not (tmp_path / "out" / "file").exists()
    assert content_of(tmp_path) == {"out": {"file": "content"}}


@pytest.mark.parametrize("claim", [require_empty_folder, lambda folder: new_folder(folder).__enter__()])
@pytest.mark.parametrize("name", ["notes.txt", ".hidden", ""])
def test_a_place_that_holds_something_is_not_overwritten(tmp_path, claim, name):
    place = tmp_path / "out"
    if name:
        place.mkdir()
    (place / name).write_text("mine")
    before = content_of(tmp_path)
    with pytest.raises(FileExistsError, match=re.escape(str(place))):
        claim(place)
    assert content_of(tmp_path) == before


def test_a_claimed_folder_keeps_its_settings_and_loses_what_was_unfinished(tmp_path):
    note, settings = tmp_path / "out" / "run.json", '{"seed": 1, "size": [2, 3]}'
    claim_folder(note, settings)
    (tmp_path / "out" / ".room.17.partial").mkdir()
    (tmp_path / "out" / "room").mkdir()
    claim_folder(note, json.dumps({"size": (2, 3), "seed": 1}))
    assert content_of(tmp_path / "out") == {"run.json": settings, "room": {}}


def test_a_folder_of_a_run_with_other_settings_is_refused_untouched(tmp_path):
    claim_folder(tmp_path / "run.json", '{"seed": 1, "views": 2, "old": 3}')
    (tmp_path / ".room.partial").touch()
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=r"`new` was None, is 4; `old` was 3, is None; `seed` was 1, is 5"):
        claim_folder(tmp_path / "run.json", '{"seed": 5, "views": 2, "new": 4}')
    assert content_of(tmp_path) == before


def test_only_unfinished_files_and_folders_are_removed(tmp_path):
    kept = ["data.partial", ".hidden", "file"]
    for name in (*kept, ".file.partial"):
        (tmp_path / name).touch()
    unfinished_path(tmp_path / "folder").mkdir()
    remove_unfinished(tmp_path)
    assert sorted(content_of(tmp_path)) == sorted(kept)
