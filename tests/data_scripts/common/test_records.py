"""Records cut out of files are compared with what the `json` module makes of the whole file."""

import json
import random

import pytest

from spa3r.data_scripts.common import records as record_stream
from spa3r.data_scripts.common.records import BadRecord, check_text, parse_record, read_records


def read(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_records(path))


def parsed(items):
    """Values of readable records, and reasons of others, by line."""
    result = []
    for line, raw in items:
        try:
            result.append((line, parse_record(raw)))
        except BadRecord as error:
            result.append((line, error.reason))
    return result


def tricky_records(rng, number):
    """Records whose strings look like structure."""
    pieces = ["[", "]", "{", "}", '"', "\\", ",", "\n", "é", "日", "<image>", " "]
    text = lambda: "".join(rng.choices(pieces, k=rng.randrange(12)))  # noqa: E731
    return [{text(): [text(), {"a": rng.random(), text(): [[], {}]}], "n": index} for index in range(number)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_elements_of_a_list_are_those_of_the_json_module(tmp_path, monkeypatch, indent, chunk):
    monkeypatch.setattr(record_stream, "CHUNK_BYTES", chunk)
    records = tricky_records(random.Random(0), 40)
    items = read(tmp_path / "list.json", json.dumps(records, indent=indent, ensure_ascii=False))
    assert [json.loads(raw) for _, raw in items] == records


def test_lines_of_a_list_are_where_its_elements_begin(tmp_path):
    records = tricky_records(random.Random(1), 20)
    text = json.dumps(records, indent=1)
    items = read(tmp_path / "list.json", text)
    # With this indentation only elements have one space and a brace.
    assert [line for line, _ in items] == [n for n, line in enumerate(text.split("\n"), 1) if line.startswith(" {")]


def test_lines_are_records_with_their_numbers_and_blank_ones_are_not(tmp_path):
    assert parsed(read(tmp_path / "lines.jsonl", '{"a": 1}\r\n\n  \n{"b": 2}')) == [(1, {"a": 1}), (4, {"b": 2})]


def test_the_content_tells_lines_from_a_list_and_not_the_name(tmp_path):
    assert parsed(read(tmp_path / "a.jsonl", '\n [{"a": 1}]')) == [(2, {"a": 1})]
    assert parsed(read(tmp_path / "b.json", '{"a": 1}\n{"b": 2}')) == [(1, {"a": 1}), (2, {"b": 2})]


@pytest.mark.parametrize("text", ['{"a": 1}\n', '[{"a": 1}]'])
def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path, text):
    assert parsed(read(tmp_path / "file", b"\xef\xbb\xbf" + text.encode())) == [(1, {"a": 1})]


def test_a_broken_line_spoils_no_other(tmp_path):
    text = b'{"a": 1}\n{"b": \n{"c": "\xff"}\n[1]\n{"d": 4}'
    reasons = ["broken JSON", "broken JSON", "malformed record"]
    assert parsed(read(tmp_path / "lines", text)) == [
        (1, {"a": 1}),
        *zip((2, 3, 4), reasons, strict=True),
        (5, {"d": 4}),
    ]


def test_a_broken_element_spoils_no_other(tmp_path):
    items = read(tmp_path / "list", '[{"a": 1},\n{"b": tru},\n{"c": 3},\n 7, "x",\n{"d": 4}]')
    assert parsed(items)[:3] == [(1, {"a": 1}), (2, "broken JSON"), (3, {"c": 3})]
    assert parsed(items)[-1] == (5, {"d": 4})


def test_what_is_no_object_in_a_list_is_reported_and_not_passed_over(tmp_path):
    assert parsed(read(tmp_path / "list", '[{"a": 1},\n 7,\n{"d": 4}, null]')) == [
        (1, {"a": 1}),
        (2, "malformed record"),
        (3, {"d": 4}),
        (3, "malformed record"),
    ]


@pytest.mark.parametrize("ending", ["", ",", ',\n{"b": ', ',\n{"b": "x', ',\n{"b": "x\\'])
def test_a_list_that_is_cut_off_ends_with_a_bad_record(tmp_path, ending):
    items = read(tmp_path / "list", '[{"a": 1}' + ending)
    assert items[0] == (1, b'{"a": 1}')
    assert [type(raw) for _, raw in items[1:]] == [BadRecord]
    assert "incomplete download" in items[1][1].detail


def test_what_follows_a_list_is_reported(tmp_path):
    assert parsed(read(tmp_path / "list", '[{"a": 1}]\n{"b": 2}')) == [(1, {"a": 1}), (1, "broken JSON")]


@pytest.mark.parametrize("text", ['{"a": "%s"}\n{"b": 1}', '[{"a": "%s"}, {"b": 1}]'])
def test_a_record_without_end_is_not_held_in_memory(tmp_path, monkeypatch, text):
    monkeypatch.setattr(record_stream, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(record_stream, "CHUNK_BYTES", 100)
    items = read(tmp_path / "file", text % ("x" * 5000))
    assert [type(raw) for _, raw in items] == [BadRecord]


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_file_has_no_records(tmp_path, text):
    assert read(tmp_path / "file", text) == []


def test_nesting_beyond_what_can_be_parsed_is_broken_json(tmp_path):
    assert parsed(read(tmp_path / "file", '{"a": ' + "[" * 100_000)) == [(1, "broken JSON")]


@pytest.mark.parametrize("value", [None, 3, ["x"], "\ud800"])
def test_what_cannot_be_stored_as_text_is_refused(value):
    with pytest.raises(BadRecord, match="a name"):
        check_text(value, "a name")
