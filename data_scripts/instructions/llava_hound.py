"""Make an instruction set of LLaVA-Hound (a part of LLaVA-Video-178K) in the form in which VG-LLM distributes it.

    spa3r convert-data llava-hound --input llava_hound_64k.json --media-root media --no-exclude \\
        --output data/llava-hound

A record has `id`, `conversations` with the placeholder `<video>`, `data_source`, and as `video` a folder of frames,
llava_hound/frames/<id>. A video file is taken too. The data set names no types of questions: all are `open_ended`.
"""

from collections.abc import Sequence
from typing import Any

from .convert import RawSample, read_common, run_command_line

QUESTION_TYPE = "open_ended"


def read_record(record: dict[str, Any]) -> RawSample:
    """A record of LLaVA-Hound in common terms."""
    return read_common(record, question_type=record.get("question_type") or QUESTION_TYPE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the converter."""
    run_command_line(read_record, "llava_hound", __doc__, arguments)


if __name__ == "__main__":
    main()
