"""Read the records of an annotation file one at a time: lines of JSON, or the elements of one JSON list."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

MAX_RECORD_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A string, which the end of the buffer may cut off, or a bracket outside strings.
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+("|\\?\Z)|[\[\]{}]', re.DOTALL)


class BadRecord(ValueError):
    """A record that cannot be used: `reason` is a category to count by, `detail` says what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_records(path: str | os.PathLike) -> Iterator[tuple[int, bytes | BadRecord]]:
    """Split a file into records without parsing them; holds at most one megabyte beyond a record.

    Args:
        path (`str` or `os.PathLike`): A file with one JSON value per line, or with one JSON list of records. Its
            first character decides, not its name.

    Yields:
        `tuple[int, bytes | BadRecord]`: The line on which a record begins, counted from 1, and its bytes. Blank lines
        are skipped. If the list or a record does not end, the last item is a `BadRecord`.
    """
    with open(path, "rb") as file:
        start = b""
        while not start:
            chunk = file.read(4096)
            if not chunk:
                return
            start = chunk.removeprefix(BYTE_ORDER_MARK).lstrip()
        file.seek(0)
        yield from _list_elements(file) if start.startswith(b"[") else _lines(file)


def parse_record(raw: bytes | BadRecord) -> dict[str, Any]:
    """Parse a record from `read_records`; raises `BadRecord` if it is not a JSON object."""
    if isinstance(raw, BadRecord):
        raise raw
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRecord("broken JSON", str(error)) from error
    if not isinstance(record, dict):
        raise BadRecord("malformed record", f"a record is a JSON object, got {type(record).__name__}")
    return record


def check_text(value: Any, what: str) -> str:
    """Return a value if it is text that UTF-8 can store; raises `BadRecord` otherwise."""
    if not isinstance(value, str):
        raise BadRecord("malformed record", f"{what} is text, got {value!r:.200}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("malformed record", f"{what} holds half a character, got {value!r:.200}") from error
    return value


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | BadRecord]]:
    for number in itertools.count(1):
        line = file.readline(MAX_RECORD_BYTES + 1)
        if len(line) > MAX_RECORD_BYTES:
            yield number, _endless()
            return
        if not line:
            return
        if line.strip():
            yield number, line.strip()


def _list_elements(file: BinaryIO) -> Iterator[tuple[int, bytes | BadRecord]]:
    """Split a list into its elements by counting brackets, so that one broken element does not affect the others."""
    buffer, line = b"", 1
    depth = position = begin = 0  # `begin`: start of the element, or of the gap before it
    while chunk := file.read(CHUNK_BYTES):
        buffer += chunk
        for token in TOKEN.finditer(buffer, position):
            if token[0][:1] == b'"':
                if token[1] != b'"':
                    break  # the rest of the string is in the next chunk
            elif token[0] in b"[{":
                depth += 1
                if depth <= 2:
                    yield from _stray(buffer[begin : token.start()], line, opens_list=depth == 1)
                    line += buffer.count(b"\n", begin, token.start())
                    begin = token.start() if depth == 2 else token.end()
            else:
                depth -= 1
                if depth == 1:
                    yield line, buffer[begin : token.end()]
                elif depth == 0:
                    yield from _stray(buffer[begin : token.start()], line)
                if depth <= 1:
                    line += buffer.count(b"\n", begin, token.end())
                    begin = token.end()
                if depth == 0:
                    if buffer[begin:].strip() or file.read(CHUNK_BYTES).strip():
                        yield line, BadRecord("broken JSON", "the list ends here; what follows is not read")
                    return
            position = token.end()
        buffer, position, begin = buffer[begin:], position - begin, 0
        if len(buffer) > MAX_RECORD_BYTES + CHUNK_BYTES:
            yield line, _endless()
            return
    yield line, BadRecord("broken JSON", "the file ends before its list does; it may be an incomplete download")


def _stray(gap: bytes, line: int, opens_list: bool = False) -> Iterator[tuple[int, bytes]]:
    """Anything between elements other than spaces and commas, such as a bare number."""
    stray = b"" if opens_list else gap.strip(b" \t\r\n,")
    if stray:
        yield line + gap[: gap.index(stray)].count(b"\n"), stray


def _endless() -> BadRecord:
    size = f"{MAX_RECORD_BYTES >> 20} MiB"
    return BadRecord("broken JSON", f"no end of the record within {size}; what follows is not read")
