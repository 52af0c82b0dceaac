"""Make an instruction set of VLM-3R's questions (Journey9ni/VLM-3R-DATA: vsibench_train/merged_qa_*_train.json).

    spa3r convert-data vlm3r --input merged_qa_scannet_train.json --media-root media \\
        --output data/vlm3r-scannet

A record has `id`, `scene_name`, `question_type`, `conversations` and `video`. Its placeholder is `<image>`, which is
read as `<video>`. The videos are not distributed: they are made of ScanNet's and ScanNet++'s recordings.
"""

from collections.abc import Sequence
from typing import Any

from .convert import RawSample, read_common, run_command_line


def read_record(record: dict[str, Any]) -> RawSample:
    """A record of VLM-3R in common terms."""
    return read_common(record, scene_id=record.get("scene_name"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the converter."""
    run_command_line(read_record, "vlm3r", __doc__, arguments)


if __name__ == "__main__":
    main()
