"""Records cut out of files are compared with what the `json` module makes of the whole file."""

import json
import random

import pytest

from spa3r.data_scripts.common import records as record_stream
from spa3r.data_scripts.common.records import BadRecord, check_text, parse_record, read_records


def read(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_records(path))


def value_of(raw):
    """The value of a readable record, or the reason of a bad one."""
    try:
        return parse_record(raw)
    except BadRecord as error:
        return error.reason


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
    text = json.dumps(tricky_records(random.Random(1), 20), indent=1)
    items = read(tmp_path / "list.json", text)
    # With this indentation only elements have one space and a brace.
    assert [line for line, _ in items] == [n for n, line in enumerate(text.split("\n"), 1) if line.startswith(" {")]


A, B = {"a": 1}, {"b": 2}
BROKEN, MALFORMED = "broken JSON", "malformed record"
# Content, and the line and value of each record, or the reason why it is bad.
FILES = {
    "empty": ("", []),
    "blank": (" \n\n", []),
    "lines": ('{"a": 1}\r\n\n  \n{"b": 2}', [(1, A), (4, B)]),
    "list": ('\n [{"a": 1}]', [(2, A)]),
    "byte order mark before lines": ('\ufeff{"a": 1}\n', [(1, A)]),
    "byte order mark before a list": ('\ufeff[{"a": 1}]', [(1, A)]),
    "broken lines": (
        b'{"a": 1}\n{"b": \n{"c": "\xff"}\n[1]\n{"b": 2}',
        [(1, A), (2, BROKEN), (3, BROKEN), (4, MALFORMED), (5, B)],
    ),
    "broken elements": ('[{"a": 1},\n{"b": tru},\n 7, "x",\n{"b": 2}]', [(1, A), (2, BROKEN), (3, BROKEN), (4, B)]),
    "no objects": ('[{"a": 1},\n 7,\n{"b": 2}, null]', [(1, A), (2, MALFORMED), (3, B), (3, MALFORMED)]),
    "more after a list": ('[{"a": 1}]\n{"b": 2}', [(1, A), (1, BROKEN)]),
    "nesting beyond what can be parsed": ('{"a": ' + "[" * 100_000, [(1, BROKEN)]),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("text, expected", FILES.values(), ids=FILES)
def test_bad_records_spoil_no_others_whatever_the_name_of_the_file(tmp_path, name, text, expected):
    assert [(line, value_of(raw)) for line, raw in read(tmp_path / name, text)] == expected


@pytest.mark.parametrize("ending", ["", ",", ',\n{"b": ', ',\n{"b": "x', ',\n{"b": "x\\'])
def test_a_list_that_is_cut_off_ends_with_a_bad_record(tmp_path, ending):
    items = read(tmp_path / "list", '[{"a": 1}' + ending)
    assert items[0] == (1, b'{"a": 1}')
    assert [type(raw) for _, raw in items[1:]] == [BadRecord]
    assert "incomplete download" in items[1][1].detail


@pytest.mark.parametrize("text", ['{"a": "%s"}\n{"b": 1}', '[{"a": "%s"}, {"b": 1}]'])
def test_a_record_without_end_is_not_held_in_memory(tmp_path, monkeypatch, text):
    monkeypatch.setattr(record_stream, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(record_stream, "CHUNK_BYTES", 100)
    items = read(tmp_path / "file", text % ("x" * 5000))
    assert [type(raw) for _, raw in items] == [BadRecord]


@pytest.mark.parametrize("value", [None, 3, ["x"], "\ud800"])
def test_what_cannot_be_stored_as_text_is_refused(value):
    with pytest.raises(BadRecord, match="a name"):
        check_text(value, "a name")
