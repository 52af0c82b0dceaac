import json
import os
import re
from functools import partial

import pytest
from refusals import refused

from spa3r.data_scripts.common import files


def content_of(folder):
    return {path.name: path.read_text() if path.is_file() else content_of(path) for path in folder.iterdir()}


def test_names_sort_by_their_numbers():
    names = ["10.jpg", "2.jpg", "frame10.jpg", "frame2.jpg", "02.jpg", "b1"]
    assert sorted(names, key=files.natural_key) == ["02.jpg", "2.jpg", "10.jpg", "b1", "frame2.jpg", "frame10.jpg"]


@pytest.mark.parametrize(
    "write, content, expected",
    [
        (files.write_text, "é\n", b"\xc3\xa9\n"),
        (files.write_bytes, b"\x00", b"\x00"),
        (files.write_json, {"b": 1, "a": [2]}, b'{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'),
        (partial(files.write_json, indent=None, sort_keys=False), {"b": 1, "a": 2}, b'{"b": 1, "a": 2}\n'),
    ],
)
def test_a_file_replaces_an_earlier_one_and_what_a_killed_process_left(tmp_path, write, content, expected):
    (tmp_path / "file").write_text("before")
    files.unfinished_path(tmp_path / "file").write_text("half")
    write(tmp_path / "file", content)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [expected]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, kind, error):
    (tmp_path / "out").mkdir()
    with pytest.raises(error), files.replace_when_complete(tmp_path / "out") as temporary:
        temporary.mkdir() if kind == "folder" else temporary.touch()
        raise error
    assert content_of(tmp_path) == {"out": {}}


def test_a_failed_move_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("before")
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files.write_text(tmp_path / "file", "after")
    assert content_of(tmp_path) == {"file": "before"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_folder_appears_with_its_content(tmp_path, exists):
    out = tmp_path / "out"
    for folder in [files.unfinished_path(out) / "old", *[out] * exists]:
        folder.mkdir(parents=True)
    with files.new_folder(out) as folder:
        (folder / "file").write_text("content")
        assert folder.parent == tmp_path and not (out / "file").exists()
    assert content_of(tmp_path) == {"out": {"file": "content"}}


def test_a_folder_that_another_run_is_writing_is_refused(tmp_path):
    with files.new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        with refused(str(tmp_path / "out")), files.new_folder(tmp_path / "out"):
            pass
    assert content_of(tmp_path) == {"out": {"file": "content"}}


@pytest.mark.parametrize("claim", [files.require_empty_folder, lambda folder: files.new_folder(folder).__enter__()])
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


def test_a_claimed_folder_keeps_all_but_what_was_unfinished(tmp_path):
    settings = '{"seed": 1, "size": [2, 3]}'
    files.claim_folder(tmp_path / "out/run.json", settings)
    for name in ("room", ".hidden", "data.partial", ".room.17.partial"):
        (tmp_path / "out" / name).mkdir()
    (tmp_path / "out/.file.partial").touch()
    files.claim_folder(tmp_path / "out/run.json", json.dumps({"size": (2, 3), "seed": 1}))
    assert content_of(tmp_path / "out") == {"run.json": settings, "room": {}, ".hidden": {}, "data.partial": {}}


def test_a_folder_of_a_run_with_other_settings_is_refused_untouched(tmp_path):
    files.claim_folder(tmp_path / "run.json", '{"seed": 1, "views": 2, "old": 3}')
    (tmp_path / ".room.partial").touch()
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=r"`new` was None, is 4; `old` was 3, is None; `seed` was 1, is 5"):
        files.claim_folder(tmp_path / "run.json", '{"seed": 5, "views": 2, "new": 4}')
    assert content_of(tmp_path) == before
