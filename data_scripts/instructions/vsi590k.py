"""Make an instruction set of VSI-590K (nyu-visionx/VSI-590K: vsi_590k.jsonl and its media, unpacked).

    spa3r convert-data vsi590k --input vsi_590k.jsonl --media-root media --output data/vsi590k

A record has `conversations`, `question_type`, and either `video` or `image`. Its placeholder is `<image>` even where
it speaks of a video; that is read as `<video>`.
"""

from collections.abc import Sequence
from typing import Any

from .convert import RawSample, read_common, run_command_line


def read_record(record: dict[str, Any]) -> RawSample:
    """A record of VSI-590K in common terms."""
    return read_common(record)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the converter."""
    run_command_line(read_record, "vsi590k", __doc__, arguments)


if __name__ == "__main__":
    main()
