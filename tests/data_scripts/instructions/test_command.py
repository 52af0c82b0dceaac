"""`spa3r convert-data SET`: which scenes it leaves out, and what it says when something is wrong."""

import errno
import json
import os
from concurrent.futures.process import BrokenProcessPool

import pytest
from instruction_records import fingerprint, question, read_rows, write_lines
from terminal import verb

from spa3r.data_scripts.instructions import command, convert

SCENES = "fetch_benchmark_scenes"
main = verb("convert-data")


@pytest.fixture
def arguments(tmp_path, media):
    file = write_lines(tmp_path / "records.jsonl", [question()])
    options = {"--input": file, "--media-root": media, "--output": tmp_path / "set", "--workers": 1}
    return ["vsi590k", *(str(part) for option in options.items() for part in option)]


def manifest(tmp_path):
    return json.loads((tmp_path / "set/manifest.json").read_text())


def stop_with(error):
    def stop(*arguments, **options):
        raise error

    return stop


def test_scenes_of_the_benchmarks_are_left_out_by_default(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(command, SCENES, lambda: frozenset(["scene0000_01"]))
    write_lines(tmp_path / "records.jsonl", [question(), question(video="scannet/scene0000_00.mp4")])
    main(arguments)
    assert manifest(tmp_path)["excluded_by_scene"] == {"scene0000_00": 1}


def test_nothing_is_converted_if_the_scenes_of_the_benchmarks_cannot_be_fetched(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(command, SCENES, stop_with(ValueError("no connection")))
    with pytest.raises(SystemExit, match="no connection"):
        main(arguments)
    assert not (tmp_path / "set").exists()


def test_lists_of_scenes_replace_those_of_the_benchmarks(arguments, tmp_path, capsys):
    for name, text in (("a.txt", "scene0011_00\n\n 41069025 \n"), ("b.txt", "scene0012_00")):
        (tmp_path / name).write_text(text)
    write_lines(tmp_path / "records.jsonl", [question(), question(video="scannet/scene0011_01.mp4")])
    main([*arguments, "--exclude", str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert manifest(tmp_path)["listed_scenes"] == 3
    output = capsys.readouterr().out
    assert "1 of 2 scenes are left out (1 of the 3 listed were found)" in output and "1 of 2 records" in output


def test_a_list_that_leaves_out_no_record_is_refused_unless_it_may(arguments, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("scene0011_00\n")
    arguments += ["--exclude", str(tmp_path / "list.txt")]
    with pytest.raises(SystemExit, match="`--exclude` .*'scene0011_00'.*`--exclude-may-match-nothing`"):
        main(arguments)
    assert not (tmp_path / "set").exists()  # found before anything is converted
    main([*arguments, "--exclude-may-match-nothing"])
    assert "0 of 1 scenes are left out (0 of the 1 listed were found)" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--input", "--media-root", "--output", "--workers", "--max-records"])
def test_a_wrong_option_is_named_and_changes_no_file(arguments, tmp_path, media, option):
    # The folder of the media is not an output folder.
    value = {"--output": str(media), "--workers": "0", "--max-records": "0"}.get(option, "/nowhere")
    before = fingerprint(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--no-exclude", option, value])
    assert value in str(caught.value) and caught.value.code != 0 and fingerprint(tmp_path) == before


@pytest.mark.parametrize("arguments", [[], ["vsi"], ["vsi590k", "--input", "x"]])
def test_an_incomplete_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "spa3r convert-data" in capsys.readouterr().err


@pytest.mark.parametrize("name", command.SETS)
def test_each_set_describes_its_records(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    output = capsys.readouterr().out
    assert command.SETS[name].__doc__.partition("\n")[0] in output and "--media-root" in output


@pytest.mark.parametrize(
    ("target", "error", "named"),
    [
        ((convert.pq, "write_table"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), os.strerror(errno.ENOSPC)),
        ((convert, "_convert_block"), BrokenProcessPool(), "--workers"),
        ((convert, "_convert_block"), ImportError("needs PyAV"), "needs PyAV"),
    ],
)
def test_a_conversion_that_stops_names_the_reason_and_can_be_resumed(
    arguments, tmp_path, monkeypatch, target, error, named
):
    with monkeypatch.context() as patch:
        patch.setattr(*target, stop_with(error))
        with pytest.raises(SystemExit, match=named):
            main([*arguments, "--no-exclude"])
    main([*arguments, "--no-exclude"])
    assert len(read_rows(tmp_path / "set")) == 1


def test_an_interruption_ends_with_the_code_of_shells(arguments, monkeypatch, capsys):
    monkeypatch.setattr(convert, "_convert_block", stop_with(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--no-exclude"])
    assert caught.value.code == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("spa3r convert-data: ") and "Traceback" not in message
